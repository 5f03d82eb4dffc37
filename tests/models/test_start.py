"""The note's remedies of initialisation, each as a recipe value of its own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vmreid.errors import UserError
from vmreid.models import build_backbone
from vmreid.models.registry import check_backbone
from vmreid.recipes import load_recipe
from vmreid.recipes.schema import Model, Start

SIZE = (32, 32)


def weights(backbone: str = "MAMBA-V2", **start: object) -> dict[str, torch.Tensor]:
    model = Model(backbone=backbone, depth=2, dim=32, start=Start(**start))
    torch.manual_seed(0)
    return build_backbone(model, SIZE, "torch").state_dict()


@pytest.mark.parametrize("backbone", ["MAMBA-V2", "VMAMBA-T-V0", "VIM-T"])
def test_each_changes_what_it_names_and_nothing_else(backbone: str) -> None:
    note = weights(backbone)
    for start, names in (
        ({"A": "one"}, ("A_log",)),
        ({"A": "normal"}, ("A_log",)),
        ({"delta": (0.5, 1.0)}, ("dt_bias", "dt_bias_KD")),
        ({"token_std": 0.1}, ("cls_token", "pos_embed")),
    ):
        other = weights(backbone, **start)
        changed = {name for name in note if not torch.equal(note[name], other[name])}
        assert {name.rpartition(".")[2] for name in changed} <= set(names)
        assert changed or backbone == "VMAMBA-T-V0", "which has no tokens to draw"


def test_what_they_begin_with() -> None:
    one, normal, wide, zeros = (
        weights(**start) for start in ({"A": "one"}, {"A": "normal"}, {"delta": (0.5, 2.0)}, {"token_std": 0.0})
    )
    assert not one["blocks.0.A_log"].any()
    drawn = normal["blocks.0.A_log"]
    assert (abs(float(drawn.mean())), float(drawn.std())) == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))
    delta = F.softplus(wide["blocks.1.dt_bias"])
    assert float(delta.min()) >= 0.5
    assert float(delta.max()) <= 2.0 + 1e-5
    assert float(delta.log().mean()) == pytest.approx((math.log(0.5) + math.log(2.0)) / 2, abs=0.1), "uniform in its logarithm"
    assert not zeros["tokens.cls_token"].any()
    assert not zeros["tokens.pos_embed"].any()


def test_a_recipe_gives_them_alone() -> None:
    recipe = load_recipe("note", {}, ["model.start.A=normal", "model.start.delta=[0.01,0.2]"])
    assert recipe.model.start == Start(A="normal", delta=(0.01, 0.2))
    with pytest.raises(UserError, match=r"model\.start\.delta \[0\.2, 0\.1\] must be \[low, high\] with low <= high"):
        load_recipe("note", {}, ["model.start.delta=[0.2,0.1]"])
    with pytest.raises(UserError, match=r"model\.start\.A and delta: VIT-S has no selective scan; leave them out"):
        check_backbone(Model(backbone="VIT-S", start=Start(A="one")))
    check_backbone(Model(backbone="VIT-S", start=Start(token_std=0.0)))
