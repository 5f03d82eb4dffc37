"""What the blocks of MAMBA-V2 and Vim share: selective scans of K sequences, each direction with parameters of its own."""

from __future__ import annotations

import math

import torch
from torch import nn

from vmreid.kernels import selective_scan
from vmreid.models.initialise import decay_rates, delta_bias, delta_projection, log_state_decay, scan_projection


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
