"""MAMBA-V2: isotropic blocks of SS2D, the four-direction selective scan of VMamba (arXiv 2401.10166, section 4.2), averaged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.kernels.cross_scan import DIRECTIONS
from vmreid.kernels.ss2d import ss2d_then_token
from vmreid.models.backbone import Backbone
from vmreid.models.directed_scan import DirectedScan, selected
from vmreid.models.initialise import decay_rates, initialise_weights
from vmreid.models.tokens import PatchTokens


class SS2D(DirectedScan):
    """Selective scan over a map in four directions; each direction reads the class token last.

    Appending the token to the four sequences is the same as letting the token take one more step from each direction's
    last state.
    """

    def __init__(self, dim: int, expand: int, d_state: int, scan_backend: str) -> None:
        super().__init__()
        inner = expand * dim
        self.project_in = nn.Linear(dim, 2 * inner, bias=False)
        self.convolve = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.add_scan(DIRECTIONS, dim, inner, d_state, scan_backend)
        self.norm = nn.LayerNorm(inner)
        self.project_out = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens_BLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """[B, H·W + 1, dim], class token last, to the same shape."""
        x_BLD, z_BLD = self.project_in(tokens_BLC).chunk(2, dim=-1)
        map_BDHW = self.convolve(x_BLD[:, :-1].transpose(1, 2).unflatten(2, grid))
        u_BLD = F.silu(torch.cat([map_BDHW.flatten(2).transpose(1, 2), x_BLD[:, -1:].to(map_BDHW.dtype)], dim=1))
        y_BLD = self._scan(u_BLD, grid)
        out_BLC: torch.Tensor = self.project_out(self.norm(y_BLD) * F.silu(z_BLD))
        return out_BLC

    def _scan(self, u_BLD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        delta_BLKD, B_BLKN, C_BLKN = selected(u_BLD, self.x_proj_KED, self.dt_proj_KDR, self.splits)
        A_KDN, D_KD, bias_KD = (torch.unflatten(v, 0, (DIRECTIONS, -1)) for v in (decay_rates(self.A_log), self.D, self.dt_bias))
        map_BHWD, cls_BKD = ss2d_then_token(
            u_BLD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD, grid, backend=self.scan_backend
        )
        return torch.cat([map_BHWD.flatten(1, 2) / DIRECTIONS, cls_BKD.mean(dim=1)[:, None]], dim=1)


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

    def repeated_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width], normalised, to features [B, dim]."""
        x_BLC = self.tokens(image_BCHW)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x_BLC = x_BLC + block(norm(x_BLC), self.tokens.grid)
        feature_BC: torch.Tensor = self.norm(x_BLC[:, -1])
        return feature_BC
