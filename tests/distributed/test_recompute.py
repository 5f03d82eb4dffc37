"""Blocks that are run again in the backward: the same steps at every ZeRO stage, by forwards that were not there before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import SMALL, plan_run, train_on_ranks, write_set

from vmreid.engine.recompute import recompute_blocks
from vmreid.models import build_backbone
from vmreid.recipes import load_recipe


@pytest.mark.parametrize(("backbone", "stage"), [("VIT-S", 0), ("MAMBA-V2", 1), ("MAMBA-S", 2), ("VMAMBA-T", 3), ("VIM-T", 3)])
def test_training_takes_the_same_steps(ranks, tmp_path, backbone, stage):
    data = write_set(tmp_path / "data")
    settings = ["train.epochs=2", f"deepspeed_config=zero{stage}_fp32"]
    runs: list[dict[str, torch.Tensor]] = []
    for recompute in ("false", "true"):
        plan = plan_run(tmp_path / recompute, data, [*settings, f"train.recompute={recompute}"], backbone=backbone, world=2)
        runs.append(ranks.run(2, train_on_ranks, plan)[0])
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0] | runs[1])


@pytest.mark.parametrize("backbone", SMALL)
def test_a_block_keeps_its_inputs_alone(backbone):
    recipe = load_recipe("demo", {"model.backbone": ("--backbone", backbone)}, SMALL[backbone])
    network = build_backbone(recipe.model, (64, 32), "torch").train()
    image_BCHW, kept, runs = torch.randn(2, 3, 64, 32), [], 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    for block in network.repeated_blocks():
        block.register_forward_hook(count)  # of the block, which runs once more inside of its own call
        next(child for child in block.modules() if not list(child.children())).register_forward_hook(count)
    for change in (lambda _: None, recompute_blocks):
        change(network)
        size, runs = 0, 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            feature_BC = network(image_BCHW)
        feature_BC.square().sum().backward()
        kept.append((size, runs))
    (before, runs_before), (after, runs_after) = kept
    assert after < before / 2
    assert runs_after == runs_before * 3 // 2
