"""What a recipe may change about how a backbone's step is computed, and never about what it computes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vmreid.errors import UserError
from vmreid.models.backbone import Backbone


def check_compile(device: torch.device, zero_stage: int) -> None:
    """Raise UserError where ``train.compile`` cannot be had."""
    if device.type != "cuda":
        raise UserError("train.compile true: makes CUDA graphs, and torch sees no GPU here; leave it out")
    if zero_stage == 3:
        raise UserError(
            "train.compile true: ZeRO stage 3 gathers parameters between a backbone's layers, which one graph cannot; "
            "take a deepspeed_config of stage 0 to 2, or train.compile=false"
        )


def compile_module(module: nn.Module, accumulates: bool = False) -> None:
    """From the next call on, ``module`` runs as kernels that torch compiles, forward and backward each one CUDA graph.

    ``accumulates``: gradients of several calls are summed before they are used. A graph's next run overwrites what the
    last one gave, so each gradient is copied out first.
    """
    module.compile(mode="reduce-overhead", dynamic=False)
    if accumulates:
        for parameter in module.parameters():
            parameter.register_hook(torch.clone)  # type: ignore[no-untyped-call]


def recompute_blocks(backbone: Backbone) -> None:
    """From now on, keep a block's inputs alone for the backward, which runs the block's forward again (arXiv 1604.06174)."""
    for block in backbone.repeated_blocks():
        forward: Any = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward  # an attribute of the module, so that names of parameters stay as they are
