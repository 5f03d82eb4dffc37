"""Pictures to patch tokens with a class token behind them; axes as everywhere: B batch, C channel, H W patch grid, L = H·W."""

from __future__ import annotations

import torch
from torch import nn


class PatchTokens(nn.Module):
    """Patch embedding + learned positions; the class token is the last of the L + 1 tokens."""

    no_weight_decay = ("cls_token", "pos_embed")

    def __init__(self, image_size: tuple[int, int], patch: int, dim: int) -> None:
        super().__init__()
        self.grid = (image_size[0] // patch, image_size[1] // patch)
        self.project = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + 1, dim))

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width] to [B, L + 1, dim]."""
        patches_BLC = self.project(image_BCHW).flatten(2).transpose(1, 2)
        cls_B1C = self.cls_token.expand(len(patches_BLC), -1, -1).to(patches_BLC.dtype)
        tokens_BLC: torch.Tensor = torch.cat([patches_BLC, cls_B1C], dim=1) + self.pos_embed
        return tokens_BLC
