"""Which parameters decay: explicit groups that cover every trainable parameter once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vmreid.recipes.schema import Optim


def parameter_groups(model: nn.Module, weight_decay: float, phases: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Two groups, ``decay`` and ``no_decay``, with their parameters' names beside them.

    Of a model that grows, ``phases`` says in which one a parameter came (not named: 0), and each has two groups of its own,
    since ZeRO counts a group's steps together.

    Vectors (biases, norms, A_log's kin) never decay, nor does what a module lists in ``no_weight_decay`` (names relative
    to that module: class token, positions, A_log, D, dt_bias, BNNeck).
    """
    exempt: set[str] = set()
    for prefix, module in model.named_modules():
        for name in getattr(module, "no_weight_decay", ()) if isinstance(getattr(module, "no_weight_decay", ()), tuple) else ():
            module.get_parameter(name)  # a name that matches nothing is our mistake, and raises
            exempt.add(f"{prefix}.{name}" if prefix else name)
    phases = phases or {}
    groups: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"params": [], "names": [], "weight_decay": weight_decay}, {"params": [], "names": [], "weight_decay": 0.0})
        for _ in range(1 + max(phases.values(), default=0))
    ]
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in trainable:
        group = groups[phases.get(name, 0)][parameter.ndim <= 1 or name in exempt]
        group["params"].append(parameter)
        group["names"].append(name)
    pairs = [group for pair in groups for group in pair]
    covered = sum(len(group["params"]) for group in pairs)
    assert covered == len({id(parameter) for _, parameter in trainable}), "every parameter belongs to one group"
    return pairs


def build_optimizer(model: nn.Module, optim: Optim, phases: Mapping[str, int] | None = None) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) or SGD with momentum over ``parameter_groups``."""
    groups = [
        {key: value for key, value in group.items() if key != "names"}
        for group in parameter_groups(model, optim.weight_decay, phases)
    ]
    fused = next(model.parameters()).is_cuda
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=fused)
