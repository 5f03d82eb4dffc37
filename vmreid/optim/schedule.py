"""Warm-up and cosine as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from vmreid.recipes.schema import Optim


def learning_rate(optim: Optim, step: int, steps: int, steps_per_epoch: int) -> float:
    """Rate of optimizer step ``step`` (0 <= step < steps).

    Linear over ``warmup_epochs`` from lr / warm-up steps to lr, then half a cosine to ``final_lr_share * lr`` at the last
    step (Loshchilov and Hutter, arXiv 1608.03983, equation 5, one cycle). A run shorter than its warm-up ends inside it.
    """
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    share = optim.final_lr_share + (1 - optim.final_lr_share) * (1 + math.cos(math.pi * progress)) / 2
    return optim.lr * share
