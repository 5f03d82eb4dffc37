"""MAMBA-V2: isotropic blocks of SS2D, the four-direction selective scan of VMamba (arXiv 2401.10166, section 4.2), averaged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.kernels.cross_scan import DIRECTIONS, cross_merge, cross_scan
from vmreid.models.backbone import Backbone
from vmreid.models.directed_scan import DirectedScan
from vmreid.models.initialise import initialise_weights
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
        scans_BKDL = cross_scan(F.silu(map_BDHW).permute(0, 2, 3, 1))
        cls_BKD1 = F.silu(x_BLD[:, -1])[:, None, :, None].expand(-1, DIRECTIONS, -1, -1)
        y_BKDL = self.scan(torch.cat([scans_BKDL, cls_BKD1.to(scans_BKDL.dtype)], dim=-1))
        map_BHWD = cross_merge(y_BKDL[..., :-1], *grid)
        y_BLD = torch.cat([map_BHWD.flatten(1, 2), y_BKDL[..., -1].mean(dim=1)[:, None]], dim=1)
        out_BLC: torch.Tensor = self.project_out(self.norm(y_BLD) * F.silu(z_BLD))
        return out_BLC


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
