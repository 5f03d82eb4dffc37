"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) with all N x N distances in float64: plain, row by row, for small sets.

What the authors' code does, in other words: distances over each row's farthest; sets of the k1 nearest that are mutual,
grown by members' own sets of the k1 / 2 nearest of which more than two thirds lie within; weights exp(-d) that sum to 1;
means over the k2 nearest; 1 - s / (2 - s) with s the sum of minima; the blend. A stable sort gives ties to the smaller row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmreid.evaluation.features import Features

Array = np.ndarray[Any, Any]


def all_distances(x_NF: Array, metric: str) -> Array:
    """Every row against every row."""
    x_NF = x_NF.astype(np.float64)
    if metric == "euclidean":
        return np.stack([((x_NF - row) ** 2).sum(axis=1) for row in x_NF])
    x_NF = x_NF / np.sqrt((x_NF**2).sum(axis=1, keepdims=True))
    return 1 - x_NF @ x_NF.T


def mutual(rank_NN: Array, row: int, count: int) -> list[Any]:
    """Those of the row's nearest that have it among theirs."""
    near = rank_NN[row, :count]
    return near[(rank_NN[near, :count] == row).any(axis=1)].tolist()


def vectors(d_NN: Array, k1: int, k2: int) -> Array:
    """V of every row, averaged; ``d_NN``: each row over its farthest."""
    rank_NN = np.argsort(d_NN, axis=1, kind="stable")
    v_NN = np.zeros_like(d_NN)
    half = int(np.around(k1 / 2)) + 1
    for row in range(len(d_NN)):
        own = set(mutual(rank_NN, row, k1 + 1))
        grown = set(own)
        for member in own:
            theirs = set(mutual(rank_NN, member, half))
            if len(theirs & own) > 2 / 3 * len(theirs):
                grown |= theirs
        members = sorted(grown)
        weight = np.exp(-d_NN[row, members])
        v_NN[row, members] = weight / weight.sum() if members else 0
    if k2 == 1:
        return v_NN
    return np.stack([v_NN[rank_NN[row, :k2]].mean(axis=0) for row in range(len(d_NN))])


def final_distances(query_QF: Array, gallery_GF: Array, metric: str, k1: int, k2: int, share: float) -> Array:
    """Re-ranked distances [Q, G]."""
    d_NN = all_distances(np.concatenate([query_QF, gallery_GF]), metric)
    d_NN = d_NN / d_NN.max(axis=1, keepdims=True)
    v_NN = vectors(d_NN, k1, k2)
    queries = len(query_QF)
    own = [row.nonzero()[0] for row in v_NN[:queries]]  # where a row has nothing, the minimum is nothing
    common_QG = np.stack([np.minimum(v_NN[q, columns], v_NN[queries:, columns]).sum(axis=1) for q, columns in enumerate(own)])
    return (1 - common_QG / (2 - common_QG)) * (1 - share) + d_NN[:queries, queries:] * share


def ranks_by_sorting(final_QG: Array, query: Features, gallery: Features, metric: str) -> list[list[int]]:
    """The protocol over a matrix of distances. What differs by rounding alone is equal, and goes to the smaller original
    distance, then to the smaller index."""
    d_NN = all_distances(np.concatenate([query.features.numpy(), gallery.features.numpy()]), metric)
    d_QG = d_NN[: len(query), len(query) :].round(11)
    result = []
    for q, row in enumerate(final_QG.round(11)):
        same = (gallery.pids == query.pids[q]).tolist()
        kept = [
            (value, d_QG[q, g], g)
            for g, value in enumerate(row)
            if gallery.pids[g] != -1 and not (same[g] and gallery.camids[g] == query.camids[q])
        ]
        result.append([place for place, (*_, g) in enumerate(sorted(kept), 1) if same[g]])
    return result
