"""How many items of a tile come before each target of a query, where a target is a place (distance, gallery index).

A target that is known by ``farness`` (``screen.py``) within a bound is a window. A query's windows, united where they overlap,
are the edges start, end, start, end, ...; an item has passed an even number of edges if it is sure, an odd number if it lies in
a window and is in doubt. Most items lie beyond the last window and are never looked at twice.

On a CPU compiled code looks at a tile row by row (``pass_edges.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vmreid.evaluation.distances import Rows, pair_distances, pairs_at_once
from vmreid.evaluation.pass_edges import pass_edges
from vmreid.evaluation.screen import Screened

NONE_AFTER = torch.iinfo(torch.int64).max  # a gallery index that makes a target come after all items of its distance


@dataclass(frozen=True)
class Targets:
    """The targets of a query tile, each query's in order of (distance, index), padded to P columns: exact distances with
    inf, indices with anything."""

    distance_QP: torch.Tensor
    index_QP: torch.Tensor

    def __getitem__(self, rows: torch.Tensor | slice) -> Targets:
        return Targets(self.distance_QP[rows], self.index_QP[rows])


@dataclass(frozen=True)
class Windows:
    """``tree_QE``: the edges and inf, a power of two in all, as a tree for binary search: at 1 the middle one, at 2n and 2n + 1
    the middle ones of what is below and above that at n. The last edge ``reach_Q``, -inf where there is none; ``window_QP``:
    number of each target's window; ``bound_Q``: half a target's width."""

    tree_QE: torch.Tensor
    reach_Q: torch.Tensor
    window_QP: torch.Tensor
    bound_Q: torch.Tensor

    @staticmethod
    def around(distance_QP: torch.Tensor, query: Screened, bound_Q: torch.Tensor) -> Windows:
        """Windows of targets at ascending squared distances within the frame of ``query``, padded with inf."""
        far_QP = (distance_QP - query.squared_N.unsqueeze(1)) / 2
        low_QP, high_QP = far_QP - bound_Q.unsqueeze(1), far_QP + bound_Q.unsqueeze(1)
        real_QP = distance_QP.isfinite()
        first_QP = real_QP.clone()
        first_QP[:, 1:] &= low_QP[:, 1:] > high_QP[:, :-1]
        last_QP = real_QP.clone()
        last_QP[:, :-1] &= first_QP[:, 1:] | ~real_QP[:, 1:]
        window_QP = first_QP.cumsum(dim=1) - 1
        size = 1 << (2 * far_QP.shape[1]).bit_length()
        edge_QE = torch.full((len(far_QP), size), torch.inf, dtype=query.y_NF.dtype, device=far_QP.device)
        for side, (chosen_QP, value_QP) in enumerate(((first_QP, low_QP), (last_QP, high_QP))):
            q, p = chosen_QP.nonzero(as_tuple=True)
            edge_QE[q, 2 * window_QP[q, p] + side] = value_QP[q, p].to(edge_QE.dtype)
        reach_Q = edge_QE.masked_fill(edge_QE.isinf(), -torch.inf).amax(dim=1)
        return Windows(edge_QE.index_select(1, _tree(size).to(edge_QE.device)), reach_Q, window_QP, bound_Q)

    def suit(self, bound_Q: torch.Tensor) -> bool:
        """Whether they are wide enough for this bound, and not much wider."""
        return bool(((bound_Q <= self.bound_Q) & (self.bound_Q <= 1.25 * bound_Q)).all())


@dataclass(frozen=True)
class Seen:
    """What a look at a tile gave: ``before_QP``, how many items are surely before each target; doubtful pairs as rows and
    columns of the tile; ``doubts_Q``, how many a row has."""

    before_QP: torch.Tensor
    q: torch.Tensor
    g: torch.Tensor
    doubts_Q: torch.Tensor


def _tree(size: int) -> torch.Tensor:
    """Which of ``size`` edges, ascending, lies at each place of their tree; the last one, which is inf, at 0."""
    levels = [torch.arange((1 << level) - 1, size, 2 << level) for level in reversed(range(size.bit_length() - 1))]
    return torch.cat([torch.tensor([size - 1]), *levels])


def look(product_QG: torch.Tensor, half_G: torch.Tensor, windows: Windows, numbers: int, most: int) -> Seen:
    """Count what a tile of ``products`` tells for sure; ``half_G`` |g|²/2 makes farness of it. Not kept: ``product_QG``.

    On a CPU ``numbers`` of the tile are looked at at once. Of a row with more than ``most`` doubts, the doubtful pairs are
    not listed.
    """
    given = product_QG, half_G, windows.tree_QE, windows.reach_Q, most
    before_QW, doubts_Q, item = pass_edges(*given, numbers) if product_QG.device.type == "cpu" else _pass_edges(*given)
    before_QP, columns = before_QW.gather(1, windows.window_QP.clamp_min(0)), product_QG.shape[1]
    return Seen(before_QP, item // columns, item % columns, doubts_Q)


def _pass_edges(
    far_QG: torch.Tensor, half_G: torch.Tensor, tree_QE: torch.Tensor, reach_Q: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``pass_edges`` on a GPU, by whole tensors."""
    (rows, columns), size = far_QG.shape, tree_QE.shape[1]
    far_QG += half_G
    item = _nonzero((far_QG <= reach_Q[:, None]).reshape(-1))
    far, tree, row = far_QG.reshape(-1).take(item), tree_QE.reshape(-1), item // columns * size
    node, level = torch.ones_like(item), size // 2
    while level:
        node += node + (tree.take(row + node) < far)
        level //= 2
    passed = row + node - size
    count_QE = torch.bincount(passed, minlength=rows * size).reshape(rows, size)
    before_QW, doubts_Q = count_QE[:, 0::2].cumsum(dim=1), count_QE[:, 1::2].sum(dim=1)
    doubtful = item[_nonzero(passed & 1 == 1)]
    return before_QW, doubts_Q, doubtful[_nonzero((doubts_Q <= most)[doubtful // columns])]


def _nonzero(mask: torch.Tensor) -> torch.Tensor:
    return mask.nonzero(as_tuple=True)[0]


def count_exactly(
    query: Rows, targets: Targets, gallery: Rows, index_G: torch.Tensor, q: torch.Tensor, g: torch.Tensor
) -> torch.Tensor:
    """How many of the pairs (q, g) come before each target, by exact distances, and by ``index_G`` where those are equal."""
    rows, number = targets.distance_QP.shape
    size = 1 << number.bit_length()
    padding = (0, size - number)
    distance = torch.nn.functional.pad(targets.distance_QP, padding, value=torch.inf).reshape(-1)
    index = torch.nn.functional.pad(targets.index_QP, padding, value=NONE_AFTER).reshape(-1)
    places = torch.empty_like(q)
    for some, qs, gs in pairs_at_once(q, g, query.x_NF.shape[1], q.device):
        exact, own = pair_distances(query, gallery, qs, gs, q.device), index_G[gs]
        place, step = qs * size, size // 2
        while step:
            probe = place + (step - 1)
            place += step * ((distance[probe] < exact) | ((distance[probe] == exact) & (index[probe] < own)))
            step //= 2
        places[some] = place
    return torch.bincount(places, minlength=rows * size).reshape(rows, size)[:, :number].cumsum(dim=1)
