"""The first non-finite value stops the run with its place; the last good checkpoint stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vmreid.data.streams import Batch
from vmreid.engine.training_module import TrainingModule
from vmreid.errors import UserError


def non_finite(step: int, where: str) -> UserError:
    """The error for a NaN or an infinity. No parameter was changed by it, unless the gradient alone was non-finite."""
    return UserError(
        f"step {step}: non-finite value, first in {where}; the last checkpoint is kept. Lower optim.lr or lengthen "
        "optim.warmup_epochs, and see that gradient_clipping is on"
    )


def first_non_finite(module: TrainingModule, batch: Batch) -> str:
    """All ranks. Run the forward pass once more, watching; name the first parameter or module output that is not finite."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(child: nn.Module, inputs: Any, output: Any) -> None:
            for own, parameter in child.named_parameters(recurse=False):
                if not parameter.isfinite().all():
                    found.append(f"parameter {name}.{own}")
            tensors = output if isinstance(output, tuple) else (output,)
            if any(isinstance(tensor, torch.Tensor) and not tensor.isfinite().all() for tensor in tensors):
                found.append(f"output of {name} ({type(child).__name__})")

        return hook

    module.show_parameters()
    handles = [child.register_forward_hook(watch(name)) for name, child in module.named_modules() if name]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # what is compiled calls no hooks
        module(batch)
    for handle in handles:
        handle.remove()
    return found[0] if found else "the loss itself"
