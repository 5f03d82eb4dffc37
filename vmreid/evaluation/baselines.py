"""Floors that a trained model is seen beside: chance, and two colour histograms."""

from __future__ import annotations

from typing import Any

import torch

from vmreid.evaluation.distances import exact_sqrt
from vmreid.evaluation.protocol import CMC_LENGTH

HUE, SATURATION, VALUE = 16, 4, 4
STRIPES = 6
RGB_LEVELS = 8


def colour_histogram(image_BCHW: torch.Tensor) -> torch.Tensor:
    """Square root of HSV histograms (16 x 4 x 4) of six horizontal stripes: uint8 [B, 3, H, W] to [B, 1536]."""
    image_BCHW = image_BCHW.float() / 255
    largest, channel = image_BCHW.max(dim=1)
    spread = largest - image_BCHW.amin(dim=1)
    red, green, blue = image_BCHW.unbind(dim=1)
    safe = spread.clamp_min(1e-6)
    sixths = torch.stack([(green - blue) / safe % 6, (blue - red) / safe + 2, (red - green) / safe + 4])
    hue = sixths.gather(0, channel[None])[0] / 6
    saturation = spread / largest.clamp_min(1e-6)
    bins = [(part * count).long().clamp(0, count - 1) for part, count in ((hue, HUE), (saturation, SATURATION), (largest, VALUE))]
    code_BHW = (bins[0] * SATURATION + bins[1]) * VALUE + bins[2]
    size = HUE * SATURATION * VALUE
    stripe_H = torch.arange(code_BHW.shape[1], device=code_BHW.device) * STRIPES // code_BHW.shape[1]
    code_BL = (code_BHW + size * stripe_H[:, None]).flatten(1)
    return _square_root_of_counts(code_BL, STRIPES * size)


def rgb_histogram(image_BCHW: torch.Tensor) -> torch.Tensor:
    """Square root of the joint RGB histogram (8 x 8 x 8) of the whole picture: uint8 [B, 3, H, W] to [B, 512]."""
    red, green, blue = (image_BCHW.long() * RGB_LEVELS // 256).unbind(dim=1)
    return _square_root_of_counts(((red * RGB_LEVELS + green) * RGB_LEVELS + blue).flatten(1), RGB_LEVELS**3)


def _square_root_of_counts(code_BL: torch.Tensor, size: int) -> torch.Tensor:
    counts = torch.zeros(len(code_BL), size, device=code_BL.device)
    return exact_sqrt(counts.scatter_add_(1, code_BL, torch.ones_like(code_BL, dtype=counts.dtype)))


def chance(positives: torch.Tensor, candidates: torch.Tensor) -> dict[str, Any]:
    """Expected scores of a random order, over queries with ``positives`` m of ``candidates`` n gallery items, int64 [Q].

    E[AP] = (H_n + (m - 1) / (n - 1) (n - H_n)) / n with the harmonic number H_n: the chance of a positive at rank k is
    m / n, and its precision there is (1 + (k - 1) (m - 1) / (n - 1)) / k. E[Rank-1] = m / n. E[CMC(k)] is 1 less the chance
    that k items drawn without repetition hold no positive. Queries with m = 0 are left out.
    """
    m, n = (values[positives > 0].double() for values in (positives, candidates))
    harmonic = torch.digamma(n + 1) + 0.5772156649015329  # Euler's constant
    ap = (harmonic + (m - 1) / (n - 1).clamp_min(1) * (n - harmonic)) / n
    drawn = torch.arange(CMC_LENGTH, device=m.device)
    no_match = ((n - m)[:, None] - drawn).clamp_min(0) / (n[:, None] - drawn).clamp_min(1)
    cmc = (1 - no_match.cumprod(dim=1)).mean(dim=0)
    return {"mAP": float(ap.mean()), "rank1": float((m / n).mean()), "cmc": cmc.tolist()}
