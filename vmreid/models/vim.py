"""Vim: bidirectional Mamba blocks over a row of tokens, the class token in its middle (Zhu et al. 2024, arXiv 2401.09417)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.kernels import causal_conv_silu
from vmreid.models.backbone import Backbone
from vmreid.models.directed_scan import DirectedScan
from vmreid.models.initialise import initialise_weights
from vmreid.models.published import State, load_exactly, resize_positions
from vmreid.models.vim_names import own_names

DIRECTIONS = 2
CONVOLUTION = 4  # tokens that the causal convolution sees, itself and three before it


class CausalConvolution(nn.Conv1d):
    """``causal_conv_silu`` as a layer of its own, since ZeRO 3 gathers parameters layer by layer."""

    def __init__(self, channels: int, scan_backend: str) -> None:
        super().__init__(channels, channels, CONVOLUTION, groups=channels)
        self.scan_backend = scan_backend

    def forward(self, x_BDL: torch.Tensor) -> torch.Tensor:
        """[B, channels, L] to the same shape."""
        assert self.bias is not None
        return causal_conv_silu(x_BDL, self.weight, self.bias, self.scan_backend)


class BidirectionalMamba(DirectedScan):
    """y = W_out (SiLU(z) * (forwards(x) + backwards(x)) / 2), each direction a causal convolution, SiLU and a selective scan.

    Directions have their own convolution too.
    """

    def __init__(self, dim: int, expand: int, d_state: int, scan_backend: str) -> None:
        super().__init__()
        inner = expand * dim
        channels = DIRECTIONS * inner
        self.project_in = nn.Linear(dim, 2 * inner, bias=False)
        self.convolve = CausalConvolution(channels, scan_backend)
        self.add_scan(DIRECTIONS, dim, inner, d_state, scan_backend)
        self.project_out = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens_BLC: torch.Tensor) -> torch.Tensor:
        """[B, L, dim] to the same shape."""
        x_BDL, z_BDL = self.project_in(tokens_BLC).transpose(1, 2).chunk(2, dim=1)
        both_BDL = torch.cat([x_BDL, x_BDL.flip(2)], dim=1)
        ahead_BDL, back_BDL = self.scan(torch.unflatten(self.convolve(both_BDL), 1, (DIRECTIONS, -1))).unbind(1)
        y_BDL = (ahead_BDL + back_BDL.flip(2)) * F.silu(z_BDL) / 2
        out_BLC: torch.Tensor = self.project_out(y_BDL.transpose(1, 2))
        return out_BLC


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + 1e-5) · weight over the last axis (arXiv 1910.07467): computed as x is, returned as the weight is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BLC: torch.Tensor) -> torch.Tensor:
        scale_BL1 = torch.rsqrt(x_BLC.square().mean(dim=-1, keepdim=True) + 1e-5)
        return (x_BLC * scale_BL1 * self.weight.to(x_BLC.dtype)).to(self.weight.dtype)


class Vim(Backbone):
    """Patch tokens, ``depth`` pre-norm blocks on a residual that stays fp32, final norm; the feature is the class token.

    The class token stands before patch L // 2, and has its position there.
    """

    no_weight_decay = ("cls_token", "pos_embed")

    def __init__(
        self, image_size: tuple[int, int], patch: int, dim: int, depth: int, expand: int, d_state: int, scan_backend: str
    ) -> None:
        super().__init__()
        self.dim, self.grid = dim, (image_size[0] // patch, image_size[1] // patch)
        patches = math.prod(self.grid)
        self.middle = patches // 2
        self.project = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, dim))
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(depth))
        self.blocks = nn.ModuleList(BidirectionalMamba(dim, expand, d_state, scan_backend) for _ in range(depth))
        self.norm = RMSNorm(dim)
        initialise_weights(self)

    def repeated_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width], normalised, to features [B, dim]."""
        patches_BLC = self.project(image_BCHW).flatten(2).transpose(1, 2)
        cls_B1C = self.cls_token.expand(len(patches_BLC), -1, -1).to(patches_BLC.dtype)
        x_BLC = torch.cat([patches_BLC[:, : self.middle], cls_B1C, patches_BLC[:, self.middle :]], dim=1) + self.pos_embed
        x_BLC = x_BLC.to(torch.promote_types(x_BLC.dtype, torch.float32))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x_BLC = x_BLC + block(norm(x_BLC))
        feature_BC: torch.Tensor = self.norm(x_BLC[:, self.middle])
        return feature_BC

    def load_published(self, state: State, name: str) -> str:
        """Load Vim's own state dict, positions resized to this image size; the classifier is left out. As ``load_exactly``.

        The class token's position is the middle one, as training had it; Vim's own loader takes the first for it.
        """
        given = own_names(state)
        left = [key for key in given if key.startswith("head.")]
        resized = resize_positions(given, self.grid, middle=True)
        return load_exactly(self, given, name, resized=resized, left=left)
