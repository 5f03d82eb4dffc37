"""A planted fault: does the stop or the monitor name its place, and does what is kept replay it?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import forget_deepspeed_groups, plan_run, read_json_lines, with_gradient, write_set

from vmreid.digests import DIGESTS
from vmreid.distributed import Place, rank, world_size
from vmreid.engine.guard import BATCH, Fault, replay
from vmreid.engine.prepare import Plan
from vmreid.engine.trainer import Trainer
from vmreid.errors import UserError
from vmreid.models import ReIDModel
from vmreid.models.mamba_v2 import SS2D
from vmreid.run_folder import WEIGHTS, RunFolder

NORMALISE, FORWARD = ReIDModel.normalise, SS2D.forward
SETTINGS = ["train.epochs=3", "optim.lr=0.001", "train.monitor_steps=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data")


def with_a_nan(gradient: torch.Tensor) -> torch.Tensor:
    """In one value."""
    gradient = gradient.clone()
    gradient.view(-1)[7] = torch.nan
    return gradient


def nan_in_a_pixel(trainer: Trainer) -> None:
    """Of the last picture of rank 1's part, whichever step it comes in."""

    def normalise(model: ReIDModel, image_BCHW: torch.Tensor) -> torch.Tensor:
        values_BCHW = NORMALISE(model, image_BCHW)
        if rank() == world_size() - 1 and len(values_BCHW) > 2:
            values_BCHW[-1, 1, 5, 5] = torch.nan
        return values_BCHW

    ReIDModel.normalise = normalise  # type: ignore[method-assign]


def nan_in_a_backward(trainer: Trainer) -> None:
    """Of the second of two blocks, from the second step on."""
    calls = itertools.count()

    def forward(block: SS2D, tokens_BLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        out_BLC = FORWARD(block, tokens_BLC, grid)
        second = torch.is_grad_enabled() and next(calls) % 2 == 1
        return with_gradient(out_BLC, with_a_nan) if second and trainer.step > 0 else out_BLC

    SS2D.forward = forward  # type: ignore[method-assign]


def delta_bias_times_100(trainer: Trainer) -> None:
    trainer.engine.module.model.backbone.blocks[1].dt_bias.data *= 100


def decay_times_100(trainer: Trainer) -> None:
    trainer.engine.module.model.backbone.blocks[1].A_log.data += 4.6


def one_decay_for_all_states(trainer: Trainer) -> None:
    trainer.engine.module.model.backbone.blocks[1].A_log.data.fill_(0.0)


def nothing(trainer: Trainer) -> None:
    return


def train_with(plan: Plan, fault: Callable[[Trainer], None]) -> None:
    """All ranks. Train with a fault planted before the first step."""
    forget_deepspeed_groups()
    trainer = Trainer(plan, Place(rank(), world_size(), rank()))
    try:
        fault(trainer)
        trainer.train(None)
    finally:
        ReIDModel.normalise, SS2D.forward = NORMALISE, FORWARD  # type: ignore[method-assign]


def replay_with(place: Path, fault: Callable[[Trainer], None]) -> Fault | None:
    """One rank. Replay what a stop has kept, the fault still there."""
    fault(None)  # type: ignore[arg-type]
    try:
        return replay(place, torch.device("cpu"))
    finally:
        ReIDModel.normalise = NORMALISE  # type: ignore[method-assign]


def test_nan_in_one_pixel(ranks, data: Path, tmp_path: Path) -> None:
    plan = plan_run(tmp_path / "run", data, [*SETTINGS, "deepspeed_config=zero1_fp32"], backbone="MAMBA-V2", world=2)
    with pytest.raises(UserError) as caught:
        ranks.run(2, train_with, plan, nan_in_a_pixel)
    said = str(caught.value)
    (line,) = plan.folder.non_finite()
    (row,) = line["rows"]
    assert (
        f"step 1: non-finite value, first in output of model.backbone.tokens.project (Conv2d) on rank 1, pictures in rows {row}"
        in said
    )
    place = plan.folder.path / "non_finite/step-000001"
    assert f"{place} holds what replays it" in said
    batch = safetensors.torch.load_file(place / BATCH)
    assert int(batch["rows_B"][-1]) == row
    assert len(batch["images_BCHW"]) == 12, "the whole batch, of both ranks"
    assert len(line["batch_digest"]) == 16
    fault = ranks.run(1, replay_with, place, nan_in_a_pixel)[0]
    assert (fault.where, fault.rows) == (line["where"], [row])
    assert ranks.run(1, replay_with, place, nothing)[0] is None, "without the fault nothing is wrong"


@pytest.mark.parametrize(("config", "world"), [("zero0_fp32", 1), ("zero0_fp32", 2), ("zero1_fp32", 2), ("zero3_fp32", 2)])
def test_nan_in_a_backward_alone(ranks, data: Path, tmp_path: Path, config: str, world: int) -> None:
    plan = plan_run(tmp_path / "run", data, [*SETTINGS, f"deepspeed_config={config}"], backbone="MAMBA-V2", world=world)
    with pytest.raises(
        UserError, match=r"step 2: non-finite value, first in backward of model\.backbone\.blocks\.1 \(SS2D\) on rank 0"
    ):
        ranks.run(world, train_with, plan, nan_in_a_backward)
    assert plan.folder.latest() == plan.folder.checkpoints / "step-000001"
    assert (plan.folder.checkpoints / "step-000001" / DIGESTS).is_file()
    kept, before = (
        safetensors.torch.load_file(folder / WEIGHTS)
        for folder in (plan.folder.path / "non_finite/step-000002", plan.folder.checkpoints / "step-000001")
    )
    statistics = ("head.neck.running_mean", "head.neck.running_var")  # a forward moves them
    assert all(torch.equal(kept[name], before[name]) for name in before if name not in statistics), "no weight felt it"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (delta_bias_times_100, "block 2 takes nothing in (delta below 1e-4) in 100% of its channels"),
        (decay_times_100, "block 2 forgets within 2 tokens in "),
        (one_decay_for_all_states, "block 2: all states of a channel decay alike in 100% of its channels"),
    ],
)
def test_a_monitor_names_the_block(ranks, data: Path, tmp_path: Path, fault: Callable[[Trainer], None], words: str) -> None:
    plan = plan_run(tmp_path / "run", data, [*SETTINGS, "deepspeed_config=zero0_fp32"], backbone="MAMBA-V2")
    ranks.run(1, train_with, plan, fault)
    warnings = RunFolder(tmp_path / "run").monitors()[0]["warnings"]
    assert any(each.startswith(words) for each in warnings), warnings
    assert not any("block 1" in each for each in warnings), warnings


def test_a_rate_times_100_is_seen(ranks, data: Path, tmp_path: Path) -> None:
    said = {}
    for name, rate in (("as it is", 0.001), ("times 100", 0.1)):
        settings = [*SETTINGS, "deepspeed_config=zero1_fp32", f"optim.lr={rate}"]
        plan = plan_run(tmp_path / name.replace(" ", "-"), data, settings, backbone="MAMBA-V2")
        ranks.run(1, train_with, plan, nothing)
        said[name] = [words for look in plan.folder.monitors() for words in look["warnings"]]
        assert [entry["step"] for entry in read_json_lines(plan.folder.log_file)] == [1, 2, 3]
    assert said["as it is"] == []
    assert {"block 1", "block 2"} <= {words.partition(": one step changes its weights")[0] for words in said["times 100"]}
