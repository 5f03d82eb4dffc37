"""The loader benchmark: what it times is the same work everywhere, and its numbers hang together."""

from __future__ import annotations

import http.client
import json
import mmap
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import urllib3
from tiny import write_set

from launcher import benchmark
from vmreid.benchmarks import loader, sources
from vmreid.benchmarks.loader_rows import Rate, as_text, rows_of
from vmreid.benchmarks.sources import FIRST_BYTE_SECONDS, drop_pages, opened, pages_held
from vmreid.data.manifest import read_index, read_manifest
from vmreid.data.ranges import ShardRanges
from vmreid.errors import UserError
from vmreid.recipes import load_recipe

LOADERS = ["decode + transform", "vmreid", "folder", "webdataset"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "set", identities=64)


@pytest.fixture
def shard(data: Path) -> Path:
    """One that can be dropped from memory."""
    path = data / read_manifest(data).splits["train"].shards[0].name
    try:
        drop_pages([path])
    except UserError:
        pytest.skip("this disk keeps its files in memory")
    return path


@pytest.fixture
def read(request: pytest.FixtureRequest) -> str:
    """A way to read that this machine has."""
    if request.param == "cold":
        request.getfixturevalue("shard")
    if request.param == "http" and not shutil.which("curl"):
        pytest.skip("webdataset reads URLs by curl")
    return str(request.param)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Mapped and touched, so in memory whoever asks to drop it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) > 0
        yield


@pytest.mark.parametrize("read", ["warm", "cold", "http"], indirect=True)
def test_every_loader_is_timed_with_every_number_of_workers(call, monkeypatch, data, tmp_path, read) -> None:
    monkeypatch.setattr(loader, "SECONDS", 0.01)
    monkeypatch.setattr(loader, "REPEATS", 2)
    monkeypatch.setattr(sources, "FIRST_BYTE_SECONDS", 0.002)
    out = tmp_path / "it.json"
    words = ("loader", "--data", data, "--out", out, "--recipe", "demo", "--workers", "0", "1", "--read", read)
    others = set(multiprocessing.active_children())  # of the pool
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
    assert (setting["batch_size"], setting["image_size"], setting["pictures"]) == (16, [128, 64], 128)
    assert (setting["read"], setting["seconds_to_first_byte"]) == (read, 0.002 if read == "http" else None)
    assert f"{read} reads" in printed
    assert set(multiprocessing.active_children()) <= others
    assert setting["augment"]["flip"] == 0.5
    assert "--workers 0 1" in setting["command"]
    assert set(report["parts_us"]) == {"read", "decode", "transform"}
    assert min(report["parts_us"].values()) > 0


@pytest.mark.parametrize("read", ["warm", "http"], indirect=True)
@pytest.mark.parametrize("workers", [0, 2])
def test_each_loader_gives_whole_batches_of_transformed_pictures(data: Path, tmp_path: Path, workers: int, read: Any) -> None:
    with opened(read, data, tmp_path) as source:
        cases = loader.LoaderBenchmark(source, load_recipe("demo", {}, []), [workers]).cases
        made = {name: make(count) for name, count, make in cases[: len(LOADERS)]}
        assert list(made) == LOADERS
        numbers = {next(made["decode + transform"]), next(made["decode + transform"])}
        assert numbers == {0, 1}  # of batches, each made once
        for _ in range(10):  # more than an epoch of 128 pictures
            images = [next(made["vmreid"]).images_BCHW, next(made["folder"])[0], next(made["webdataset"])[0]]
            for images_BCHW in images:
                assert (images_BCHW.shape, images_BCHW.dtype) == ((16, 3, 128, 64), torch.uint8)
                assert len({image_CHW.numpy().tobytes() for image_CHW in images_BCHW}) > 8
        assert len(list(tmp_path.rglob("*.jpg"))) == 128
        made.clear()  # workers end before their server


def test_what_is_served(data: Path, tmp_path: Path) -> None:
    pool = urllib3.PoolManager()
    with opened("http", data, tmp_path) as source:
        content = (data / "manifest.json").read_bytes()
        (source.folder / "it.jpg").write_bytes(b"picture")
        begin = time.monotonic()
        answers = [
            pool.request("GET", f"{source.shards}/manifest.json"),
            pool.request("GET", f"{source.shards}/manifest.json", headers={"Range": "bytes=10-29"}),
            pool.request("GET", f"{source.pictures}/it.jpg"),
            pool.request("GET", f"{source.pictures}/none.jpg"),
        ]
        assert time.monotonic() - begin >= len(answers) * FIRST_BYTE_SECONDS
        assert [answer.status for answer in answers] == [200, 206, 200, 404]
        assert [answer.data for answer in answers[:3]] == [content, content[10:30], b"picture"]
        assert answers[1].headers["Content-Range"] == f"bytes 10-29/{len(content)}"
        host = urllib3.util.parse_url(source.shards)
        assert pool.connection_from_host(host.host, host.port).num_connections == 1  # it stays open
        (tmp_path / "secret").write_bytes(b"beside the folders")
        plain = http.client.HTTPConnection(str(host.host), host.port)  # urllib3 would tidy the path
        plain.request("GET", "/1/../secret")
        assert plain.getresponse().status == 404
    with pytest.raises(urllib3.exceptions.MaxRetryError):
        pool.request("GET", f"{source.shards}/manifest.json", retries=0)


def test_cold_reads_are_refused_while_a_shard_stays_in_memory(call, data, shard, tmp_path) -> None:
    words = ("loader", "--data", data, "--out", tmp_path / "it.json", "--recipe", "demo", "--workers", "0", "--read", "cold")
    with held(shard):
        status, _, line = call(benchmark.main, *words)
    assert status == 2
    assert line.startswith("error: --read cold: ")
    assert "stay in memory" in line


def test_training_has_the_system_read_ahead(data: Path, shard: Path) -> None:
    split = read_manifest(data).splits["train"]
    index = read_index(data, split)
    entry = index[3]
    with shard.open("rb") as file:
        assert not any(pages_held(file.fileno()))
        ShardRanges(data, split, index).expect([3])
        begin = time.monotonic()
        pages = slice(int(entry["offset"]) // mmap.PAGESIZE, int(entry["offset"] + entry["length"] - 1) // mmap.PAGESIZE + 1)
        while not all(pages_held(file.fileno())[pages]) and time.monotonic() - begin < 20:
            time.sleep(0.01)
        assert all(pages_held(file.fileno())[pages])


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
        (["--recipe", "demo", "--workers", "2", "--read", "cold"], "8 batches", "fewer --workers"),
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
