"""SS2D in one call: the selective scan of a map in the four directions of VMamba (Liu et al. 2024, arXiv 2401.10166)."""

from __future__ import annotations

import torch

from vmreid.kernels import selective_scan
from vmreid.kernels.cross_scan import cross_merge, cross_scan

DIRECTIONS = 4


def ss2d(
    x_BHWD: torch.Tensor,
    delta_BHWKD: torch.Tensor,
    A_KDN: torch.Tensor,
    B_BHWKN: torch.Tensor,
    C_BHWKN: torch.Tensor,
    D_KD: torch.Tensor,
    delta_bias_KD: torch.Tensor,
    backend: str,
) -> torch.Tensor:
    """Return y_BHWD, with x's dtype: each direction's selective scan of the map, in its place, summed over the directions.

    All inputs lie in the map's own order, rows from top to bottom; ``cross_scan`` says in which order each of the K = 4
    directions reads them. softplus(delta + delta_bias) is taken here. ``backend`` is a name that ``choose_backend`` returned.
    """
    y_BDL = selective_scan(
        cross_scan(x_BHWD).flatten(1, 2), _in_reading_order(delta_BHWKD).flatten(1, 2), A_KDN.flatten(0, 1),
        _in_reading_order(B_BHWKN), _in_reading_order(C_BHWKN), D_KD.flatten(), delta_bias_KD.flatten(), backend=backend,
    )  # fmt: skip
    return cross_merge(torch.unflatten(y_BDL, 1, (DIRECTIONS, -1)), *x_BHWD.shape[1:3]) * DIRECTIONS


def _in_reading_order(x_BHWKC: torch.Tensor) -> torch.Tensor:
    """x_BKCL: of each direction its own values, in the order in which it reads."""
    rows_BLKC, columns_BLKC = x_BHWKC.flatten(1, 2), x_BHWKC.transpose(1, 2).flatten(1, 2)
    x_BKLC = torch.stack(
        (rows_BLKC[:, :, 0], columns_BLKC[:, :, 1], rows_BLKC[:, :, 2].flip(1), columns_BLKC[:, :, 3].flip(1)), dim=1
    )
    return x_BKLC.transpose(2, 3)
