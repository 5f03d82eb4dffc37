"""MAMBA-S, the note's "simplified" Mamba: softmax attention gated by SiLU(z). The O(n^2) control that only looks like Mamba."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.models.backbone import Backbone
from vmreid.models.initialise import initialise_weights
from vmreid.models.tokens import PatchTokens


class GatedAttention(nn.Module):
    """y = W_out (softmax(q k^T / sqrt(d)) v * SiLU(z)), with q, k, v, z of ``expand * dim`` channels."""

    def __init__(self, dim: int, expand: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(dim, 4 * expand * dim, bias=False)
        self.project_out = nn.Linear(expand * dim, dim, bias=False)

    def forward(self, x_BLC: torch.Tensor) -> torch.Tensor:
        """[B, L, dim] to [B, L, dim]."""
        *qkv_BLD, z_BLD = self.project_in(x_BLC).chunk(4, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv_BLD)
        y_BLD = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out_BLC: torch.Tensor = self.project_out(y_BLD * F.silu(z_BLD))
        return out_BLC


class MambaS(Backbone):
    """Patch tokens, ``depth`` pre-norm residual blocks of gated attention, final norm; the feature is the class token."""

    def __init__(self, image_size: tuple[int, int], patch: int, dim: int, depth: int, expand: int, heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.tokens = PatchTokens(image_size, patch, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.blocks = nn.ModuleList(GatedAttention(dim, expand, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        initialise_weights(self)

    def repeated_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width], normalised, to features [B, dim]."""
        x_BLC = self.tokens(image_BCHW)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x_BLC = x_BLC + block(norm(x_BLC))
        feature_BC: torch.Tensor = self.norm(x_BLC[:, -1])
        return feature_BC
