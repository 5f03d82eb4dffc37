"""``launcher.doctor``: the machine's facts, the model test and the replay of a stop, as a user sees them."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch
from tiny import SMALL, command_on_ranks, plan_run, set_words, train_on_ranks, write_set

from launcher import doctor
from vmreid.doctor import machine
from vmreid.errors import UserError


def test_the_facts_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    lines = {line.partition("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert torch.__version__ in lines["torch"]
    assert importlib.metadata.version("deepspeed") in lines["deepspeed"]
    assert "GiB free" in lines["this folder"]
    if not torch.cuda.is_available():
        assert "training runs on the CPU" in lines["GPU"]
        assert "fused runs on CUDA only" in lines["scan: fused"]


def test_what_is_missing_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "webdataset":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(machine.importlib.metadata, "version", without)
    assert doctor.main([]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("webdataset")]
    assert f"MISSING  is not installed; {machine.INSTALL}" in line


def test_a_backbone_is_tested_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--backbone", "MAMBA-V2", *set_words(*SMALL["MAMBA-V2"])]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("MAMBA-V2 on ")
    assert [line[:4] for line in lines] == ["ok  "] * 6 + ["    "]
    assert "growth over tokens" in lines[-1]


def test_a_check_that_fails_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("vmreid.doctor.model_test.NEAR", 1e-9)
    assert doctor.main(["--backbone", "VIT-S", *set_words(*SMALL["VIT-S"])]) == 1
    assert "FAIL  first loss: " in capsys.readouterr().out


def test_an_unknown_backbone_is_one_line() -> None:
    with pytest.raises(UserError, match="backbone VIT-X: unknown"):
        doctor.main(["--backbone", "VIT-X"])


def test_a_stop_is_replayed(ranks, tmp_path: Path) -> None:
    data = write_set(tmp_path / "data")
    settings = ["train.epochs=3", "optim.lr=1e30", "optim.name=sgd", "deepspeed_config=zero1_fp32"]
    with pytest.raises(UserError, match=r"non_finite/step-000002 holds what replays it"):
        ranks.run(1, train_on_ranks, plan_run(tmp_path / "run", data, settings))
    words = ["--replay", str(tmp_path / "run/non_finite/step-000002")]
    said = ranks.run(1, command_on_ranks, "launcher.doctor", words, tmp_path)[0]
    assert "the first value that is not finite is in " in said
    with pytest.raises(UserError, match=r"holds no fault\.json; give a folder that a stop has left"):
        ranks.run(1, command_on_ranks, "launcher.doctor", ["--replay", str(tmp_path)], tmp_path)
