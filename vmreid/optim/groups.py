"""Which parameters decay: explicit groups that cover every trainable parameter once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vmreid.recipes.schema import Optim


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, ``decay`` and ``no_decay``, with their parameters' names beside them.

    Vectors (biases, norms, A_log's kin) never decay, nor does what a module lists in ``no_weight_decay`` (names relative
    to that module: class token, positions, A_log, D, dt_bias, BNNeck).
    """
    exempt: set[str] = set()
    for prefix, module in model.named_modules():
        for name in getattr(module, "no_weight_decay", ()) if isinstance(getattr(module, "no_weight_decay", ()), tuple) else ():
            module.get_parameter(name)  # a name that matches nothing is our mistake, and raises
            exempt.add(f"{prefix}.{name}" if prefix else name)
    groups: dict[str, dict[str, Any]] = {
        "decay": {"params": [], "names": [], "weight_decay": weight_decay},
        "no_decay": {"params": [], "names": [], "weight_decay": 0.0},
    }
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in trainable:
        group = groups["no_decay" if parameter.ndim <= 1 or name in exempt else "decay"]
        group["params"].append(parameter)
        group["names"].append(name)
    covered = sum(len(group["params"]) for group in groups.values())
    assert covered == len({id(parameter) for _, parameter in trainable}), "every parameter belongs to one group"
    return list(groups.values())


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) or SGD with momentum over ``parameter_groups``."""
    groups = [
        {key: value for key, value in group.items() if key != "names"} for group in parameter_groups(model, optim.weight_decay)
    ]
    fused = next(model.parameters()).is_cuda
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=fused)
