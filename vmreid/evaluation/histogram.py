"""How far positive and negative pairs lie apart: counts in fixed bins, in tiles, without the matrix of distances."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vmreid.distributed import concatenate_over_ranks, sum_over_ranks
from vmreid.evaluation.distances import Metric, Rows, prepare
from vmreid.evaluation.features import JUNK, Features
from vmreid.evaluation.wide_screen import measured, screen

BINS = 1000
QUERY_TILE, GALLERY_TILE = 256, 4096  # 8 MiB of float64
QUERIES = 4096  # at most, evenly spread: enough for a picture, and as much work as a third of MSMT17


@dataclass(frozen=True)
class Histogram:
    """Pairs by distance: bin k counts those in [k, k + 1) · ``width``. A positive pair has one identity and two cameras, a
    negative one two identities; junk is in neither. ``queries`` of ``all_queries`` were counted."""

    metric: Metric
    width: float
    positive: list[int]
    negative: list[int]
    queries: int
    all_queries: int


@torch.no_grad()
def distance_histogram(query: Features, gallery_part: Features, metric: Metric) -> Histogram:
    """All ranks. Count the pairs of queries and gallery items; arguments as ``rank_queries`` took them.

    Each pair lies in the bin of its exact distance: what a matrix product leaves in doubt is measured again, so the counts
    do not depend on ranks and devices. The bins reach to 2 under ``cosine``, else to the largest distance that the
    features' lengths allow.
    """
    device = query.pids.device
    few = torch.linspace(0, len(query) - 1, min(len(query), QUERIES), dtype=torch.float64).round().long()
    chosen, part = query[few.to(device)], gallery_part[gallery_part.pids != JUNK]
    width = (2.0 if metric == "cosine" else _farthest(query.features, part.features)) / BINS
    rows = prepare(chosen.features, metric)
    counts = torch.zeros(2 * BINS + 1, dtype=torch.int64, device=device)
    for start in range(0, len(part), GALLERY_TILE):
        items = part[start : start + GALLERY_TILE]
        item_rows = prepare(items.features, metric)
        for first in range(0, len(chosen), QUERY_TILE):
            tile = slice(first, first + QUERY_TILE)
            bin_QG = _bins(rows[tile], item_rows, width)
            same_QG = chosen.pids[tile, None] == items.pids
            excluded_QG = same_QG & (chosen.camids[tile, None] == items.camids)
            code_QG = (bin_QG + BINS * same_QG).masked_fill_(excluded_QG, 2 * BINS)
            counts += torch.bincount(code_QG.flatten(), minlength=2 * BINS + 1)
    negative, positive = sum_over_ranks(counts)[:-1].view(2, BINS).tolist()
    return Histogram(metric, width, positive, negative, len(chosen), len(query))


def _farthest(query_NF: torch.Tensor, gallery_NF: torch.Tensor) -> float:
    """All ranks. (|q| + |g|)² of the longest features; 1 where all are zero."""
    lengths = [
        concatenate_over_ranks(lengths_N.topk(min(1, len(lengths_N))).values)
        for lengths_N in (prepare(features_NF, "euclidean").length_N for features_NF in (query_NF, gallery_NF))
    ]
    return float(sum(lengths_N.max() for lengths_N in lengths)) ** 2 or 1.0


def _bins(query: Rows, gallery: Rows, width: float) -> torch.Tensor:
    """The bin of each pair of a tile, int64 [Q, G]."""
    d_QG, bound_Q = screen(query, gallery)
    place_QG = d_QG.div_(width)
    doubt_Q = bound_Q / width + 4 * BINS * torch.finfo(torch.float64).eps
    bin_QG = place_QG.floor().long()
    q, g = ((place_QG - place_QG.round()).abs() <= doubt_Q[:, None]).nonzero(as_tuple=True)
    bin_QG[q, g] = (measured(query, gallery, q, g) / width).floor().long()
    return bin_QG.clamp_(0, BINS - 1)  # a distance of equal rows may be a little below 0
