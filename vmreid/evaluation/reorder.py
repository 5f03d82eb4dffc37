"""Ranks by the re-ranked distance, counted by the original one and put right for the few items that it moves.

An item whose vector shares no column with the query's has a Jaccard distance of 1, so among such items the order is that of the
original distance. All are counted as if they were such items, before a place (distance, index) that stands for the positive;
then those that share a column, a few hundred a query, are taken out of that count and compared by their re-ranked distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vmreid.distributed import concatenate_over_ranks
from vmreid.evaluation.distances import Rows
from vmreid.evaluation.jaccard import ENTRIES, Inverted, Vectors, blend, unit_share
from vmreid.evaluation.wide_screen import measured

BEFORE_ALL, AFTER_ALL = -1.0, 1 << 62  # a distance before all others, and an index after all others


@dataclass(frozen=True)
class Side:
    """Rows made ready, with pids and indices: of all queries, or of this rank's gallery items without junk."""

    rows: Rows
    pids: torch.Tensor
    index: torch.Tensor


@dataclass(frozen=True)
class Reranking:
    """What turns ranks by distance into re-ranked ones.

    ``vectors``, of all N rows, queries first; ``near_NK``: whose vectors are summed for each; ``farthest_N``: its farthest
    distance. ``inverted``: this rank's gallery items' summed vectors. ``weight``: the paper's lambda.
    """

    vectors: Vectors
    near_NK: torch.Tensor
    farthest_N: torch.Tensor
    query: Side
    gallery: Side
    inverted: Inverted
    weight: float

    def reorder(
        self, rows_Q: torch.Tensor, distance_QP: torch.Tensor, index_QP: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All ranks. For a few queries the places that stand for their positives, in the re-ranked order, and what is to be
        added to the number of this rank's items that come before them.

        ``rows_Q``: the queries' indices. ``distance_QP``, ``index_QP``: their positives over all ranks, by (distance, index),
        padded with inf. Equal re-ranked distances go to the smaller distance, then to the smaller index.
        """
        q, item, overlap = self.inverted.overlaps(self.vectors.summed(self.near_NK[rows_Q]), len(rows_Q))
        same = self.query.pids[rows_Q][q] == self.gallery.pids[item]
        overlap_QP = self._of_positives(q[same], item[same], overlap[same], index_QP)
        farthest_QP = self.farthest_N[rows_Q].unsqueeze(1)
        final_QP = self._blend(distance_QP, farthest_QP, overlap_QP).masked_fill(distance_QP.isinf(), torch.inf)
        final_QP, order_QP = final_QP.sort(dim=1, stable=True)
        distance_QP, index_QP = distance_QP.gather(1, order_QP), index_QP.gather(1, order_QP)
        place_QP, place_index_QP = self._places(final_QP, distance_QP, index_QP, farthest_QP)
        change_QP = torch.zeros_like(index_QP)
        moved = (~same).nonzero().squeeze(1)
        for some in torch.split(moved, max(1, ENTRIES // max(1, index_QP.shape[1]))):
            row, g = q[some], item[some]
            index = self.gallery.index[g].unsqueeze(1)
            exact = measured(self.query.rows, self.gallery.rows, rows_Q[row], g).unsqueeze(1)
            final = self._blend(exact, farthest_QP[row], overlap[some].unsqueeze(1))
            nearer = (exact < distance_QP[row]) | ((exact == distance_QP[row]) & (index < index_QP[row]))
            after = (final < final_QP[row]) | ((final == final_QP[row]) & nearer)
            before = (exact < place_QP[row]) | ((exact == place_QP[row]) & (index < place_index_QP[row]))
            change_QP.index_add_(0, row, after.long() - before.long())
        return place_QP, place_index_QP, change_QP

    def _of_positives(self, q: torch.Tensor, item: torch.Tensor, overlap: torch.Tensor, index_QP: torch.Tensor) -> torch.Tensor:
        """All ranks. ``overlap_QP`` of the positives, from this rank's pairs of one pid."""
        items = len(self.near_NK) - len(self.query.pids)
        pairs = concatenate_over_ranks(torch.stack([q * items + self.gallery.index[item], overlap], dim=1))
        key, order = torch.cat([pairs[:, 0], pairs.new_full((1,), AFTER_ALL)]).sort()
        overlap = torch.cat([pairs[:, 1], pairs.new_zeros(1)])[order]
        wanted_QP = torch.arange(len(index_QP), device=q.device).unsqueeze(1) * items + index_QP
        place_QP = torch.searchsorted(key, wanted_QP)
        return overlap[place_QP] * (key[place_QP] == wanted_QP)

    def _blend(self, distance: torch.Tensor, farthest: torch.Tensor, overlap: torch.Tensor) -> torch.Tensor:
        return blend(unit_share(distance, farthest), overlap, self.near_NK.shape[1], self.weight)

    def _places(
        self, final_QP: torch.Tensor, distance_QP: torch.Tensor, index_QP: torch.Tensor, farthest_QP: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Places before which an item that shares no column lies exactly where it comes before the positive.

        For a positive that shares none this is its own. Another is nearer than it would be without, so it lies after the farthest
        distance whose re-ranked one does not exceed its own: found by bisection over the numbers between 0 and its own distance,
        which are ordered as their bits are.
        """
        none_QP = torch.zeros_like(index_QP)
        low_QP, high_QP = none_QP, distance_QP.clamp_min(0).view(torch.int64)
        for _ in range(63):
            middle_QP = low_QP + (high_QP - low_QP) // 2
            reached = self._blend(middle_QP.view(torch.float64), farthest_QP, none_QP) <= final_QP
            low_QP, high_QP = torch.where(reached, middle_QP, low_QP), torch.where(reached, high_QP, middle_QP)
        low = low_QP.view(torch.float64)
        moved_QP = (self._blend(distance_QP, farthest_QP, none_QP) > final_QP) & distance_QP.isfinite()
        none_before_QP = self._blend(none_QP.double(), farthest_QP, none_QP) > final_QP
        place_QP = torch.where(moved_QP, low.masked_fill(none_before_QP, BEFORE_ALL), distance_QP)
        return place_QP, torch.where(moved_QP, AFTER_ALL, index_QP)
