"""Checkpoints: what is kept, what damage is found, and that a run goes on from the one before."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import plan_run, read_json_lines, train_on_ranks, write_set

from vmreid.digests import DIGESTS
from vmreid.engine.checkpoint import _forget_old
from vmreid.errors import UserError
from vmreid.run_folder import WEIGHTS, RunFolder

SETTINGS = ["train.epochs=4", "deepspeed_config=zero1_fp32"]  # one step an epoch


@pytest.fixture(scope="module")
def trained(ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_set(folder / "data")
    ranks.run(2, train_on_ranks, plan_run(folder / "run", folder / "data", SETTINGS, world=2))
    return folder


@pytest.fixture
def again(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that others may damage."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a bit of the optimizer's state": ("zero_pp_rank_1_mp_rank_00_optim_states.pt", flip, "holds other bytes than were written"),
    "the end of the weights": (WEIGHTS, cut, r"has \d+ bytes, \d+ were written"),
    "a file": ("mp_rank_00_model_states.pt", Path.unlink, "is missing"),
    "the list itself": (DIGESTS, Path.unlink, "digests.json is not readable"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_and_the_one_before_is_taken(ranks, trained: Path, again: Path, capsys, name: str) -> None:
    file, harm, rule = DAMAGE[name]
    harm(again / "checkpoints/step-000004" / file)
    plan = plan_run(again, trained / "data", SETTINGS, world=2, resume=True)
    assert plan.checkpoint == again / "checkpoints/step-000003"
    (said,) = capsys.readouterr().err.splitlines()[-1:]
    what = "" if file == DIGESTS else f"{file} "
    assert re.fullmatch(rf"{again}/checkpoints/step-000004: damaged \({what}{rule}\); going on from step-000003", said), said
    if name == "a file":
        weights = ranks.run(2, train_on_ranks, plan)[0]
        assert read_json_lines(again / "log.jsonl") == read_json_lines(trained / "run/log.jsonl")
        assert plan_run(again, trained / "data", SETTINGS, world=2, resume=True).checkpoint.name == "step-000004"
        assert weights


def test_without_a_sound_one_nothing_begins_anew(trained: Path, again: Path) -> None:
    for checkpoint in (again / "checkpoints").glob("step-*"):
        flip(checkpoint / WEIGHTS)
    with pytest.raises(UserError, match=r"step-000004: damaged .*; .*step-000003: damaged .*no checkpoint is left: bring one"):
        plan_run(again, trained / "data", SETTINGS, world=2, resume=True)
    with pytest.raises(UserError, match=r"step-000004: damaged \(weights.safetensors holds other bytes than were written\)"):
        RunFolder(again).checkpoint(None)


def whole(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        path = folder.checkpoints / f"step-{step:06d}"
        path.mkdir(parents=True)
        (path / DIGESTS).touch()


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    whole(folder, 1, 2, 3, 4, 5, 6)
    (folder.checkpoints / "step-000003.universal").mkdir()
    (folder.checkpoints / "step-000004" / DIGESTS).unlink()  # a save that was killed
    scores = {1: 0.1, 2: 0.4, 3: 0.3, 7: 0.9}
    folder.evaluations_file.write_text("".join(json.dumps({"step": step, "mAP": mean}) + "\n" for step, mean in scores.items()))
    _forget_old(folder, "step-000006", 3)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [f"step-{step:06d}" for step in (2, 3, 5, 6)]


def test_a_save_over_what_a_killed_one_left_is_whole(ranks, trained: Path, again: Path) -> None:
    left = again / "checkpoints/step-000004"
    (left / DIGESTS).unlink()
    (left / "zero_pp_rank_7_mp_rank_00_optim_states.pt").write_text("of a save by eight ranks")
    (again / "checkpoints/latest").write_text("step-000003\n")
    weights = ranks.run(2, train_on_ranks, plan_run(again, trained / "data", SETTINGS, world=2, resume=True))[0]
    named = json.loads((left / DIGESTS).read_text())
    assert sorted(named) == sorted(path.name for path in left.iterdir() if path.name != DIGESTS)
    assert "zero_pp_rank_7_mp_rank_00_optim_states.pt" not in named
    assert all(torch.isfinite(value).all() for value in weights.values())
