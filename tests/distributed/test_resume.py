"""Runs that are killed in the middle of an epoch, read from a server that fails, or go on without unreadable shards."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Interrupted, plan_run, read_json_lines, train_on_ranks, write_set
from web import served

from vmreid.engine import trainer
from vmreid.engine.checkpoint import TrainingState
from vmreid.engine.prepare import Plan
from vmreid.errors import UserError
from vmreid.run_folder import RunFolder

KILLS, EPOCHS, STEPS_PER_EPOCH = 20, 10, 4
MOMENTS = ("before the step", "after its log line", "while its checkpoint is written")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data", identities=48, pictures=3)  # 24 train: 4 steps of P = 6


def killed_at(plan: Plan, step: int, moment: str) -> int:
    """All ranks. Train until the crash at a moment of ``step`` (from 1); the step where this part began."""
    saves, save = trainer.Trainer._saves, trainer.save_checkpoint
    begun: list[int] = []

    def saves_or_dies(self: trainer.Trainer) -> bool:
        begun.append(self.step - 1)
        if moment == MOMENTS[1] and self.step == step:
            raise Interrupted
        return saves(self) or (moment == MOMENTS[2] and self.step == step)

    def save_or_die(engine: Any, folder: RunFolder, state: TrainingState, keep: int) -> None:
        if moment == MOMENTS[2] and state.step == step:  # DeepSpeed's files are there, the weights and ``latest`` are not
            engine.save_checkpoint(str(folder.checkpoints), tag=f"step-{state.step:06d}", save_latest=False)
            raise Interrupted
        save(engine, folder, state, keep)

    trainer.Trainer._saves, trainer.save_checkpoint = saves_or_dies, save_or_die  # type: ignore[method-assign]
    try:
        train_on_ranks(plan, step - 1 if moment == MOMENTS[0] else None)
    except Interrupted:
        pass
    finally:
        trainer.Trainer._saves, trainer.save_checkpoint = saves, save  # type: ignore[method-assign]
    return begun[0] if begun else step - 1


def test_killed_at_20_moments_the_log_and_the_weights_are_undisturbed(ranks, data, tmp_path):
    settings = [f"train.epochs={EPOCHS}", "train.checkpoint_steps=3", "train.checkpoint_epochs=3", "deepspeed_config=zero1_fp32"]
    whole = plan_run(tmp_path / "whole", data, settings, world=2)
    expected = ranks.run(2, train_on_ranks, whole)[0]
    draw = random.Random(6)
    steps = sorted(draw.sample(range(2, EPOCHS * STEPS_PER_EPOCH), KILLS))
    begun = []
    for step in steps:
        plan = plan_run(tmp_path / "broken", data, settings, world=2, resume=True)
        begun.append(ranks.run(2, killed_at, plan, step, draw.choice(MOMENTS))[0])
    assert len({step % STEPS_PER_EPOCH for step in begun}) == STEPS_PER_EPOCH, "most begin in the middle of an epoch"
    last = plan_run(tmp_path / "broken", data, settings, world=2, resume=True)
    weights = ranks.run(2, train_on_ranks, last)[0]
    log = read_json_lines(tmp_path / "whole/log.jsonl")
    assert [entry["step"] for entry in log] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert len({entry["batch_digest"] for entry in log}) == len(log)
    assert read_json_lines(tmp_path / "broken/log.jsonl") == log
    assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)


def train_impatiently(plan: Plan) -> dict[str, torch.Tensor]:
    """All ranks. With time limits that suit loopback."""
    from vmreid.data import remote

    before = remote.READ_SECONDS, remote.FIRST_WAIT
    remote.READ_SECONDS, remote.FIRST_WAIT = 0.5, 0.01
    try:
        return train_on_ranks(plan)
    finally:
        remote.READ_SECONDS, remote.FIRST_WAIT = before


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_drops_truncates_and_stalls_changes_no_weight(ranks, data, tmp_path, ranges):
    settings = ["train.epochs=2", "deepspeed_config=zero1_fp32", f"data.cache_dir={tmp_path / 'cache'}"]
    from_disk = plan_run(tmp_path / "disk", data, settings, world=2)
    expected = ranks.run(2, train_on_ranks, from_disk)[0]
    kinds, failed = ["drop", None, "truncate", None, "503", None, "stall", None, None], []

    def fault(name: str, times: int) -> str | None:
        kind = kinds[len(failed) % len(kinds)] if times <= 3 and name != "manifest.json" else None
        failed.append(kind)
        return kind

    with served(data, ranges=ranges, fault=fault) as web:
        plan = plan_run(tmp_path / "web", web.url, settings, world=2)
        weights = ranks.run(2, train_impatiently, plan)[0]
    assert {"drop", "truncate", "stall", "503"} <= set(failed)
    assert read_json_lines(tmp_path / "web/log.jsonl") == read_json_lines(tmp_path / "disk/log.jsonl")
    assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)


class Notes:
    """A tracker that keeps what it is given of training steps in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, values: dict[str, float]) -> None:
        if "loss" in values:  # monitors are not asked about here
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def test_unreadable_shards_are_an_error_or_skipped_and_counted_alike_on_any_number_of_ranks(ranks, data, tmp_path):
    broken = Path(shutil.copytree(data, tmp_path / "data"))
    shards = sorted(broken.glob("train-*.tar"))
    shards[3].unlink()
    shards[7].write_bytes(shards[7].read_bytes()[:700])
    settings = ["train.epochs=2", "deepspeed_config=zero1_fp32"]
    with pytest.raises(UserError, match=r"train-000003\.tar: missing"):
        plan_run(tmp_path / "strict", broken, settings)
    with served(broken) as web:
        strict = plan_run(tmp_path / "strict", web.url, [*settings, f"data.cache_dir={tmp_path / 'cache'}"])
        with pytest.raises(UserError, match=r"train-00000[37]\.tar: .*data.skip_unreadable=true"):
            ranks.run(1, train_on_ranks, strict)
    logs = {}
    for world in (1, 2, 3):
        plan = plan_run(tmp_path / str(world), broken, [*settings, "data.skip_unreadable=true"], world=world)
        ranks.run(world, train_on_ranks, plan, None, Notes(tmp_path / f"notes-{world}"))
        logs[world] = read_json_lines(plan.folder.log_file)
    for entries in logs.values():
        assert [entry["batch_digest"] for entry in entries] == [entry["batch_digest"] for entry in logs[1]]
        assert [entry["skipped"] for entry in entries] == [entry["skipped"] for entry in logs[1]]
    lost = sum(1 for entry in logs[1] if entry["skipped"])
    assert 0 < lost < len(logs[1])
    assert sum(entry["skipped"] for entry in logs[1]) % 2 == 0  # whole identities of K = 2
    notes = [json.loads(line)["skipped"] for line in (tmp_path / "notes-2").read_text().splitlines()]
    assert notes == [entry["skipped"] for entry in logs[2]]


def test_several_sets_train_alike_on_any_number_of_ranks_and_their_weights_belong_to_a_run(ranks, data, tmp_path):
    other = write_set(tmp_path / "other", identities=16, pictures=2)

    def settings(weight: float) -> list[str]:
        shards = f"data.shards=[{{shards: {data}, weight: {weight}}}, {{shards: {other}, weight: 1}}]"
        return [shards, "train.epochs=1", "deepspeed_config=zero1_fp32"]

    logs = []
    for world in (1, 3):
        plan = plan_run(tmp_path / str(world), data, settings(3), world=world)
        weights = ranks.run(world, train_on_ranks, plan)[0]
        logs.append([entry["batch_digest"] for entry in read_json_lines(plan.folder.log_file)])
    assert logs[0] == logs[1]
    assert len(logs[0]) == (24 + 8) // 6
    assert len(weights["head.classifier.weight"]) == 24 + 8  # the sets' identities are apart
    assert plan_run(tmp_path / "1", data, settings(3), resume=True).checkpoint
    with pytest.raises(UserError, match="trained on data"):
        plan_run(tmp_path / "1", data, settings(2), resume=True)
