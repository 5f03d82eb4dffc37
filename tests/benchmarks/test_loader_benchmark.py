"""The loader benchmark: what it times is the same work everywhere, and its numbers hang together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_set

from launcher import benchmark
from vmreid.benchmarks import loader
from vmreid.benchmarks.loader_rows import Rate, as_text, rows_of
from vmreid.recipes import load_recipe

LOADERS = ["decode + transform", "vmreid", "folder", "webdataset"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "set", identities=16)


def test_every_loader_is_timed_with_every_number_of_workers(call, monkeypatch, data, tmp_path) -> None:
    monkeypatch.setattr(loader, "SECONDS", 0.01)
    monkeypatch.setattr(loader, "REPEATS", 2)
    out = tmp_path / "it.json"
    words = ("loader", "--data", data, "--out", out, "--recipe", "demo", "--workers", "0", "1")
    status, printed, _ = call(benchmark.main, *words)
    assert status == 0
    report: dict[str, Any] = json.loads(out.read_text())
    rows = {(row["loader"], row["workers"]): row for row in report["rows"]}
    assert list(rows) == [(name, workers) for workers in (0, 1) for name in LOADERS]
    for (name, workers), row in rows.items():
        assert len(row["rounds"]) == 2
        assert row["images_per_s"] == max(row["rounds"]) > 0
        bound = rows["decode + transform", workers]["images_per_s"]
        assert row["share"] == pytest.approx(row["images_per_s"] / bound)
        assert f"{name} {workers} {row['images_per_s']:.0f}" in " ".join(printed.split())
    setting = report["setting"]
    assert (setting["batch_size"], setting["image_size"], setting["pictures"]) == (16, [128, 64], 32)
    assert setting["augment"]["flip"] == 0.5
    assert "--workers 0 1" in setting["command"]
    assert set(report["parts_us"]) == {"read", "decode", "transform"}
    assert min(report["parts_us"].values()) > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_each_loader_gives_whole_batches_of_transformed_pictures(data: Path, tmp_path: Path, workers: int) -> None:
    cases = loader.LoaderBenchmark(data, load_recipe("demo", {}, []), [workers], tmp_path).cases
    made = {name: make(count) for name, count, make in cases[: len(LOADERS)]}
    assert list(made) == LOADERS
    assert {next(made["decode + transform"]), next(made["decode + transform"])} == {0, 1}  # numbers of batches, each made once
    for _ in range(4):  # more than an epoch of 32 pictures
        images = [next(made["vmreid"]).images_BCHW, next(made["folder"])[0], next(made["webdataset"])[0]]
        for images_BCHW in images:
            assert (images_BCHW.shape, images_BCHW.dtype) == ((16, 3, 128, 64), torch.uint8)
            assert len({image_CHW.numpy().tobytes() for image_CHW in images_BCHW}) > 8
    assert len(list(tmp_path.rglob("*.jpg"))) == 32


def test_the_best_round_counts_and_the_share_is_of_the_best_bound() -> None:
    rates = [Rate("vmreid", 0, 5), Rate("decode + transform", 0, 8), Rate("vmreid", 0, 6), Rate("decode + transform", 0, 4)]
    assert [(row.images_per_s, row.share) for row in rows_of(rates)] == [(6, 0.75), (8, 1)]
    assert rows_of(rates[:1])[0].share is None
    assert "vmreid" in as_text(rates[:1], {"read": 1.0})


@pytest.mark.parametrize(
    ("words", "value", "way_out"),
    [
        (["--data", "none"], "none", "shards.write"),
        (["--workers", "-1"], "--workers -1", "at least 0"),
        (["--recipe", "demon"], "demon", "did you mean demo?"),
        (["--out", "missing/it.json"], "missing", "make it first"),
    ],
)
def test_wrong_words_are_one_line(call, monkeypatch, data, tmp_path, words, value, way_out) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed, line = call(benchmark.main, "loader", "--data", data, "--out", "it.json", *words)
    assert (status, printed) == (2, "")
    assert line.startswith("error: ")
    assert value in line
    assert way_out in line
    assert list(tmp_path.iterdir()) == []
