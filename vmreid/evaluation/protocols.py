"""The protocols by name: what is left out, what is drawn, and what the scores then are.

``market1501`` is written down in ``protocol.py``. ``msmt17``, ``veri776`` and ``cuhk03np`` (the new protocol's split, in
either kind of box) ask for the same. ``vehicleid``: one picture of each identity, drawn at random, is the gallery, all others are
queries, and cameras do not count; the mean of ``DRAWS`` draws stands with its standard deviation (Liu et al., Deep Relative
Distance Learning, CVPR 2016). ``open_set``: ``market1501``, and the share of right pairs that a threshold accepts which accepts
at most such a share of wrong ones, over all pairs of a query and a gallery picture that are not left out (Fawcett, An
Introduction to ROC Analysis, 2006; it tells how well strangers are kept out without a ranking).
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from vmreid.distributed import concatenate_over_ranks, rank, world_size
from vmreid.errors import UserError
from vmreid.evaluation.distances import Metric
from vmreid.evaluation.features import JUNK, Features
from vmreid.evaluation.protocol import QueryRanks, summarise
from vmreid.evaluation.ranking import CPU, Search, rank_queries
from vmreid.evaluation.windows import NONE_AFTER, Targets
from vmreid.recipes.schema import MEMORY_GIB, Protocol

SAME_CAMERA = "junk (pid -1); gallery pictures of the query's identity and camera"
EXCLUDED: dict[Protocol, str] = {
    **dict.fromkeys(("market1501", "msmt17", "veri776", "cuhk03np", "open_set"), SAME_CAMERA),
    "vehicleid": "junk (pid -1)",
}
DRAWS = 10
FALSE_POSITIVE_RATES = (1e-4, 1e-3, 1e-2)
PROBES = 31  # thresholds of each rate in a walk through the gallery; each walk leaves one in so many


def scores_by(
    protocol: Protocol,
    ranks: QueryRanks,
    query: Features,
    gallery_part: Features,
    gallery_index_part: torch.Tensor,
    metric: Metric,
    device: torch.device = CPU,
    memory_gib: float = MEMORY_GIB,
) -> dict[str, Any]:
    """All ranks. What ``ranks``, which ``rank_queries`` gave for the other arguments, are worth by ``protocol``.

    Returns:
        As ``summarise``, with ``spread`` for ``vehicleid`` and ``open_set`` for ``open_set``. The same on every rank.

    Raises:
        UserError: if no query is valid, or the protocol has nothing to draw or to tell apart.
    """
    if protocol == "vehicleid":
        return _over_draws(query, gallery_part, gallery_index_part, metric, device, memory_gib)
    found: dict[str, Any] = summarise(ranks)
    if protocol == "open_set":
        found["open_set"] = _open_set(Search(query, gallery_part, gallery_index_part, metric, device, memory_gib))
    return found


def _over_draws(
    query: Features, gallery_part: Features, index: torch.Tensor, metric: Metric, device: torch.device, memory_gib: float
) -> dict[str, Any]:
    """All ranks. Means over draws from all pictures of both sides, queries first."""
    order = concatenate_over_ranks(index).argsort()
    gallery = (concatenate_over_ranks(each)[order] for each in vars(gallery_part).values())
    every = Features(*(torch.cat(pair) for pair in zip(vars(query).values(), gallery, strict=True)))
    every = every[(every.pids != JUNK).nonzero().squeeze(1)]
    found: list[dict[str, Any]] = []
    for number in range(DRAWS):
        drawn = draw(every.pids, number)
        asked = torch.ones(len(every), dtype=torch.bool)
        asked[drawn] = False
        own = drawn[rank() :: world_size()]
        sides = (every[asked.nonzero().squeeze(1)], every[own])
        queries, part = (Features(side.features, side.pids, torch.full_like(side.pids, n)) for n, side in enumerate(sides))
        found.append(summarise(rank_queries(queries, part, own, metric, device, memory_gib)))
    keys = ("mAP", "mINP", "rank1", "rank5", "rank10")
    means = {key: statistics.fmean(each[key] for each in found) for key in keys}
    cmc = [statistics.fmean(values) for values in zip(*(each["cmc"] for each in found), strict=True)]
    counts = {key: found[0][key] for key in ("queries", "invalid_queries", "gallery")}
    return {**means, "cmc": cmc, **counts, "spread": {key: statistics.stdev(each[key] for each in found) for key in keys}}


def draw(pids: torch.Tensor, number: int) -> torch.Tensor:
    """One row of each pid, ascending by pid: the ``number``-th draw, the same on any machine."""
    chance = torch.rand(len(pids), generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    order = chance.argsort(stable=True)
    order = order[pids[order].argsort(stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = pids[order][1:] != pids[order][:-1]
    return order[first]


@torch.no_grad()
def _open_set(search: Search) -> dict[str, Any]:
    """All ranks. True positive rates at false positive rates, over all pairs, and their numbers.

    A threshold is the distance of a right pair: between two of them the accepted right pairs stay the same. Of the sorted
    distances, each walk through the gallery counts the wrong pairs within some, and leaves the stretch between two.
    """
    found = [target.distance_QP.flatten() for block in search.blocks() for target in search.positives(block)]
    distance = torch.cat(found).cpu()
    distance = distance[distance.isfinite()].sort().values
    wrong = len(search.pairs_Q) * search.candidates - int(search.pairs_Q.sum())
    if not wrong:
        raise UserError("no pair of two identities; open_set needs gallery pictures of others than the query's identity")
    allowed_R = (torch.tensor(FALSE_POSITIVE_RATES, dtype=torch.float64) * wrong).long()
    good_R, bad_R = torch.full((len(allowed_R),), -1), torch.full((len(allowed_R),), len(distance))
    while ((bad_R - good_R) > 1).any():
        share_S = torch.arange(1, PROBES + 1, dtype=torch.float64) / (PROBES + 1)
        probe_RS = (good_R.unsqueeze(1) + ((bad_R - good_R).unsqueeze(1) * share_S).long().clamp_min(1)).clamp_max(
            len(distance) - 1
        )
        accepted_RS = _wrong_within(search, distance[probe_RS.flatten()]).view_as(probe_RS)
        fine_RS = accepted_RS <= allowed_R.unsqueeze(1)
        good_R = torch.maximum(good_R, torch.where(fine_RS, probe_RS, -1).amax(dim=1))
        bad_R = torch.minimum(bad_R, torch.where(fine_RS, len(distance), probe_RS).amin(dim=1))
    within_R = torch.where(good_R >= 0, torch.searchsorted(distance, distance[good_R.clamp_min(0)], right=True), 0)
    rates = {f"{rate:g}": int(count) / len(distance) for rate, count in zip(FALSE_POSITIVE_RATES, within_R, strict=True)}
    return {"tpr_at_fpr": rates, "right_pairs": len(distance), "wrong_pairs": wrong}


def _wrong_within(search: Search, threshold: torch.Tensor) -> torch.Tensor:
    """All ranks. How many wrong pairs are at most so far apart, for each of some thresholds in any order."""
    ascending, order = threshold.sort()
    total = torch.zeros(len(threshold), dtype=torch.int64)
    for block in search.blocks():
        sizes = [(tile.stop - tile.start, len(threshold)) for tile in block.slices]
        targets = [
            Targets(ascending.to(search.device).expand(size), torch.full(size, NONE_AFTER, device=search.device))
            for size in sizes
        ]
        for before_QP in search.count(block, targets):
            total += before_QP.sum(dim=0)
    result = torch.empty_like(total)
    result[order] = total
    return result
