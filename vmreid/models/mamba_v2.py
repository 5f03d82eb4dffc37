"""MAMBA-V2: isotropic blocks of SS2D, the four-direction selective scan of VMamba (arXiv 2401.10166, section 4.2), averaged."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.kernels import selective_scan
from vmreid.kernels.cross_scan import DIRECTIONS, cross_merge, cross_scan
from vmreid.models.backbone import Backbone
from vmreid.models.initialise import delta_bias, initialise_weights, log_state_decay
from vmreid.models.tokens import PatchTokens


class SS2D(nn.Module):
    """Selective scan over a map in four directions; each direction reads the class token last.

    Appending the token to the four sequences is the same as letting the token take one more step from each direction's
    last state. Directions have their own x_proj, dt_proj, A and D; K·D channels are laid out direction by direction.
    """

    no_weight_decay = ("A_log", "D", "dt_bias")

    def __init__(self, dim: int, expand: int, d_state: int, scan_backend: str) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.splits, self.scan_backend = (rank, d_state, d_state), scan_backend
        self.project_in = nn.Linear(dim, 2 * inner, bias=False)
        self.convolve = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.x_proj_KED = nn.Parameter(nn.init.trunc_normal_(torch.empty(DIRECTIONS, sum(self.splits), inner), std=0.02))
        self.dt_proj_KDR = nn.Parameter(torch.empty(DIRECTIONS, inner, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.dt_bias = nn.Parameter(delta_bias(DIRECTIONS * inner))
        self.A_log = nn.Parameter(log_state_decay(DIRECTIONS * inner, d_state))
        self.D = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.norm = nn.LayerNorm(inner)
        self.project_out = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens_BLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """[B, H·W + 1, dim], class token last, to the same shape."""
        x_BLD, z_BLD = self.project_in(tokens_BLC).chunk(2, dim=-1)
        map_BDHW = self.convolve(x_BLD[:, :-1].transpose(1, 2).unflatten(2, grid))
        scans_BKDL = cross_scan(F.silu(map_BDHW).permute(0, 2, 3, 1))
        cls_BKD1 = F.silu(x_BLD[:, -1])[:, None, :, None].expand(-1, DIRECTIONS, -1, -1)
        y_BKDL = self._scan(torch.cat([scans_BKDL, cls_BKD1.to(scans_BKDL.dtype)], dim=-1))
        map_BHWD = cross_merge(y_BKDL[..., :-1], *grid)
        y_BLD = torch.cat([map_BHWD.flatten(1, 2), y_BKDL[..., -1].mean(dim=1)[:, None]], dim=1)
        out_BLC: torch.Tensor = self.project_out(self.norm(y_BLD) * F.silu(z_BLD))
        return out_BLC

    def _scan(self, u_BKDL: torch.Tensor) -> torch.Tensor:
        dtype = u_BKDL.dtype
        low_BKEL = torch.einsum("ked,bkdl->bkel", self.x_proj_KED.to(dtype), u_BKDL)
        low_BKRL, B_BKNL, C_BKNL = torch.split(low_BKEL, list(self.splits), dim=2)
        delta_BKDL = torch.einsum("kdr,bkrl->bkdl", self.dt_proj_KDR.to(dtype), low_BKRL.to(dtype))
        y_BDL = selective_scan(
            u_BKDL.flatten(1, 2), delta_BKDL.flatten(1, 2), -torch.exp(self.A_log.float()), B_BKNL, C_BKNL,
            self.D.float(), self.dt_bias.float(), backend=self.scan_backend,
        )  # fmt: skip
        return y_BDL.reshape(len(y_BDL), DIRECTIONS, -1, y_BDL.shape[-1])


class MambaV2(Backbone):
    """Patch tokens, ``depth`` pre-norm residual SS2D blocks, final norm; the feature is the class token."""

    def __init__(
        self,
        image_size: tuple[int, int],
        patch: int,
        dim: int,
        depth: int,
        expand: int,
        d_state: int,
        scan_backend: str,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.tokens = PatchTokens(image_size, patch, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.blocks = nn.ModuleList(SS2D(dim, expand, d_state, scan_backend) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        initialise_weights(self)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width], normalised, to features [B, dim]."""
        x_BLC = self.tokens(image_BCHW)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x_BLC = x_BLC + block(norm(x_BLC), self.tokens.grid)
        feature_BC: torch.Tensor = self.norm(x_BLC[:, -1])
        return feature_BC
