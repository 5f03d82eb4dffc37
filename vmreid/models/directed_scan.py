"""What the blocks of MAMBA-V2 and Vim share: selective scans of K sequences, each direction with parameters of its own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.kernels import selective_scan
from vmreid.models.initialise import decay_rates, delta_bias, delta_projection, log_state_decay, scan_projection

DENSE = 384  # channels, at most


def selected(
    u_BLD: torch.Tensor, x_proj_KED: torch.Tensor, dt_proj_KDR: torch.Tensor, splits: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each direction makes of every token: delta_BLKD, B_BLKN and C_BLKN. L may be several axes.

    Few channels take one dense product: through R = 6 numbers a direction, a GPU's two thin ones take longer.
    """
    directions, _, inner = x_proj_KED.shape
    rank, d_state, _ = splits
    low_KRD, rest_KED = x_proj_KED[:, :rank], x_proj_KED[:, rank:]
    dense = inner <= DENSE
    head_KED = dt_proj_KDR @ low_KRD if dense else low_KRD
    weight_ED = torch.cat([head_KED.flatten(0, 1), rest_KED.flatten(0, 1)]).to(u_BLD.dtype)
    head_BLE, rest_BLE = torch.split(
        F.linear(u_BLD, weight_ED), [directions * head_KED.shape[1], directions * 2 * d_state], dim=-1
    )
    head_BLKE, rest_BLKE = (torch.unflatten(v, -1, (directions, -1)) for v in (head_BLE, rest_BLE))
    B_BLKN, C_BLKN = rest_BLKE.chunk(2, dim=-1)
    if dense:
        return head_BLKE, B_BLKN, C_BLKN
    return torch.einsum("kdr,b...kr->b...kd", dt_proj_KDR.to(u_BLD.dtype), head_BLKE.to(u_BLD.dtype)), B_BLKN, C_BLKN


class DirectedScan(nn.Module):
    """Directions have their own x_proj, dt_proj, A and D; K·D channels are laid out direction by direction."""

    no_weight_decay = ("A_log", "D", "dt_bias")

    def add_scan(self, directions: int, dim: int, inner: int, d_state: int, scan_backend: str) -> None:
        """Draw the scan's parameters, for ``dim`` channels of the block and ``inner`` of the scan.

        Not in ``__init__``, since a block draws its input layers first, and what a seed gives depends on the order.
        """
        rank = math.ceil(dim / 16)
        self.splits, self.scan_backend = [rank, d_state, d_state], scan_backend
        self.x_proj_KED = nn.Parameter(scan_projection(directions, sum(self.splits), inner))
        self.dt_proj_KDR = nn.Parameter(delta_projection(directions, inner, rank))
        self.dt_bias = nn.Parameter(delta_bias(directions * inner))
        self.A_log = nn.Parameter(log_state_decay(directions * inner, d_state))
        self.D = nn.Parameter(torch.ones(directions * inner))

    def scan(self, u_BKDL: torch.Tensor) -> torch.Tensor:
        """y_BKDL, with u's dtype: each direction's selective scan of its own sequence."""
        dtype = u_BKDL.dtype
        low_BKEL = torch.einsum("ked,bkdl->bkel", self.x_proj_KED.to(dtype), u_BKDL)
        low_BKRL, B_BKNL, C_BKNL = torch.split(low_BKEL, self.splits, dim=2)
        delta_BKDL = torch.einsum("kdr,bkrl->bkdl", self.dt_proj_KDR.to(dtype), low_BKRL.to(dtype))
        y_BDL = selective_scan(
            u_BKDL.flatten(1, 2), delta_BKDL.flatten(1, 2), decay_rates(self.A_log), B_BKNL, C_BKNL, self.D, self.dt_bias,
            backend=self.scan_backend,
        )  # fmt: skip
        return torch.unflatten(y_BDL, 1, u_BKDL.shape[1:3])
