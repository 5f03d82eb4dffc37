"""The memory estimate: its parts by ZeRO stage, and activations against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
from tiny import BASE, SMALL

from vmreid.engine.deepspeed_config import read_deepspeed_config
from vmreid.engine.estimate import MemoryEstimate, estimate_memory, saved_bytes
from vmreid.models import ReIDModel, build_backbone
from vmreid.recipes import Recipe, find_recipe, load_recipe

CLASSES = 10


def recipe_of(backbone: str, *settings: str) -> Recipe:
    return load_recipe("demo", {"model.backbone": ("--backbone", backbone)}, [*BASE, *SMALL[backbone], *settings])


def estimate(recipe: Recipe, config: str, world: int) -> MemoryEstimate:
    return estimate_memory(recipe, read_deepspeed_config(config, find_recipe("demo"))[1], CLASSES, world)


def model_of(recipe: Recipe, scan: str = "torch") -> ReIDModel:
    return ReIDModel(build_backbone(recipe.model, recipe.data.image_size, scan), CLASSES, recipe.data.mean, recipe.data.std)


def test_what_each_stage_shares_over_ranks() -> None:
    recipe = recipe_of("VIT-S")
    count = sum(parameter.numel() for parameter in model_of(recipe).parameters())
    share = -(-count // 4)
    parts = {name: estimate(recipe, name, 4) for name in ("zero0_fp32", "zero1_fp32", "zero2_fp32", "zero3_fp32")}
    assert [each.parameters for each in parts.values()] == [4 * count, 4 * count, 4 * count, 4 * share]
    assert [each.gradients for each in parts.values()] == [4 * count, 4 * count, 4 * share, 4 * share]
    assert [each.optimizer for each in parts.values()] == [8 * count, 12 * share, 12 * share, 8 * share]
    assert [each.buckets for each in parts.values()] == [0, *[4 * 50_000_000] * 3]
    offloaded = estimate(recipe, "zero2_bf16_offload", 4)
    assert (offloaded.optimizer, offloaded.gradients, offloaded.host) == (0, 0, 16 * share)
    assert offloaded.buckets == (4 + 2) * 50_000_000, "one for gradients of either precision"
    assert estimate(recipe_of("VIT-S", "optim.name=sgd"), "zero0_fp32", 1).optimizer == 4 * count


def test_activations_are_what_autograd_keeps() -> None:
    for backbone in ("VIT-S", "MAMBA-S", "MAMBA-V2"):
        recipe = recipe_of(backbone)
        model = model_of(recipe)
        own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor, own: set[int] = own, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        image_BCHW = torch.zeros(6, 3, *recipe.data.image_size, dtype=torch.uint8)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.features(image_BCHW)
        backbone_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        deepspeed = read_deepspeed_config("zero0_fp32", find_recipe("demo"))[1]
        traced = saved_bytes(model, recipe, 6, 12, deepspeed)
        head_bytes = traced - backbone_bytes
        assert 0 < head_bytes < 40 * 12 * (48 + CLASSES), (backbone, head_bytes)


def test_recomputing_keeps_less_and_more_pictures_more() -> None:
    whole = estimate(recipe_of("VIT-S", "model.depth=6"), "zero1_fp32", 1).activations
    less = estimate(recipe_of("VIT-S", "model.depth=6", "train.recompute=true"), "zero1_fp32", 1).activations
    halved = estimate(recipe_of("VIT-S", "model.depth=6"), "zero1_fp32", 2).activations
    assert None not in (whole, less, halved)
    assert less < 0.4 * whole  # type: ignore[operator]
    assert 0.45 * whole < halved < 0.55 * whole  # type: ignore[operator]


def test_a_scan_that_is_not_ours_is_not_guessed() -> None:
    assert estimate(recipe_of("VIM-T"), "zero1_fp32", 1).activations is None


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["VIT-S", "VMAMBA-T", "MAMBA-V2"])
def test_a_gpu_step_takes_a_little_more(backbone: str) -> None:
    """Bare steps, which have ZeRO stage 0's parts."""
    settings = ["data.image_size=[256,128]", "train.batch_size=64", "data.pictures_per_identity=4"]
    recipe = load_recipe("note", {"model.backbone": ("--backbone", backbone)}, settings)
    expected = estimate(recipe, "zero0_bf16", 1).device()
    model = model_of(recipe, "fused").cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    image_BCHW = torch.zeros(64, 3, 256, 128, dtype=torch.uint8, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16):
            feature_BF = model.features(image_BCHW)
        logits_BC = model.head(feature_BF)[1]
        logits_BC.logsumexp(1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0.95 < torch.cuda.max_memory_allocated() / expected < 1.3
