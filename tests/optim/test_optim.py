from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from vmreid.models import BACKBONES, ReIDModel, build_backbone
from vmreid.optim import build_optimizer, learning_rate, parameter_groups
from vmreid.recipes.schema import Model, Optim

HALF = (0.5, 0.5, 0.5)
SGD = Optim(name="sgd", lr=0.1, weight_decay=0.02, momentum=0.8, warmup_epochs=0, final_lr_share=0)


def small_model(backbone: str) -> ReIDModel:
    heads = {"heads": 2} if BACKBONES[backbone].heads else {}
    return ReIDModel(build_backbone(Model(backbone=backbone, dim=32, depth=1, **heads), (32, 32), "torch"), 5, HALF, HALF)


def names(model: nn.Module) -> dict[str, list[str]]:
    decay, no_decay = parameter_groups(model, 0.05)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.05, 0)
    return {"decay": decay["names"], "no_decay": no_decay["names"]}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_groups_cover_every_parameter_once(backbone: str) -> None:
    model = small_model(backbone)
    groups = parameter_groups(model, 0.05)
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(id(parameter) for parameter in model.parameters())
    by_name = dict(model.named_parameters())
    for group in groups:
        assert [id(by_name[name]) for name in group["names"]] == [id(parameter) for parameter in group["params"]]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_matrices_decay_and_the_rest_does_not(backbone: str) -> None:
    """By name, written down here: linear, patch and classifier weights decay, whatever the code's rule for it."""
    endings = ("project.weight", "proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "project_in.weight")
    endings += ("project_out.weight", "convolve.weight", "classifier.weight", "x_proj_KED", "dt_proj_KDR")
    groups = names(small_model(backbone))
    assert [name for name in groups["decay"] if not name.endswith(endings)] == []
    assert [name for name in groups["no_decay"] if name.endswith(endings)] == []


def test_what_mamba_v2_never_decays() -> None:
    block, head = "backbone.blocks.0", "head"
    groups = names(small_model("MAMBA-V2"))
    free = [f"{block}.{name}" for name in ("A_log", "D", "dt_bias", "convolve.bias", "norm.weight", "norm.bias")]
    free += [f"backbone.tokens.{name}" for name in ("cls_token", "pos_embed", "project.bias")]
    free += ["backbone.norms.0.weight", "backbone.norms.0.bias", "backbone.norm.weight", "backbone.norm.bias"]
    assert sorted(groups["no_decay"]) == sorted([*free, f"{head}.neck.weight"])


def test_what_vit_never_decays() -> None:
    groups = names(small_model("VIT-S"))
    assert {"backbone.vit.cls_token", "backbone.vit.pos_embed", "head.neck.weight"} <= set(groups["no_decay"])
    assert "backbone.vit.patch_embed.proj.weight" in groups["decay"]


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = small_model("MAMBA-S")
    model.backbone.requires_grad_(False)
    assert names(model) == {"decay": ["head.classifier.weight"], "no_decay": ["head.neck.weight"]}


def test_an_exemption_that_matches_nothing_raises() -> None:
    class Mistaken(nn.Linear):
        no_weight_decay = ("wieght",)

    with pytest.raises(AttributeError, match="wieght"):
        parameter_groups(nn.Sequential(Mistaken(2, 2)), 0.05)


def test_optimizers_take_rates_from_the_recipe_and_decay_from_the_groups() -> None:
    model = small_model("MAMBA-S")
    adamw = Optim(name="adamw", lr=3e-4, weight_decay=0.05, betas=(0.8, 0.95), warmup_epochs=0, final_lr_share=0)
    optimizer = build_optimizer(model, adamw)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(group["weight_decay"], group["lr"], group["betas"]) for group in optimizer.param_groups] == [
        (0.05, 3e-4, (0.8, 0.95)),
        (0.0, 3e-4, (0.8, 0.95)),
    ]
    optimizer = build_optimizer(model, SGD)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(group["weight_decay"], group["lr"], group["momentum"]) for group in optimizer.param_groups] == [
        (0.02, 0.1, 0.8),
        (0.0, 0.1, 0.8),
    ]


def test_a_step_without_gradient_shrinks_what_decays_alone() -> None:
    model = small_model("MAMBA-V2")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, SGD).step()
    free = names(model)["no_decay"]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 if name in free else 1 - 0.1 * 0.02))


def rates(steps: int, steps_per_epoch: int = 5, **values: Any) -> list[float]:
    optim = SGD.model_copy(update={"lr": 0.4, "warmup_epochs": 2.0, "final_lr_share": 0.05, **values})
    return [learning_rate(optim, step, steps, steps_per_epoch) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_lr() -> None:
    assert rates(50)[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates(50, warmup_epochs=0.5, steps_per_epoch=4)[:2] == pytest.approx([0.2, 0.4])


def test_peak_is_lr_and_the_last_step_has_the_final_share() -> None:
    values = rates(50)
    assert max(values) == pytest.approx(0.4)
    assert values[-1] == pytest.approx(0.05 * 0.4)
    assert rates(50, final_lr_share=0.0)[-1] == pytest.approx(0, abs=1e-12)
    assert rates(50, warmup_epochs=0.0)[0] == pytest.approx(0.4)


def test_after_warm_up_the_rate_only_falls_and_is_half_way_at_half_time() -> None:
    values = rates(51)
    assert all(later < earlier for earlier, later in pairwise(values[10:]))
    assert values[30] == pytest.approx(0.4 * (1 + 0.05) / 2)


def test_a_run_shorter_than_its_warm_up_ends_inside_it() -> None:
    assert rates(6) == pytest.approx([0.04 * (step + 1) for step in range(6)])


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    optim = SGD.model_copy(update={"warmup_epochs": 1.0})
    forwards = [learning_rate(optim, step, 20, 5) for step in range(20)]
    backwards = [learning_rate(optim, step, 20, 5) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
