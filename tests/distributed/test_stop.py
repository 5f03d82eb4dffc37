"""A scheduler's signal to one rank: all ranks stop after the same step with a checkpoint, and the run goes on from it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny import (
    command_on_ranks,
    forget_deepspeed_groups,
    plan_run,
    read_json_lines,
    runs_of,
    set_words,
    train_on_ranks,
    write_set,
)

from vmreid.distributed import Place, rank, world_size
from vmreid.engine import trainer as module
from vmreid.engine.prepare import Plan
from vmreid.engine.trainer import Trainer

SETTINGS = ["train.epochs=3", "deepspeed_config=zero1_fp32", "train.checkpoint_epochs=3"]


def train_and_get(plan: Plan, number: signal.Signals, to: int, at: int, times: int) -> tuple[str, int]:
    """All ranks. Rank ``to`` gets a signal ``times`` while it takes step ``at``; what training said, and the step it stood at."""
    forget_deepspeed_groups()
    os.environ.setdefault("LOCAL_RANK", str(rank()))
    runner, take = Trainer(plan, Place(rank(), world_size(), rank())), module.take_step

    def take_and_get(engine, clipping):
        if rank() == to and runner.step + 1 == at:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return take(engine, clipping)

    module.take_step = take_and_get
    try:
        return runner.train(None), runner.step
    finally:
        module.take_step = take


@pytest.mark.parametrize(("number", "to", "times"), [(signal.SIGUSR1, 1, 1), (signal.SIGTERM, 0, 2)])
def test_one_rank_is_told_and_all_stop_and_go_on(ranks, tmp_path: Path, number: signal.Signals, to: int, times: int) -> None:
    data = write_set(tmp_path / "data", identities=48)  # 4 steps an epoch
    expected = ranks.run(2, train_on_ranks, plan_run(tmp_path / "whole", data, SETTINGS, world=2))[0]
    plan = plan_run(tmp_path / "told", data, SETTINGS, world=2)
    said = ranks.run(2, train_and_get, plan, number, to, 5, times)
    assert said[0] == said[1], "all ranks stop after the same step"
    assert said[0][0] == number.name
    assert 5 <= said[0][1] <= 6
    assert plan.folder.latest().name == f"step-{said[0][1]:06d}"
    weights = ranks.run(2, train_on_ranks, plan_run(tmp_path / "told", data, SETTINGS, world=2, resume=True))[0]
    assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)
    assert read_json_lines(tmp_path / "told/log.jsonl") == read_json_lines(tmp_path / "whole/log.jsonl")


def test_a_signal_at_the_last_step_is_no_early_end(ranks, tmp_path: Path) -> None:
    plan = plan_run(tmp_path / "run", write_set(tmp_path / "data"), SETTINGS, world=1)
    assert ranks.run(1, train_and_get, plan, signal.SIGTERM, 0, 3, 1) == [("", 3)]


def command_and_get(words: list[str], folder: Path) -> tuple[int, float]:
    """A rank of a pool. ``launcher.train`` whose second step a SIGTERM meets; its status, and when it left. On rank 0 MLflow
    takes a second to be told, and counts as the end."""
    from launcher import train
    from vmreid.tracking import MlflowRun

    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    forget_deepspeed_groups()
    take, steps, close, ends = module.take_step, [], MlflowRun.close, []

    def close_slowly(tracker, status):
        time.sleep(1)
        close(tracker, status)
        ends.append(time.monotonic())

    def take_and_get(engine, clipping):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(engine, clipping)

    module.take_step, MlflowRun.close = take_and_get, close_slowly
    try:
        status = train.main(words)
        return status, ends[0] if ends else time.monotonic()
    finally:
        module.take_step, MlflowRun.close = take, close


def test_the_command_says_how_to_go_on_and_mlflow_shows_it_killed(ranks, tmp_path: Path) -> None:
    write_set(tmp_path / "data")
    words = ["--recipe", "demo", "--data", "data", "--out", "run", *set_words("model.dim=48", "model.depth=2", "model.heads=3")]
    (status, told), (other, left) = ranks.run(2, command_and_get, [*words, "--epochs", "6"], tmp_path)
    assert status == other == 75
    assert left > told, "srun would end rank 0 with the first to leave"
    assert runs_of(tmp_path)[0].info.status == "KILLED"
    ranks.run(2, command_on_ranks, "launcher.train", [*words, "--epochs", "6", "--resume", "auto"], tmp_path)
    (run,) = runs_of(tmp_path)
    assert run.info.status == "FINISHED"
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 6
