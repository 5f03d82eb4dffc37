"""Exact re-ID ranks over all ranks of the process group: counted, never sorted from a stored matrix.

Which gallery items count is the protocol's (``protocol.py``). The gallery lies in parts on the ranks, and only the
positives' distances and integer counts travel between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vmreid.distributed import concatenate_over_ranks, sum_over_ranks
from vmreid.errors import UserError
from vmreid.evaluation.distances import Metric, Rows, exact_distances, prepare, screen_distances, squared_norms
from vmreid.evaluation.protocol import QueryRanks

JUNK = -1
QUERY_TILE = 256
GALLERY_TILE = 4096
PAIR_NUMBERS = 1 << 18  # float64 numbers at once where pairs are measured one by one: 2 MiB, which a cache holds


@dataclass(frozen=True)
class Features:
    """``features`` [n, F] float32 or float64, ``pids`` and ``camids`` [n] int64, all on one device."""

    features: torch.Tensor
    pids: torch.Tensor
    camids: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: torch.Tensor | slice) -> Features:
        return Features(self.features[rows], self.pids[rows], self.camids[rows])


@torch.no_grad()
def rank_queries(query: Features, gallery_part: Features, gallery_index_part: torch.Tensor, metric: Metric) -> QueryRanks:
    """All ranks. Rank every query's positives in the gallery whose parts lie on the ranks.

    Args:
        query: all queries, the same on every rank.
        gallery_part: this rank's gallery items; may be none.
        gallery_index_part: their indices in the whole gallery [n] int64, which settle equal distances.
        metric: ``euclidean`` (squared, on the features as given) or ``cosine`` (1 - cosine), both in float64.

    Returns:
        The same on every rank, bit for bit the same however the gallery is spread and whatever device computes.

    Raises:
        UserError: on every rank, if shapes or types clash or a feature is not finite (or zero under ``cosine``) on any.
    """
    _refuse_together(
        _problem("query", query, torch.arange(len(query)), metric)
        or _problem("gallery", gallery_part, gallery_index_part, metric)
        or _clash(query, gallery_part),
        query.pids.device,
    )
    items = int(sum_over_ranks(torch.tensor([len(gallery_part)], device=query.pids.device)))
    kept = (gallery_part.pids != JUNK).nonzero().squeeze(1)
    kept = kept[gallery_part.pids[kept].argsort(stable=True)]
    part = _Part(
        prepare(gallery_part.features[kept], metric),
        gallery_part.pids[kept].contiguous(),
        gallery_part.camids[kept],
        gallery_index_part[kept],
    )
    ranks: list[list[int]] = []
    for start in range(0, len(query), QUERY_TILE):
        ranks += _rank_tile(query[start : start + QUERY_TILE], part, metric)
    return QueryRanks(ranks, items)


@dataclass(frozen=True)
class _Part:
    """This rank's gallery items without junk, ordered by pid."""

    rows: Rows
    pids_G: torch.Tensor
    camids_G: torch.Tensor
    index_G: torch.Tensor


@dataclass(frozen=True)
class _Positives:
    """The positives of a query tile over all ranks, each query's in order of (distance, index), padded to P columns."""

    distance_QP: torch.Tensor  # padded with inf
    index_QP: torch.Tensor
    number_Q: torch.Tensor


def _rank_tile(query: Features, part: _Part, metric: Metric) -> list[list[int]]:
    """All ranks. Ranks of the positives of a few queries, over the whole gallery."""
    rows = prepare(query.features, metric)
    own_q, own_g = _same_pid(query.pids, part.pids_G)
    positive = query.camids[own_q] != part.camids_G[own_g]
    positives = _gather_positives(rows, part, own_q[positive], own_g[positive])
    before_QP = torch.zeros_like(positives.index_QP)
    if positives.distance_QP.numel():  # the same on all ranks: the positives are
        for start in range(0, len(part.rows), GALLERY_TILE):
            tile = slice(start, start + GALLERY_TILE)
            d_QG, bound_Q = screen_distances(rows, part.rows[tile])
            inside = (own_g >= start) & (own_g < start + GALLERY_TILE)
            d_QG[own_q[inside], own_g[inside] - start] = torch.inf  # positives and the same camera: not counted here
            before_QP += _count_before(d_QG, bound_Q, positives, rows, part.rows[tile], part.index_G[tile])
        sum_over_ranks(before_QP)
    before_QP += torch.arange(1, before_QP.shape[1] + 1, device=before_QP.device)
    pairs = zip(before_QP.tolist(), positives.number_Q.tolist(), strict=True)
    return [ranks[:number] for ranks, number in pairs]


def _same_pid(pids_Q: torch.Tensor, pids_G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (query, gallery) of all pairs with one pid; ``pids_G`` ascends."""
    first_Q = torch.searchsorted(pids_G, pids_Q)
    number_Q = torch.searchsorted(pids_G, pids_Q, right=True) - first_Q
    q = torch.arange(len(pids_Q), device=pids_Q.device).repeat_interleave(number_Q)
    offset = torch.arange(len(q), device=q.device) - (number_Q.cumsum(0) - number_Q)[q]
    return q, first_Q[q] + offset


def _gather_positives(rows: Rows, part: _Part, q: torch.Tensor, g: torch.Tensor) -> _Positives:
    """All ranks. Measure the pairs (q, g) of this rank and bring those of all ranks together."""
    chunk = max(1, PAIR_NUMBERS // rows.x_NF.shape[1])
    chunks = zip(torch.split(q, chunk), torch.split(g, chunk), strict=True)
    distance = torch.cat([exact_distances(rows[qs], part.rows[gs]) for qs, gs in chunks])
    triples = torch.stack([q, part.index_G[g], distance.view(torch.int64)], dim=1)
    q, index, bits = concatenate_over_ranks(triples).unbind(1)
    distance = bits.contiguous().view(torch.float64)
    order = index.argsort(stable=True)
    order = order[distance[order].argsort(stable=True)]
    order = order[q[order].argsort(stable=True)]
    q = q[order]
    number_Q = torch.bincount(q, minlength=len(rows))
    column = torch.arange(len(q), device=q.device) - (number_Q.cumsum(0) - number_Q)[q]
    shape = (len(rows), int(number_Q.max()))
    distance_QP = torch.full(shape, torch.inf, dtype=torch.float64, device=q.device)
    index_QP = torch.zeros(shape, dtype=torch.int64, device=q.device)
    distance_QP[q, column] = distance[order]
    index_QP[q, column] = index[order]
    return _Positives(distance_QP, index_QP, number_Q)


def _count_before(
    d_QG: torch.Tensor, bound_Q: torch.Tensor, positives: _Positives, query: Rows, gallery: Rows, index_G: torch.Tensor
) -> torch.Tensor:
    """How many items of a gallery tile come before each positive: ``before_QP``.

    An item whose screened distance lies below the window [low, high] of a positive comes before it, one above it comes
    after. Items inside a window (exact ties, mostly) are measured exactly, and equal ones compared by gallery index.
    """
    low_QP = positives.distance_QP - bound_Q.unsqueeze(1)
    high_QP = positives.distance_QP + bound_Q.unsqueeze(1)
    ascending_QG = _sort_rows(d_QG)
    before_QP = torch.searchsorted(ascending_QG, low_QP)
    reached_QP = torch.searchsorted(ascending_QG, high_QP, right=True)
    doubtful = ((reached_QP > before_QP) & low_QP.isfinite()).any(dim=1).nonzero().squeeze(1)
    if not len(doubtful):
        return before_QP
    d_DG = d_QG[doubtful]
    entered_DG = torch.searchsorted(low_QP[doubtful], d_DG, right=True)
    left_DG = torch.searchsorted(high_QP[doubtful], d_DG)
    row, g = ((entered_DG > left_DG) & d_DG.isfinite()).nonzero(as_tuple=True)
    q, d = doubtful[row], d_DG[row, g]
    chunk = max(1, PAIR_NUMBERS // max(query.x_NF.shape[1], before_QP.shape[1]))
    for qs, gs, ds in zip(torch.split(q, chunk), torch.split(g, chunk), torch.split(d, chunk), strict=True):
        exact = exact_distances(query[qs], gallery[gs]).unsqueeze(1)
        target_AP, index_AP = positives.distance_QP[qs], positives.index_QP[qs]
        window_AP = (ds.unsqueeze(1) >= low_QP[qs]) & (ds.unsqueeze(1) <= high_QP[qs])
        earlier_AP = (exact < target_AP) | ((exact == target_AP) & (index_G[gs].unsqueeze(1) < index_AP))
        before_QP.index_add_(0, qs, (window_AP & earlier_AP).long())
    return before_QP


def _sort_rows(d_QG: torch.Tensor) -> torch.Tensor:
    """Each row ascending. On the CPU by numpy, whose vectorised sort is several times as fast as torch's."""
    if d_QG.device.type == "cpu":
        return torch.from_numpy(np.sort(d_QG.numpy(), axis=1))
    return d_QG.sort(dim=1).values


def _problem(side: str, given: Features, index: torch.Tensor, metric: Metric) -> str:
    """What is wrong with one side's own features and ids, as one line; empty if nothing is."""
    dtype, shape, number = given.features.dtype, tuple(given.features.shape), len(given)
    if len(shape) != 2 or shape[1] == 0 or dtype not in (torch.float32, torch.float64):
        return f"{side} features are {dtype} of shape {shape}; give float32 or float64 rows [n, F] with F >= 1"
    for name, ids in (("pids", given.pids), ("camids", given.camids), ("indices", index)):
        if ids.dtype != torch.int64 or tuple(ids.shape) != (number,):
            return f"{side} {name} are {ids.dtype} of shape {tuple(ids.shape)}; give {number} int64, one for each row"
    squared_N = squared_norms(given.features)
    bad = (~(16 * squared_N).isfinite()).nonzero()  # 16: so that no distance overflows either
    if len(bad):
        return f"non-finite feature in {side} row {int(index[bad[0, 0]])}; repair what made it, or leave the row out"
    zero = (squared_N == 0).nonzero()
    if metric == "cosine" and len(zero):
        return f"all-zero {side} row {int(index[zero[0, 0]])} has no cosine; leave it out or use the metric euclidean"
    return ""


def _clash(query: Features, gallery: Features) -> str:
    width, other = query.features.shape[1], gallery.features.shape[1]
    return f"query features have {width} columns, gallery features {other}; both must agree" if width != other else ""


def _refuse_together(problem: str, device: torch.device) -> None:
    """All ranks. Raise a UserError on every rank if any has a problem: the lowest such rank's."""
    line = torch.tensor(list(f"{problem}\n".encode()), dtype=torch.uint8, device=device)
    problems = bytes(concatenate_over_ranks(line).tolist()).decode().split("\n")
    if any(problems):
        raise UserError(next(problem for problem in problems if problem))
