"""Activation checkpointing by block (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from vmreid.models.backbone import Backbone


def recompute_blocks(backbone: Backbone) -> None:
    """From now on, keep a block's inputs alone for the backward, which runs the block's forward again."""
    for block in backbone.repeated_blocks():
        forward: Any = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward  # an attribute of the module, so that names of parameters stay as they are
