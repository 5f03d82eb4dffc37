"""Example queries, the best, the median and the worst ones, and the gallery items that lie nearest to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vmreid.distributed import concatenate_over_ranks
from vmreid.evaluation.distances import Metric, pair_distances, pairs_at_once, prepare
from vmreid.evaluation.features import JUNK, Features
from vmreid.evaluation.protocol import QueryRanks

BEST, MEDIAN, WORST = 2, 3, 3
NEAREST = 10


@dataclass(frozen=True)
class Example:
    """A valid query: ``place`` among all of them, best first, index row, AP, rank of its first positive, and the index
    rows of the gallery items ``nearest`` to it, nearest first."""

    place: str
    row: int
    ap: float
    first_rank: int
    nearest: list[int]


def examples(
    ranks: QueryRanks, query: Features, gallery_part: Features, gallery_index_part: torch.Tensor, metric: Metric
) -> list[Example]:
    """All ranks. The queries of highest, median and lowest AP with their ``NEAREST``; arguments as ``rank_queries`` took them."""
    chosen = _choose(ranks.ap)
    rows = torch.tensor([row for _, row in chosen])
    found = nearest(query[rows], gallery_part, gallery_index_part, metric, NEAREST)
    return [
        Example(place, row, ranks.ap[row], ranks.first_rank[row], indices)
        for (place, row), indices in zip(chosen, found, strict=True)
    ]


def _choose(ap: list[float]) -> list[tuple[str, int]]:
    """Place and row of the best, the median and the worst valid queries, each once; equal APs by row."""
    order = [row for _, row in sorted((-value, row) for row, value in enumerate(ap) if not math.isnan(value))]
    middle = (len(order) - MEDIAN) // 2
    kinds = {"best": range(BEST), "median": range(middle, middle + MEDIAN), "worst": range(len(order) - WORST, len(order))}
    places = {place: kind for kind, wanted in kinds.items() for place in wanted if 0 <= place < len(order)}
    return [(f"{kind}, number {place + 1} of {len(order)}", order[place]) for place, kind in sorted(places.items())]


@torch.no_grad()
def nearest(
    query: Features, gallery_part: Features, gallery_index_part: torch.Tensor, metric: Metric, count: int
) -> list[list[int]]:
    """All ranks. Gallery indices of each query's ``count`` nearest items, in order of (distance, index).

    Arguments as in ``rank_queries``, which refuses bad ones; few queries, since all distances are exact. Junk and items
    of the query's identity and camera are left out, so there may be fewer than ``count``. The same on every rank,
    however the gallery is spread.
    """
    rows, part = prepare(query.features, metric), prepare(gallery_part.features, metric)
    triples = []
    for q in range(len(query)):
        same = (gallery_part.pids == query.pids[q]) & (gallery_part.camids == query.camids[q])
        kept = ((gallery_part.pids != JUNK) & ~same).nonzero().squeeze(1)
        pairs = pairs_at_once(torch.full_like(kept, q), kept, rows.x_NF.shape[1], kept.device)
        distance = torch.empty(len(kept), dtype=torch.float64)
        for some, qs, gs in pairs:
            distance[some] = pair_distances(rows, part, qs, gs, kept.device)
        index = gallery_index_part[kept]
        first = _order(distance, index)[:count]
        triples.append(torch.stack([torch.full_like(first, q), index[first], distance[first].view(torch.int64)], dim=1))
    number, index, bits = concatenate_over_ranks(torch.cat(triples)).unbind(1)
    order = _order(bits.contiguous().view(torch.float64), index)
    number, index = number[order], index[order]
    return [index[number == q][:count].tolist() for q in range(len(query))]


def _order(distance: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    by_index = index.argsort(stable=True)
    return by_index[distance[by_index].argsort(stable=True)]
