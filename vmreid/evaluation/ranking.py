"""Exact re-ID ranks over all ranks of the process group: counted, never sorted from a stored matrix.

Which gallery items count is the protocol's (``protocol.py``). The gallery lies in parts on the ranks, and only the
positives' distances and integer counts travel between them. What a product's rounding leaves in doubt is decided by exact
distances, so ranks depend on the features alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from vmreid.distributed import concatenate_over_ranks, sum_over_ranks
from vmreid.evaluation.counting import Pairs, Part, count_before
from vmreid.evaluation.distances import Metric, Rows, pair_distances, pairs_at_once
from vmreid.evaluation.features import Features, checked
from vmreid.evaluation.protocol import QueryRanks
from vmreid.evaluation.reorder import Reranking
from vmreid.evaluation.screen import plain_products
from vmreid.evaluation.threads import on_threads
from vmreid.evaluation.tiles import GIB, Tiles
from vmreid.evaluation.windows import Targets
from vmreid.recipes.schema import MEMORY_GIB

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Block:
    """Queries that walk the gallery together: their places ``rows`` among all queries, ``pairs`` with this rank's items of
    their pid, and the ``positive`` ones among these; ``slices`` are its tiles."""

    rows: torch.Tensor
    query: Rows
    slices: list[slice]
    pairs: Pairs
    positive: torch.Tensor


class Search:
    """All ranks. Queries in a gallery whose parts lie on the ranks; arguments and errors are those of ``rank_queries``.

    ``items`` of the whole gallery, ``candidates`` without junk; ``pairs_Q``: candidates of each query's pid.
    """

    def __init__(
        self,
        query: Features,
        gallery_part: Features,
        gallery_index_part: torch.Tensor,
        metric: Metric,
        device: torch.device,
        memory_gib: float,
    ) -> None:
        self._rows, gallery_rows = checked(*_at_home((query, gallery_part), device, memory_gib), gallery_index_part, metric)
        self._query, self.device = query, device
        self._part = Part.of(gallery_part, gallery_rows, gallery_index_part)
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._tiles = Tiles.within(memory_gib, query.features.shape[1], threads)
        items, candidates = torch.tensor([len(gallery_part)]), torch.tensor([len(self._part)])
        counts = sum_over_ranks(torch.cat([items, candidates, self._part.of_one_pid(query.pids)]))
        self.items, self.candidates, self.pairs_Q = int(counts[0]), int(counts[1]), counts[2:]

    def blocks(self) -> Iterator[Block]:
        """All queries, those with few pairs of one pid first. The same on every rank but for the pairs."""
        by_pid = self._query.pids.argsort(stable=True)  # so that queries of one pid find their pairs' rows in the cache
        for places in self._tiles.blocks(self.pairs_Q[by_pid], self._rows.x_NF.shape[1]):
            rows = by_pid[places]
            q, g = self._part.pairs_of_one_pid(self._query.pids[rows])
            positive = self._query.camids[rows][q] != self._part.camids_G[g]
            yield Block(rows, self._rows[rows], self._tiles.query_tiles(self.pairs_Q[rows]), (q, g), positive)

    def positives(self, block: Block) -> list[Targets]:
        """All ranks. The positives of each tile of a block, over the whole gallery."""
        q, g = (each[block.positive] for each in block.pairs)
        distance = torch.empty(len(q), dtype=torch.float64)  # small results between large ones would scatter the memory

        def measure(pairs: Iterator[tuple[slice, torch.Tensor, torch.Tensor]]) -> None:
            for some, qs, gs in pairs:
                distance[some] = pair_distances(block.query, self._part.rows, qs, self._part.row_G[gs], self.device).cpu()

        on_threads(pairs_at_once(q, g, block.query.x_NF.shape[1], self.device), measure, self._tiles.threads)
        triples = torch.stack([q, self._part.index_G[g], distance.view(torch.int64)], dim=1)
        q, index, bits = concatenate_over_ranks(triples).unbind(1)
        return _by_tile(q, index, bits.contiguous().view(torch.float64), block.slices, self.device)

    def count(self, block: Block, targets: Sequence[Targets]) -> list[torch.Tensor]:
        """All ranks. How many items of other pids come before each target of a tile, over the whole gallery: ``before_QP``."""
        with plain_products(self.device):
            counts = count_before(self._part, self._tiles, block.query, block.pairs, block.slices, targets, self.device)
        return [sum_over_ranks(before_QP.cpu()) for before_QP in counts]


@torch.no_grad()
def rank_queries(
    query: Features,
    gallery_part: Features,
    gallery_index_part: torch.Tensor,
    metric: Metric,
    device: torch.device = CPU,
    memory_gib: float = MEMORY_GIB,
    reranking: Reranking | None = None,
) -> QueryRanks:
    """All ranks. Rank every query's positives in the gallery whose parts lie on the ranks.

    Args:
        query: all queries, the same on every rank.
        gallery_part: this rank's gallery items; may be none.
        gallery_index_part: their indices in the whole gallery [n] int64, which settle equal distances.
        metric: ``euclidean`` (squared, on the features as given) or ``cosine`` (1 - cosine), both in float64.
        device: where distances are taken; all that is given lies on the CPU.
        memory_gib: what is taken beyond the features given, about, whatever the gallery's size. The same on every rank.
        reranking: what ``rerank`` made of the same arguments; None: rank by the metric itself.

    Returns:
        The same on every rank, bit for bit the same however the gallery is spread, whatever device computes in whatever memory.

    Raises:
        UserError: on every rank, if shapes or types clash or a feature is not finite (or zero under ``cosine``) on any.
    """
    search = Search(query, gallery_part, gallery_index_part, metric, device, memory_gib)
    ranks: list[list[int]] = [[] for _ in range(len(query))]
    for block in search.blocks():
        targets = search.positives(block)
        changes = [torch.zeros_like(each.index_QP) for each in targets]
        if reranking:
            pairs = zip(block.slices, targets, strict=True)
            moved = [reranking.reorder(block.rows[tile].to(device), each.distance_QP, each.index_QP) for tile, each in pairs]
            targets, changes = [Targets(*places) for *places, _ in moved], [sum_over_ranks(change_QP) for *_, change_QP in moved]
        counted = zip(block.slices, targets, search.count(block, targets), changes, strict=True)
        for tile, target, before_QP, change_QP in counted:
            rank_QP = before_QP + change_QP.cpu() + torch.arange(1, before_QP.shape[1] + 1)
            numbers = target.distance_QP.isfinite().sum(dim=1).tolist()
            for row, each, number in zip(block.rows[tile].tolist(), rank_QP.tolist(), numbers, strict=True):
                ranks[row] = each[:number]
    return QueryRanks(ranks, search.items)


def _at_home(sides: tuple[Features, Features], device: torch.device, memory_gib: float) -> tuple[Features, Features]:
    """The sides with their features on the GPU where these and ``memory_gib`` fit there: a tile's way from the host takes longer
    than its product. Else they stay, and each tile travels."""
    size = sum(side.features.nbytes for side in sides)
    if device.type == "cpu" or size + memory_gib * GIB > torch.cuda.mem_get_info(device)[0]:
        return sides
    query, gallery = (replace(side, features=side.features.to(device)) for side in sides)
    return query, gallery


def _by_tile(
    q: torch.Tensor, index: torch.Tensor, distance: torch.Tensor, slices: Sequence[slice], device: torch.device
) -> list[Targets]:
    """The positives of a block, in any order before, by query, distance and index, padded tile by tile."""
    order = q.argsort(stable=True)
    q, index, distance = q[order], index[order], distance[order]
    number_Q = torch.bincount(q, minlength=slices[-1].stop)
    first_Q = number_Q.cumsum(0) - number_Q
    targets = []
    for tile in slices:
        own = slice(int(first_Q[tile.start]), int((first_Q + number_Q)[tile.stop - 1]))
        place = q[own] - tile.start, torch.arange(own.start, own.stop) - first_Q[q[own]]
        shape = (tile.stop - tile.start, int(number_Q[tile].max()))
        distance_QP = torch.full(shape, torch.inf, dtype=torch.float64)
        index_QP = torch.zeros(shape, dtype=torch.int64)
        distance_QP[place], index_QP[place] = distance[own], index[own]
        index_QP, order_QP = index_QP.sort(dim=1)  # rows are short: to sort each takes less than half of sorting all
        distance_QP, order_QP = distance_QP.gather(1, order_QP).sort(dim=1, stable=True)
        index_QP = index_QP.gather(1, order_QP)
        targets.append(Targets(distance_QP.to(device), index_QP.to(device)))
    return targets
