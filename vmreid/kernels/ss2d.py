"""SS2D in one call: the selective scan of a map in the four directions of VMamba (Liu et al. 2024, arXiv 2401.10166)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vmreid.kernels import selective_scan
from vmreid.kernels.cross_scan import DIRECTIONS, cross_scan, cross_scan_own, cross_sum
from vmreid.kernels.fused import ss2d_fused
from vmreid.kernels.watch import Scanned, tell, watched


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
    if backend == "fused":
        _tell_of_maps(x_BHWD, delta_BHWKD, A_KDN, B_BHWKN, delta_bias_KD)
        return ss2d_fused(x_BHWD, delta_BHWKD, A_KDN, B_BHWKN, C_BHWKN, D_KD, delta_bias_KD)[0]
    y_BDL = selective_scan(
        cross_scan(x_BHWD).flatten(1, 2), cross_scan_own(delta_BHWKD).flatten(1, 2), A_KDN.flatten(0, 1),
        cross_scan_own(B_BHWKN), cross_scan_own(C_BHWKN), D_KD.flatten(), delta_bias_KD.flatten(), backend=backend,
    )  # fmt: skip
    return cross_sum(torch.unflatten(y_BDL, 1, (DIRECTIONS, -1)), *x_BHWD.shape[1:3])


def ss2d_then_token(
    x_BLD: torch.Tensor,
    delta_BLKD: torch.Tensor,
    A_KDN: torch.Tensor,
    B_BLKN: torch.Tensor,
    C_BLKN: torch.Tensor,
    D_KD: torch.Tensor,
    delta_bias_KD: torch.Tensor,
    grid: tuple[int, int],
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``ss2d`` for a map of L - 1 = height · width tokens with one more behind it, which every direction reads last.

    Returns y_BHWD, summed over the directions, and y_BKD of the token.
    """
    x_BHWD, delta_BHWKD, B_BHWKN, C_BHWKN = (torch.unflatten(v[:, :-1], 1, grid) for v in (x_BLD, delta_BLKD, B_BLKN, C_BLKN))
    x_BD, delta_BKD, B_BKN, C_BKN = (v[:, -1] for v in (x_BLD, delta_BLKD, B_BLKN, C_BLKN))
    if backend == "fused":
        _tell_of_maps(x_BHWD, delta_BHWKD, A_KDN, B_BHWKN, delta_bias_KD)  # without the token
        y_BHWD, state_BKDN = ss2d_fused(x_BHWD, delta_BHWKD, A_KDN, B_BHWKN, C_BHWKN, D_KD, delta_bias_KD)
        step_BKD, x_B1D = F.softplus(delta_BKD.float() + delta_bias_KD), x_BD.float()[:, None]
        entry_BKDN = (step_BKD * x_B1D)[..., None] * B_BKN.float()[:, :, None]
        state_BKDN = torch.exp(step_BKD[..., None] * A_KDN) * state_BKDN + entry_BKDN
        y_BKD = (state_BKDN * C_BKN.float()[:, :, None]).sum(-1) + D_KD * x_B1D
        return y_BHWD, y_BKD.to(x_BLD.dtype)
    x_BKD = x_BD[:, None].expand(-1, DIRECTIONS, -1)
    x_BKDL, delta_BKDL, B_BKNL, C_BKNL = (
        torch.cat((sequences, last[..., None]), dim=-1)
        for sequences, last in (
            (cross_scan(x_BHWD), x_BKD),
            (cross_scan_own(delta_BHWKD), delta_BKD),
            (cross_scan_own(B_BHWKN), B_BKN),
            (cross_scan_own(C_BHWKN), C_BKN),
        )
    )
    y_BDL = selective_scan(
        x_BKDL.flatten(1, 2), delta_BKDL.flatten(1, 2), A_KDN.flatten(0, 1), B_BKNL, C_BKNL, D_KD.flatten(),
        delta_bias_KD.flatten(), backend=backend,
    )  # fmt: skip
    y_BKDL = torch.unflatten(y_BDL, 1, (DIRECTIONS, -1))
    return cross_sum(y_BKDL[..., :-1], *grid), y_BKDL[..., -1]


def _tell_of_maps(
    x_BHWD: torch.Tensor, delta_BHWKD: torch.Tensor, A_KDN: torch.Tensor, B_BHWKN: torch.Tensor, bias_KD: torch.Tensor
) -> None:
    if watched():
        tell(Scanned(cross_scan(x_BHWD), cross_scan_own(delta_BHWKD), A_KDN, cross_scan_own(B_BHWKN), bias_KD))
