"""The k nearest rows and the farthest distance of each of N rows that lie in parts on the ranks: exact, never N x N.

Rows travel past all ranks in tiles. A tile's distances are screened by a product in float64; what may be among the k nearest
or the farthest so far is measured by ``exact_distances``, which alone decides. So the result depends neither on tiles
and ranks nor on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from vmreid.distributed import concatenate_over_ranks, world_size
from vmreid.evaluation.distances import Metric, Rows, prepare
from vmreid.evaluation.wide_screen import measured, screen

ROWS, COLUMNS = 512, 16384  # of a tile: 64 MiB of float64


@dataclass(frozen=True)
class RowPart:
    """This rank's rows: features as given [n, F] and their numbers [n] int64. Over the ranks these are 0 .. total - 1."""

    features_NF: torch.Tensor
    number_N: torch.Tensor
    total: int
    metric: Metric

    def tiles(self) -> Iterator[tuple[torch.Tensor, Rows]]:
        """All ranks. Numbers and rows of everybody, at most ``COLUMNS`` at once, the same on all ranks."""
        share = max(1, COLUMNS // world_size())
        for start in range(0, self._longest(), share):
            some = slice(start, start + share)
            number_C = concatenate_over_ranks(self.number_N[some])
            yield number_C, prepare(concatenate_over_ranks(self.features_NF[some]), self.metric)

    def tile_pairs(self) -> int:
        """All ranks. How many tiles this rank has to go through in ``nearest_and_farthest``."""
        steps = -(-self._longest() // max(1, COLUMNS // world_size()))
        return steps * -(-len(self.number_N) // ROWS)

    def _longest(self) -> int:
        own = torch.tensor([len(self.number_N)], device=self.number_N.device)
        return int(concatenate_over_ranks(own).max())


def nearest_and_farthest(part: RowPart, count: int, advance: Callable[[], None]) -> tuple[torch.Tensor, torch.Tensor]:
    """All ranks. For each of this rank's rows the nearest rows' numbers and the farthest distance.

    ``nearest_NK`` [n, count] in order of (distance, number), the row itself among them; ``farthest_N`` [n] float64.
    ``count`` must not exceed ``total``. ``advance`` is called after each tile.
    """
    own = prepare(part.features_NF, part.metric)
    distance_NK = part.number_N.new_full((len(own), count), torch.inf, dtype=torch.float64)
    nearest_NK = part.number_N.new_full((len(own), count), part.total)
    farthest_N = part.number_N.new_full((len(own),), -torch.inf, dtype=torch.float64)
    for number_C, columns in part.tiles():
        for start in range(0, len(own), ROWS):
            tile = slice(start, start + ROWS)
            rows = own[tile]
            d_RC, bound_R = screen(rows, columns)
            r, c = _maybe_near(d_RC, bound_R, distance_NK[tile]).nonzero(as_tuple=True)
            _merge(distance_NK[tile], nearest_NK[tile], r, measured(rows, columns, r, c), number_C[c])
            r, c = _maybe_far(d_RC, bound_R, farthest_N[tile])
            farthest_N[tile].scatter_reduce_(0, r, measured(rows, columns, r, c), "amax")
            advance()
    return nearest_NK, farthest_N


def _maybe_near(d_RC: torch.Tensor, bound_R: torch.Tensor, distance_RK: torch.Tensor) -> torch.Tensor:
    """Where a tile may hold one of the K nearest: not above the K-th so far, nor the tile's own K-th, by more than the error."""
    limit_R = distance_RK[:, -1] + bound_R
    count = distance_RK.shape[1]
    if count < d_RC.shape[1] and bool(limit_R.isinf().any()):  # the first tile; later ones are limited well enough
        limit_R = torch.minimum(limit_R, d_RC.topk(count, dim=1, largest=False).values[:, -1] + 2 * bound_R)
    return d_RC <= limit_R.unsqueeze(1)


def _merge(
    distance_RK: torch.Tensor, nearest_RK: torch.Tensor, r: torch.Tensor, distance: torch.Tensor, number: torch.Tensor
) -> None:
    """Put pairs, whose rows ``r`` ascend, to their places among the K nearest so far."""
    if not len(r):
        return
    found_R = torch.bincount(r, minlength=len(distance_RK))
    column = torch.arange(len(r), device=r.device) - (found_R.cumsum(0) - found_R)[r] + distance_RK.shape[1]
    shape = (len(distance_RK), int(found_R.max()))
    all_RA = torch.cat([distance_RK, distance_RK.new_full(shape, torch.inf)], dim=1)
    number_RA = torch.cat([nearest_RK, nearest_RK.new_zeros(shape)], dim=1)
    all_RA[r, column] = distance
    number_RA[r, column] = number
    order_RA = number_RA.argsort(dim=1)
    order_RA = order_RA.gather(1, all_RA.gather(1, order_RA).argsort(dim=1, stable=True))[:, : distance_RK.shape[1]]
    distance_RK.copy_(all_RA.gather(1, order_RA))
    nearest_RK.copy_(number_RA.gather(1, order_RA))


def _maybe_far(d_RC: torch.Tensor, bound_R: torch.Tensor, farthest_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that may be farther than the farthest so far: above it, and near the tile's own highest, but for the error."""
    top_R = d_RC.amax(dim=1)
    low_R = torch.maximum(farthest_R - bound_R, top_R - 2 * bound_R)
    reached = (top_R >= low_R).nonzero().squeeze(1)
    row, c = (d_RC[reached] >= low_R[reached].unsqueeze(1)).nonzero(as_tuple=True)
    return reached[row], c
