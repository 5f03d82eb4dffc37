"""VMamba: four stages of SS2D blocks on maps that shrink from 1/4 to 1/32 of the picture (Liu et al. 2024, arXiv 2401.10166).

Two published forms. The present one ("v05_noz"): overlapping 3x3 convolutions in the stem and between the stages, SS2D without
gate, an MLP in each block. The vanilla one ("v0"): patches of 4 x 4, patch merging, SS2D gated by SiLU(z), no MLP. Maps are
channels-last everywhere, [B, H, W, C], and of any size.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.kernels.cross_scan import DIRECTIONS
from vmreid.kernels.ss2d import ss2d
from vmreid.models.backbone import Backbone
from vmreid.models.directed_scan import selected
from vmreid.models.initialise import (
    decay_rates,
    delta_bias,
    delta_projection,
    initialise_weights,
    log_state_decay,
    scan_projection,
)
from vmreid.models.published import State, load_exactly
from vmreid.models.vmamba_names import own_names


class MapConvolution(nn.Conv2d):
    """A convolution from maps [B, H, W, C] to maps, the weights as ``nn.Conv2d`` has them."""

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SS2D(nn.Module):
    """Projection, depthwise 3x3 convolution, SiLU, selective scan in four directions and their sum, norm, projection.

    ``gated``: the vanilla form, whose normed sum is multiplied by SiLU(z), and whose convolution has a bias.
    """

    no_weight_decay = ("A_log", "D", "dt_bias_KD")

    def __init__(self, dim: int, expand: int, d_state: int, gated: bool, scan_backend: str) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.inner, self.splits, self.scan_backend = inner, [rank, d_state, d_state], scan_backend
        self.project_in = nn.Linear(dim, 2 * inner if gated else inner, bias=False)
        self.convolve = MapConvolution(inner, inner, kernel_size=3, padding=1, groups=inner, bias=gated)
        self.x_proj_KED = nn.Parameter(scan_projection(DIRECTIONS, sum(self.splits), inner))
        self.dt_proj_KDR = nn.Parameter(delta_projection(DIRECTIONS, inner, rank))
        self.dt_bias_KD = nn.Parameter(delta_bias(DIRECTIONS * inner).view(DIRECTIONS, inner))
        self.A_log = nn.Parameter(log_state_decay(DIRECTIONS * inner, d_state))
        self.D = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.norm = nn.LayerNorm(inner)
        self.project_out = nn.Linear(inner, dim, bias=False)

    def forward(self, map_BHWC: torch.Tensor) -> torch.Tensor:
        """[B, H, W, dim] to the same shape."""
        x_BHWD, *z_BHWD = torch.split(self.project_in(map_BHWC), self.inner, dim=-1)
        y_BHWD = self.norm(self._scan(F.silu(self.convolve(x_BHWD))))
        if z_BHWD:
            y_BHWD = y_BHWD * F.silu(z_BHWD[0])
        out_BHWC: torch.Tensor = self.project_out(y_BHWD)
        return out_BHWC

    def _scan(self, x_BHWD: torch.Tensor) -> torch.Tensor:
        delta_BHWKD, B_BHWKN, C_BHWKN = selected(x_BHWD, self.x_proj_KED, self.dt_proj_KDR, self.splits)
        A_KDN, D_KD = (torch.unflatten(x, 0, (DIRECTIONS, -1)) for x in (decay_rates(self.A_log), self.D))
        return ss2d(x_BHWD, delta_BHWKD, A_KDN, B_BHWKN, C_BHWKN, D_KD, self.dt_bias_KD, backend=self.scan_backend)


class Block(nn.Module):
    """x + SS2D(norm(x)), then in the present form x + MLP(norm(x)) with four times as many inner channels."""

    def __init__(self, dim: int, expand: int, d_state: int, vanilla: bool, scan_backend: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scan = SS2D(dim, expand, d_state, vanilla, scan_backend)
        self.has_mlp = not vanilla
        if self.has_mlp:
            self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        """[B, H, W, dim] to the same shape."""
        x_BHWC = x_BHWC + self.scan(self.norm(x_BHWC))
        if self.has_mlp:
            x_BHWC = x_BHWC + self.fc2(F.gelu(self.fc1(self.norm2(x_BHWC))))
        return x_BHWC


class Reduce(nn.Module):
    """A convolution with stride and a norm: maps [B, H, W, C] to [B, about H / stride, about W / stride, out]."""

    def __init__(self, channels: int, out: int, kernel_size: int = 3, stride: int = 2, padding: int = 1) -> None:
        super().__init__()
        self.convolve = MapConvolution(channels, out, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(out)

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        y_BHWC: torch.Tensor = self.norm(self.convolve(x_BHWC))
        return y_BHWC


class MergePatches(nn.Module):
    """2 x 2 neighbours as one place of 4·C channels, norm, projection; zeros below and right of a side that is odd."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.project = nn.Linear(4 * channels, out, bias=False)

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        x_BHWC = F.pad(x_BHWC, (0, 0, 0, x_BHWC.shape[2] % 2, 0, x_BHWC.shape[1] % 2))
        quarters = [x_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # published: down before right
        y_BHWC: torch.Tensor = self.project(self.norm(torch.cat(quarters, dim=-1)))
        return y_BHWC


class VMamba(Backbone):
    """Stem, stages of ``depths`` blocks with ``dims`` channels, final norm; the feature is the map's mean."""

    def __init__(
        self, dims: tuple[int, ...], depths: tuple[int, ...], expand: int, d_state: int, vanilla: bool, scan_backend: str
    ) -> None:
        super().__init__()
        self.dim, self.ends = dims[-1], ("scan.project_out",) if vanilla else ("scan.project_out", "fc2")
        if vanilla:
            self.stem = nn.Sequential(Reduce(3, dims[0], kernel_size=4, stride=4, padding=0))
        else:
            self.stem = nn.Sequential(Reduce(3, dims[0] // 2), nn.GELU(), Reduce(dims[0] // 2, dims[0]))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, expand, d_state, vanilla, scan_backend) for _ in range(depth)))
            for dim, depth in zip(dims, depths, strict=True)
        )
        shrink = MergePatches if vanilla else Reduce
        self.shrinks = nn.ModuleList(shrink(channels, out) for channels, out in pairwise(dims))
        self.norm = nn.LayerNorm(self.dim)
        initialise_weights(self)

    def repeated_blocks(self) -> list[nn.Module]:
        return [block for stage in self.stages for block in stage.children()]

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width], normalised, to features [B, dim]."""
        x_BHWC = self.stem(image_BCHW.permute(0, 2, 3, 1))
        for number, stage in enumerate(self.stages):
            x_BHWC = stage(self.shrinks[number - 1](x_BHWC) if number else x_BHWC)
        feature_BC: torch.Tensor = self.norm(x_BHWC).mean(dim=(1, 2))
        return feature_BC

    def load_published(self, state: State, name: str) -> str:
        """Load VMamba's own state dict, of present or older names; the classifier is left out. As ``load_exactly``."""
        given = own_names(state)
        left = [key for key in given if key.startswith("head.")]
        return load_exactly(self, given, name, resized=(), left=left)


def vmamba(
    _: tuple[int, int], dim: int, depth: int, expand: int, d_state: int, scan_backend: str, vanilla: bool = False
) -> VMamba:
    """The published shape, for any image size: ``dim`` channels that double from stage to stage, 2, 2, ``depth``, 2 blocks."""
    dims = tuple(dim * 2**stage for stage in range(4))
    return VMamba(dims, (2, 2, depth, 2), expand, d_state, vanilla, scan_backend)
