"""What every backbone is."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """A module from normalised pictures [B, 3, height, width] to features [B, dim]."""

    dim: int
