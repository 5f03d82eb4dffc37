"""``launcher.benchmark extraction``: every case passes over whole galleries and is in the file and in the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_set

from launcher import benchmark
from vmreid.benchmarks import extraction
from vmreid.errors import UserError

SETTINGS = ["data.image_size=[64,32]", "model.dim=48", "model.depth=1", "model.heads=3", "evaluation.batch_size=4"]


def words(data: Path, *more: str) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["extraction", "--data", str(data), "--out", str(data.parent / "found.json"), *settings, *more]


def test_each_case_is_measured_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extraction, "SECONDS", 0.05)
    monkeypatch.setattr(extraction, "PASS_SECONDS", 0.05)
    data = write_set(tmp_path / "data")
    benchmark.main(words(data, "--backbones", "VIT-S", "VIT-T", "--workers", "0", "1"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["setting"]["precision"] == "fp32"
    cases = [(row["workers"], row["what"], row["backbone"]) for row in found["rows"]]
    whats = (extraction.FORWARD, extraction.PICTURES, extraction.BOTH)
    assert cases == [
        (workers, what, name if what != extraction.PICTURES else "")
        for workers in (0, 1)
        for name in ("VIT-S", "VIT-T")
        for what in whats
    ]
    gallery = found["setting"]["gallery"]
    for row in found["rows"]:
        assert row["images_per_s"] > 0
        assert row["pictures"] % (gallery if row["what"] != extraction.FORWARD else 4) == 0
        assert row["pictures"] > 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in table[2:6]] == [["VIT-S", "0"], ["VIT-T", "0"], ["VIT-S", "1"], ["VIT-T", "1"]]


def test_graphs_need_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--compiled: makes CUDA graphs, and torch sees no GPU here"):
        benchmark.main(words(write_set(tmp_path / "data"), "--compiled"))
