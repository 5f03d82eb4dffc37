"""What ``train.compile`` makes of a backbone's parameters: the same training, checkpoints and weights. Without its graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import differences, plan_run, read_json_lines, train_on_ranks, write_set

from vmreid.engine import training_module
from vmreid.engine.compiled import check_compile
from vmreid.engine.prepare import Plan
from vmreid.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data")


def train_flat(plan: Plan, fail_at: int | None = None) -> dict[str, torch.Tensor]:
    """All ranks. As ``train_on_ranks`` with ``train.compile``, but for the compiling, which wants a GPU."""
    flat = plan.recipe.model_copy(update={"train": plan.recipe.train.model_copy(update={"compile": True})})
    as_graphs = training_module.as_graphs
    training_module.as_graphs = lambda function: function
    try:
        return train_on_ranks(replace(plan, recipe=flat), fail_at)
    finally:
        training_module.as_graphs = as_graphs


@pytest.mark.parametrize(
    ("backbone", "stage", "world"), [("VIT-S", 0, 1), ("VIT-S", 1, 2), ("MAMBA-V2", 1, 1), ("VMAMBA-T", 2, 2), ("VIM-T", 2, 1)]
)
def test_the_same_is_trained_and_saved_under_the_same_names(ranks, data, tmp_path, backbone, stage, world):
    settings = ["train.epochs=2", "optim.name=sgd", "optim.lr=1", "optim.weight_decay=0.1", f"deepspeed_config=zero{stage}_fp32"]
    settings.append("train.monitor_steps=null")  # a look would show the backbone its parameters before the save does
    plans = [plan_run(tmp_path / name, data, settings, backbone=backbone, world=world) for name in ("own", "flat")]
    start = ranks.run(1, train_on_ranks, plan_run(tmp_path / "0", data, [*settings, "optim.lr=1e-30"], backbone=backbone))[0]
    own, flat = (ranks.run(world, run, plan)[0] for run, plan in zip((train_on_ranks, train_flat), plans, strict=True))
    moved = differences(start, own)
    for name, difference in differences(own, flat).items():
        assert difference <= 1e-3 * moved[name] + 1e-5, name
    norms = [[line["grad_norm"] for line in read_json_lines(plan.folder.log_file)] for plan in plans]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize(("stage", "world"), [(0, 1), (1, 2), (2, 2)])
def test_it_resumes_bit_for_bit(ranks, data, tmp_path, stage, world):
    settings = ["train.epochs=4", f"deepspeed_config=zero{stage}_fp32"]
    whole, broken = (plan_run(tmp_path / name, data, settings, world=world) for name in ("whole", "broken"))
    expected = ranks.run(world, train_flat, whole)[0]
    ranks.run(world, train_flat, broken, 2)
    resumed = plan_run(tmp_path / "broken", data, settings, world=world, resume=True)
    weights = ranks.run(world, train_flat, resumed)[0]
    assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)


def test_a_non_finite_value_is_named_in_the_backbone_itself(ranks, data, tmp_path):
    settings = ["train.epochs=3", "optim.lr=1e30", "optim.name=sgd", "deepspeed_config=zero1_fp32"]
    with pytest.raises(UserError, match=r"step 2: non-finite value, first in .*model\.(backbone|head)"):
        ranks.run(1, train_flat, plan_run(tmp_path / "run", data, settings))


def test_compile_says_what_it_needs():
    with pytest.raises(UserError, match=r"train\.compile true: makes CUDA graphs, and torch sees no GPU"):
        check_compile(torch.device("cpu"), 1)
    with pytest.raises(UserError, match=r"ZeRO stage 3 .* take a deepspeed_config of stage 0 to 2"):
        check_compile(torch.device("cuda", 0), 3)
    check_compile(torch.device("cuda", 0), 2)
