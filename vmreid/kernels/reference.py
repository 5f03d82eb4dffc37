"""The selective scan written as its definition: one loop over time. Slow, and the measure for every other backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def selective_scan_reference(
    u_BDL: torch.Tensor,
    delta_BDL: torch.Tensor,
    A_DN: torch.Tensor,
    B_BKNL: torch.Tensor,
    C_BKNL: torch.Tensor,
    D_D: torch.Tensor,
    delta_bias_D: torch.Tensor,
) -> torch.Tensor:
    """Return y_BDL, with u's dtype, of the selective state space model of Mamba.

        delta = softplus(delta + delta_bias)
        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   h_0 = 0
        y_t = C_t · h_t + D u_t

    Gu & Dao 2023, arXiv 2312.00752, eq. 2: A by zero-order hold, B by Euler's rule. B and C are shared by groups of
    channels: group k of K owns the channels k·D/K to (k+1)·D/K - 1, and K must divide D. All is cast to float32
    (float64 where u is float64) before anything is computed.
    """
    dtype = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
    u, delta, A, B, C, D, bias = (x.to(dtype) for x in (u_BDL, delta_BDL, A_DN, B_BKNL, C_BKNL, D_D, delta_bias_D))
    delta = F.softplus(delta + bias[:, None])
    channels = u.shape[1] // B.shape[1]
    B_BDNL = B.repeat_interleave(channels, dim=1)
    C_BDNL = C.repeat_interleave(channels, dim=1)
    h_BDN = u.new_zeros(*u.shape[:2], A.shape[1])
    y_BD = []
    for t in range(u.shape[2]):
        decay_BDN = torch.exp(delta[:, :, t, None] * A)
        h_BDN = decay_BDN * h_BDN + delta[:, :, t, None] * B_BDNL[..., t] * u[:, :, t, None]
        y_BD.append((C_BDNL[..., t] * h_BDN).sum(-1) + D * u[:, :, t])
    return torch.stack(y_BD, dim=2).to(u_BDL.dtype)
