"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) over all ranks, sparse: for each row its k1 + 1 nearest, never N x N.

As the authors' code has it, over queries and gallery together, and without a look at pids or camids: junk is a neighbour
like any other item, and only ranking leaves it out. Equal distances go to the smaller number, queries before the gallery.
Each rank holds the features and summed vectors of its own rows, and of all N rows k1 + 1 numbers and a sparse vector.
"""

from __future__ import annotations

import contextlib
import sys
import time

import torch

from vmreid.distributed import concatenate_over_ranks, rank, sum_over_ranks, world_size
from vmreid.errors import UserError
from vmreid.evaluation.distances import Metric, prepare
from vmreid.evaluation.features import JUNK, Features
from vmreid.evaluation.jaccard import Inverted, Vectors, unit_share, weights
from vmreid.evaluation.k_reciprocal import expanded_sets
from vmreid.evaluation.nearest_k import COLUMNS, ROWS, RowPart, nearest_and_farthest
from vmreid.evaluation.reorder import Reranking, Side
from vmreid.evaluation.wide_screen import measured
from vmreid.progress import Reporter
from vmreid.recipes.schema import Protocol, Rerank

CPU = torch.device("cpu")
MEASURED_SECONDS = 1.0  # of tiles, or a tenth of them, before an estimate is given


@torch.no_grad()
def rerank(
    query: Features,
    gallery_part: Features,
    gallery_index_part: torch.Tensor,
    metric: Metric,
    settings: Rerank,
    device: torch.device = CPU,
) -> Reranking:
    """All ranks. What ``rank_queries`` needs to rank the same arguments by the re-ranked distance.

    Features that ``rank_queries`` took before, on the CPU; gallery indices are 0 .. G - 1 over the ranks. ``device``: where all
    is done. Rank 0 prints an estimate, then progress.

    Raises:
        UserError: on every rank, if there are not more than k1 queries and gallery items.
    """
    query, gallery_part, gallery_index_part = query.to(device), gallery_part.to(device), gallery_index_part.to(device)
    part = _own_rows(query, gallery_part, gallery_index_part, metric)
    check_settings(settings, part.total)
    watch = _Watch(part, settings)
    with watch.reporter or contextlib.nullcontext():
        near_NK, farthest_N = nearest_and_farthest(part, settings.k1 + 1, watch.advance)
    order = concatenate_over_ranks(part.number_N).argsort()
    nearest_NK = concatenate_over_ranks(near_NK)[order]
    row, member = expanded_sets(nearest_NK, part.number_N)
    entry = weights(unit_share(_distances(part, row, member), farthest_N[row]), row, len(farthest_N))
    key = part.number_N[row] * part.total + member
    vectors = Vectors.of(concatenate_over_ranks(key), concatenate_over_ranks(entry), part.total)
    # one neighbour is no neighbour but the row itself, also where a copy of it comes first
    summed_NK = nearest_NK[:, : settings.k2] if settings.k2 > 1 else torch.arange(part.total, device=order.device).unsqueeze(1)
    kept = (gallery_part.pids != JUNK).nonzero().squeeze(1)
    gallery, index = gallery_part[kept], gallery_index_part[kept]
    return Reranking(
        vectors,
        summed_NK.contiguous(),
        concatenate_over_ranks(farthest_N)[order],
        Side(prepare(query.features, metric), query.pids, torch.arange(len(query), device=order.device)),
        Side(prepare(gallery.features, metric), gallery.pids, index),
        Inverted.of(vectors, summed_NK[index + len(query)]),
        settings.lambda_value,
    )


def check_settings(settings: Rerank, rows: int, protocol: Protocol = "market1501") -> None:
    """Raise UserError if ``rows``, queries and gallery items together, are not more than k1, or the protocol draws galleries."""
    if protocol == "vehicleid":
        raise UserError(f"protocol {protocol} re-ranks no drawn galleries; leave out re-ranking, or give another protocol")
    if settings.k1 >= rows:
        raise UserError(
            f"re-ranking with k1 = {settings.k1} needs more than {settings.k1} queries and gallery items, here are {rows}; "
            "give a smaller k1"
        )


def _own_rows(query: Features, gallery_part: Features, gallery_index_part: torch.Tensor, metric: Metric) -> RowPart:
    """All ranks. This rank's share of the queries, then its gallery items."""
    items = int(sum_over_ranks(torch.tensor([len(gallery_part)], device=query.pids.device)))
    share = torch.arange(len(query), device=query.pids.device).tensor_split(world_size())[rank()]
    features_NF = torch.cat([query.features[share], gallery_part.features])
    return RowPart(features_NF, torch.cat([share, gallery_index_part + len(query)]), len(query) + items, metric)


def _distances(part: RowPart, row: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """All ranks. Exact distances from this rank's rows, by place, to any rows, by number."""
    own = prepare(part.features_NF, part.metric)
    distance = torch.zeros(len(row), dtype=torch.float64, device=row.device)
    for number_C, columns in part.tiles():
        place_N = torch.full((part.total,), -1, device=row.device)
        place_N[number_C] = torch.arange(len(number_C), device=row.device)
        here = (place_N[member] >= 0).nonzero().squeeze(1)
        distance[here] = measured(own, columns, row[here], place_N[member[here]])
    return distance


class _Watch:
    """Rank 0 prints what is to be expected once a few tiles are timed, and progress; the others nothing."""

    def __init__(self, part: RowPart, settings: Rerank) -> None:
        """All ranks."""
        self.part, self.settings, self.tiles = part, settings, part.tile_pairs()
        self.reporter = Reporter("re-ranking, tile", self.tiles) if rank() == 0 else None
        self._done, self._begin, self._told = 0, 0.0, False

    def advance(self) -> None:
        """One more tile. The first is no measure: libraries start in it."""
        if not self.reporter:
            return
        self._done += 1
        self._begin = self._begin or time.monotonic()
        seconds, timed = time.monotonic() - self._begin, self._done - 1
        if timed and not self._told and (seconds > MEASURED_SECONDS or 10 * self._done > self.tiles):
            self._told = True
            minutes, rest = divmod(round(seconds / timed * self.tiles), 60)
            print(
                f"re-ranking {self.part.total} rows with k1 = {self.settings.k1}: about {minutes}m{rest:02}s for the nearest "
                f"of each, and {self._gib():.1f} GiB of memory a rank",
                file=sys.stderr,
                flush=True,
            )
        self.reporter.advance()

    def _gib(self) -> float:
        """A rank's features (float64 beside what was given), tiles, table of nearest, vectors and summed vectors.

        A set has about k1 members, and the union of k2 sets about half as many as they have together.
        """
        rows, width = self.part.features_NF.shape
        k1, k2 = self.settings.k1, self.settings.k2
        entries = k1 * self.part.total + k1 * (k2 + 1) // 2 * rows
        numbers = 2 * (rows + COLUMNS) * width + 3 * ROWS * COLUMNS + 3 * self.part.total * (k1 + 1) + 5 * entries
        return numbers * 8 / 2**30
