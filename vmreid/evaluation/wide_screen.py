"""All distances of a tile by a float64 product, with a bound of their error, and exact ones where that leaves a doubt."""

from __future__ import annotations

import torch

from vmreid.evaluation.distances import Rows, pair_distances, pairs_at_once


def screen(rows: Rows, columns: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """All distances ``d_RC`` of a tile, and how far each row's may lie from ``exact_distances``: ``bound_R``.

    A product of F terms summed in any order, fused or not, is off by at most F u |r| |c| with u = eps / 2 (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1). With 2 |r| |c| <= |r|² + |c|² it is at most (2 F + 8) u times that sum
    for this formula, and as much again or less for the exact distance. The bound is twice the sum of both; the tiny part covers
    underflow. Under ``cosine`` rows are of unit length, and half their squared distance is the distance.
    """
    (x_RF, squared_R), (x_CF, squared_C) = _wide(rows), _wide(columns)
    scale = 0.5 if rows.metric == "cosine" else 1.0
    d_RC = torch.addmm(scale * squared_C, x_RF, x_CF.T, alpha=-2 * scale)
    d_RC += scale * squared_R.unsqueeze(1)
    number = torch.finfo(torch.float64)
    return d_RC, 4 * (x_RF.shape[1] + 16) * number.eps * (squared_R + squared_C.max()) + number.tiny


def measured(rows: Rows, columns: Rows, r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``exact_distances`` of the pairs (r, c), a few at once."""
    distance = torch.empty(len(r), dtype=torch.float64, device=r.device)
    for some, some_r, some_c in pairs_at_once(r, c, rows.x_NF.shape[1], r.device):
        distance[some] = pair_distances(rows, columns, some_r, some_c, r.device)
    return distance


def _wide(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in float64, of unit length under ``cosine``, and |x|² of each."""
    x_NF = rows.x_NF.double()
    if rows.metric == "cosine":
        x_NF = x_NF / rows.length_N.unsqueeze(1)
    return x_NF, x_NF.square().sum(dim=1)
