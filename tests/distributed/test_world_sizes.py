"""A run that goes on with another number of ranks: the same global batches, and losses equal to summation order."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import differences, plan_run, read_json_lines, train_on_ranks, write_set

EPOCHS = 4
P12 = ["train.batch_size=24", "optim.warmup_epochs=1", "optim.lr=0.0003"]


def changing(ranks, folder: Path, data: Path, settings: list[str], worlds: list[int], steps: int) -> dict:
    """The weights of a run that is stopped in the middle and goes on with the next number of ranks, again and again."""
    for number, world in enumerate(worlds):
        plan = plan_run(folder, data, settings, world=world, resume=number > 0)
        until = None if world is worlds[-1] and number == len(worlds) - 1 else steps * (number + 1) // len(worlds)
        weights = ranks.run(world, train_on_ranks, plan, until)[0]
        if number + 1 < len(worlds):
            assert plan.folder.latest(), "a checkpoint to go on from"
    return weights


def assert_same_training(left: Path, right: Path) -> None:
    entries = [read_json_lines(run / "log.jsonl") for run in (left, right)]
    assert [entry["batch_digest"] for entry in entries[0]] == [entry["batch_digest"] for entry in entries[1]]
    for before, after in zip(*entries, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=2e-5)
        assert after["lr"] == before["lr"]


def assert_same_weights(expected: dict, weights: dict) -> None:
    """All but the last norm's bias, whose gradient is rounding alone, and the mean that follows from it: neither BNNeck nor the
    triplets feel a shift."""
    free = ("backbone.vit.norm.bias", "head.neck.running_mean")
    apart = {name: value for name, value in differences(expected, weights).items() if name not in free}
    assert max(apart.values()) < 1e-5


@pytest.mark.parametrize(
    "config",
    ["zero1_fp32", "zero3_fp32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero0_fp32", "zero2_fp32"))],
)
def test_two_ranks_one_and_three(ranks, tmp_path: Path, config: str) -> None:
    data = write_set(tmp_path / "data", identities=24)  # 12 train, P = 6: 2 steps an epoch
    settings = [f"train.epochs={EPOCHS}", f"deepspeed_config={config}", "train.checkpoint_steps=1", "optim.lr=0.0003"]
    whole = plan_run(tmp_path / "whole", data, settings, world=2)
    expected = ranks.run(2, train_on_ranks, whole)[0]
    weights = changing(ranks, tmp_path / "moving", data, settings, [2, 1, 3], 2 * EPOCHS)
    assert_same_training(tmp_path / "whole", tmp_path / "moving")
    assert_same_weights(expected, weights)
    assert not list((tmp_path / "moving/checkpoints").glob("*.universal")), "forms go when newer checkpoints come"


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero1_fp32", "zero2_fp32", "zero3_fp32"])
def test_four_ranks_two_three_and_one(ranks, tmp_path: Path, config: str) -> None:
    data = write_set(tmp_path / "data", identities=96)  # 48 train, P = 12: 4 steps an epoch
    settings = [*P12, "train.epochs=8", f"deepspeed_config={config}", "train.checkpoint_steps=1"]
    whole = plan_run(tmp_path / "whole", data, settings, world=4)
    expected = ranks.run(4, train_on_ranks, whole)[0]
    weights = changing(ranks, tmp_path / "moving", data, settings, [4, 2, 3, 1], 32)
    assert_same_training(tmp_path / "whole", tmp_path / "moving")
    assert_same_weights(expected, weights)
