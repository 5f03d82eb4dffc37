"""``launcher.train --dry-run``: what it says is what training does, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny import SMALL, plan_run, set_words, train_on_ranks, write_set

from launcher import train
from vmreid.errors import UserError


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert train.main(["--recipe", "demo", "--deepspeed_config", "zero1_fp32", *words, *set_words(*SMALL["VIT-S"])]) == 0
    return capsys.readouterr().out


def lines_with(text: str, key: str) -> list[list[str]]:
    return [line.split(maxsplit=2) for line in text.splitlines() if line.startswith(f"{key} ")]


def test_values_with_origins_batch_and_steps_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "data", identities=26)
    before = sorted(tmp_path.rglob("*"))
    words = ["--backbone", "VIT-S", "--data", "data", "--out", "run", "--lr", "3e-4", "--epochs", "5"]
    text = said(capsys, *words, "--dry-run", "3")
    assert sorted(tmp_path.rglob("*")) == before
    assert lines_with(text, "optim.lr") == [["optim.lr", "0.0003", "--lr 3e-4"]]
    assert lines_with(text, "model.dim") == [["model.dim", "48", "--set model.dim=48"]]
    assert lines_with(text, "data.cache_gib") == [["data.cache_gib", "20.0", "default"]]
    assert lines_with(text, "loss.label_smoothing")[0][2] == "demo.yaml"
    assert lines_with(text, "model.expand") == [["model.expand", "null", "default"]]
    assert re.search(r"^deepspeed: train_micro_batch_size_per_gpu +4 +derived$", text, re.MULTILINE)
    assert "batch 12 = 6 identities x 2 pictures; on 3 ranks x 1 accumulation steps: 4 pictures a rank at once" in text
    assert "10 steps = 5 epochs x 2, from the start; a checkpoint at least every 2" in text
    assert re.search(r"^activations +0\.00", text, re.MULTILINE)
    with pytest.raises(UserError, match="run on 1, 2, 3, 6 ranks"):
        said(capsys, *words, "--dry-run", "4")


def test_what_the_backbone_defines_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "data")
    assert train.main(["--backbone", "MAMBA-V2", "--data", str(data), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert lines_with(text, "model.d_state") == [["model.d_state", "16", "MAMBA-V2"]]
    assert "960" not in text


def test_a_run_that_is_there_is_left_alone(ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "data")
    ranks.run(1, train_on_ranks, plan_run(tmp_path / "run", data, ["train.epochs=2", "deepspeed_config=zero1_fp32"]))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert train.main(["--out", str(tmp_path / "run"), "--resume", "auto", "--dry-run", "2"]) == 0
    text = capsys.readouterr().out
    assert "2 steps = 2 epochs x 1, from step 2" in text
    assert lines_with(text, "optim.lr")[0][2] == "recipe.yaml"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(UserError, match="holds a run already"):
        train.main(["--out", str(tmp_path / "run"), "--dry-run"])
