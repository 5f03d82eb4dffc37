"""A model that grows in training: new blocks begin as the identity, and what was learnt so far, optimizer state too, stays.

Each depth has an engine of its own, so blocks to come cost neither time nor memory. Every phase's parameters have two groups of
their own, and ZeRO lays a group out in the same way whatever groups follow: so states go over rank by rank, as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vmreid.models import ReIDModel, build_backbone
from vmreid.recipes import Recipe


def phases_of(recipe: Recipe, depth: int | None, scan_backend: str) -> dict[str, int]:
    """In which phase each parameter of a ``TrainingModule`` came, at a depth; empty for a model that does not grow."""
    phases: dict[str, int] = {}
    for phase, (_, of_phase) in enumerate(recipe.model.depth_schedule or ()):
        if depth is not None and of_phase <= depth:
            with torch.device("meta"):
                backbone = build_backbone(recipe.model.at_depth(of_phase), recipe.data.image_size, scan_backend)
            for name, _ in backbone.named_parameters():
                phases.setdefault(f"model.backbone.{name}", phase)
    return phases


def fill(model: ReIDModel, weights: dict[str, torch.Tensor]) -> None:
    """Give a deeper model the weights of a less deep one; its new blocks begin as the identity."""
    names = {id(parameter): f"backbone.{name}" for name, parameter in model.backbone.named_parameters()}
    for block in model.backbone.repeated_blocks():
        if not any(names[id(parameter)] in weights for parameter in block.parameters()):
            for end in model.backbone.ends:
                for parameter in block.get_submodule(end).parameters():
                    nn.init.zeros_(parameter)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, "a deeper model has all tensors of a less deep one"
    assert all(name.startswith("backbone.") for name in missing), "only blocks are new"


def carry_optimizer(before: Any, after: Any) -> None:
    """All ranks. The optimizer state of one engine to the deeper one that takes its place."""
    (then, states), (now, taken) = _parts(before), _parts(after)
    for old, new in zip(then, now, strict=False):  # those of the new blocks come last
        new.data.copy_(old.data)
        taken[new] = {
            name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in states.get(old, {}).items()
        }


def _parts(engine: Any) -> tuple[list[torch.Tensor], Any]:
    """This rank's share of what the optimizer steps, in the order of the groups, and the states by it."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]], optimizer.state
    parts = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    return list(parts), optimizer.optimizer.state
