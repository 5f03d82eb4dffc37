"""SS2D in one call: the selective scan of a map in the four directions of VMamba (Liu et al. 2024, arXiv 2401.10166)."""

from __future__ import annotations

import torch

from vmreid.kernels import selective_scan
from vmreid.kernels.cross_scan import DIRECTIONS, cross_scan, cross_scan_own, cross_sum


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
        cross_scan(x_BHWD).flatten(1, 2), cross_scan_own(delta_BHWKD).flatten(1, 2), A_KDN.flatten(0, 1),
        cross_scan_own(B_BHWKN), cross_scan_own(C_BHWKN), D_KD.flatten(), delta_bias_KD.flatten(), backend=backend,
    )  # fmt: skip
    return cross_sum(torch.unflatten(y_BDL, 1, (DIRECTIONS, -1)), *x_BHWD.shape[1:3])
