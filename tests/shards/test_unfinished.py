"""Writes that are interrupted, damaged or shared: what goes on, what is written again, and always the same bytes."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_commands import SMALL, Call, jpeg, layout

from shards import write, writer
from shards.sources import Picture, Splits
from shards.synthetic import render
from vmreid.errors import UserError

ROOT = Path(__file__).parents[2]
WORDS = ("synthetic", *SMALL, "--workers", "1")
SHARDS = 12  # of the set that WORDS write
SIX = tuple(f"{split}/{split[0]}/{number}_c{number}.jpg" for split in ("train", "query", "gallery") for number in (1, 2))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def rendered_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Identities of the pictures that this process has rendered."""
    identities: list[int] = []

    def count(seed: int, identity: int, camera: int, number: int) -> Any:
        identities.append(identity)
        return render(seed, identity, camera, number)

    monkeypatch.setattr("shards.sources.rendered.render", count)
    return identities


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A write that was interrupted in the second picture of identity 2."""

    def interrupt(seed: int, identity: int, camera: int, number: int) -> Any:
        if (identity, number) == (2, 1):
            raise KeyboardInterrupt
        return render(seed, identity, camera, number)

    with monkeypatch.context() as patch:
        patch.setattr("shards.sources.rendered.render", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write.main([*WORDS, "--out", str(tmp_path / "set")])
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"{tmp_path}/set: 2 of {SHARDS} shards are whole; the same command goes on from there"
    return tmp_path / "set"


def test_an_interrupted_write_goes_on(begun: Path, call: Call, rendered: Path, rendered_here: list[int]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in begun.glob("*.tar")}
    assert sorted(before) == ["train-000000.tar", "train-000001.tar"]
    assert call(write.main, *WORDS, "--out", begun)[0] == 0
    assert contents(begun) == contents(rendered)
    assert {name: (begun / name).stat().st_mtime_ns for name in before} == before
    assert sorted(set(rendered_here)) == [2, 3, 4, 5, 6, 7]


def test_a_write_that_was_killed_goes_on(tmp_path: Path, call: Call) -> None:
    words = [*WORDS, "--identities", "64"]
    assert call(write.main, *words, "--out", tmp_path / "whole")[0] == 0
    command = [sys.executable, "-m", "shards.write", *words, "--out", str(tmp_path / "set")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "set/train-000001.tar").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "set/manifest.json").exists()
    assert call(write.main, *words, "--out", tmp_path / "set")[0] == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["shard changed", "shard cut", "shard gone", "record cut", "record gone", "half a shard"])
def test_what_is_not_whole_is_written_again(
    begun: Path, call: Call, rendered: Path, rendered_here: list[int], damage: str
) -> None:
    shard, record = begun / "train-000001.tar", begun / "unfinished/train-000001.tar.npz"
    data, kept = shard.read_bytes(), record.read_bytes()
    if damage == "shard changed":
        shard.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    elif damage == "shard cut":
        shard.write_bytes(data[:-1])
    elif damage == "shard gone":
        shard.unlink()
    elif damage == "record cut":
        record.write_bytes(kept[: len(kept) // 2])
    elif damage == "record gone":
        record.unlink()
    else:
        (begun / "unfinished/train-000002.tar.0123abcd").write_bytes(data[:1000])
    assert call(write.main, *WORDS, "--out", begun)[0] == 0
    assert contents(begun) == contents(rendered)
    assert (1 in rendered_here) == (damage != "half a shard")
    assert 0 not in rendered_here


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*WORDS, "--objects", "people"), 'holds an unfinished write of {"name": "synthetic", "identities": 8, "cameras": 3'),
        ((*WORDS, "--resize", "64"), 'holds an unfinished write of {"name": "synthetic"'),
    ],
)
def test_another_plan_in_the_same_folder_is_refused(begun: Path, call: Call, words: tuple[str, ...], told: str) -> None:
    before = sorted(begun.rglob("*"))
    status, _, line = call(write.main, *words, "--out", begun)
    assert status == 2
    assert line.startswith(f"error: {begun}: {told}")
    assert line.endswith("; go on with the command that began it, remove the folder, or give another --out")
    assert sorted(begun.rglob("*")) == before


def test_a_source_that_changed_is_another_plan(tmp_path: Path, call: Call) -> None:
    root = layout(tmp_path / "in", *SIX)
    words = ("image_folder", "--root", root, "--out", tmp_path / "set")
    assert call(write.main, *words, "--part", "1/2")[0] == 0
    jpeg(root / "gallery/g/3_c3.jpg")
    status, _, line = call(write.main, *words)
    assert status == 2
    assert "holds an unfinished write of these settings, but of other pictures" in line


def test_a_plan_that_cannot_be_read(begun: Path, call: Call) -> None:
    (begun / "unfinished/plan.json").write_text("[]")
    status, _, line = call(write.main, *WORDS, "--out", begun)
    assert (status, line) == (
        2, f"error: {begun}/unfinished/plan.json: not readable; remove {begun}, or give another --out"
    )  # fmt: skip


def test_somebody_elses_folder_of_that_name_is_left_alone(tmp_path: Path, call: Call) -> None:
    (tmp_path / "set/unfinished").mkdir(parents=True)
    (tmp_path / "set/unfinished/symphony.txt").write_text("mine")
    status, _, line = call(write.main, *WORDS, "--out", tmp_path / "set")
    assert status == 2
    assert "exists and is not an empty folder" in line
    assert (tmp_path / "set/unfinished/symphony.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("parts", "order", "workers"),
    [(2, (2, 1), 1), (3, (1, 3, 2), 1), (5, (5, 4, 3, 2, 1), 1), (20, range(1, 21), 1), (2, (1, 2), 2)],
)
def test_parts_in_any_order_write_the_same_bytes(
    tmp_path: Path, call: Call, rendered: Path, monkeypatch: pytest.MonkeyPatch, parts: int, order: tuple[int, ...], workers: int
) -> None:
    monkeypatch.setattr(writer, "PICTURES_WORTH_PROCESSES", 0)
    whole = None
    for number in order:
        part = f"{number}/{parts}"
        status, out, _ = call(write.main, *WORDS[:-1], workers, "--out", tmp_path / "set", "--part", part)
        assert status == 0
        whole = (tmp_path / "set/manifest.json").exists()
        if not whole:
            assert out == f"part {part} is written; the part that ends last writes {tmp_path}/set/manifest.json\n"
            assert number != order[-1]
        else:
            assert out.endswith(f"{tmp_path}/set/manifest.json\n")
    assert whole
    assert contents(tmp_path / "set") == contents(rendered)


def test_parts_at_the_same_time_write_the_same_bytes(tmp_path: Path, rendered: Path) -> None:
    """One of them twice, as when a job is sent again while the first still ends."""
    command = [sys.executable, "-m", "shards.write", *WORDS, "--out", str(tmp_path / "set"), "--part"]
    jobs = [subprocess.Popen([*command, part], cwd=ROOT, stderr=subprocess.PIPE, text=True) for part in ("1/2", "2/2", "1/2")]
    ends = [(job.communicate()[1], job.returncode) for job in jobs]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert contents(tmp_path / "set") == contents(rendered)


def test_another_process_completes_the_set_meanwhile(
    tmp_path: Path, call: Call, rendered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of what is under way goes from under this process's feet."""
    words = ("--out", tmp_path / "set", "--part", "1/1")

    def meanwhile(seed: int, identity: int, camera: int, number: int) -> Any:
        if (identity, number) == (3, 0):
            monkeypatch.setattr("shards.sources.rendered.render", render)
            write.main([*WORDS, *map(str, words)])
            assert (tmp_path / "set/manifest.json").exists()
        return render(seed, identity, camera, number)

    monkeypatch.setattr("shards.sources.rendered.render", meanwhile)
    status, out, _ = call(write.main, *WORDS, *words)
    assert status == 0
    assert out.endswith(f"{tmp_path}/set/manifest.json\n")
    assert contents(tmp_path / "set") == contents(rendered)


def test_the_whole_command_completes_what_parts_left(
    tmp_path: Path, call: Call, rendered: Path, rendered_here: list[int]
) -> None:
    assert call(write.main, *WORDS, "--out", tmp_path / "set", "--part", "2/3")[0] == 0
    already = len(rendered_here)
    assert 0 < already < 20
    assert call(write.main, *WORDS, "--out", tmp_path / "set")[0] == 0
    assert contents(tmp_path / "set") == contents(rendered)
    assert len(rendered_here) == 40


def test_a_part_that_starts_when_the_set_is_whole(rendered: Path, tmp_path: Path, call: Call, rendered_here: list[int]) -> None:
    status, out, _ = call(write.main, *WORDS, "--out", rendered, "--part", "3/3")
    assert (status, rendered_here) == (0, [])
    assert out.endswith(f"{rendered}/manifest.json\n")
    status, _, line = call(write.main, *WORDS, "--out", rendered, "--objects", "people", "--part", "3/3")
    assert (status, line) == (2, f"error: {rendered}: exists and is not an empty folder; give a new --out, or remove it first")


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/", "a/b", "-1/2", "1/0"])
def test_parts_that_are_none(tmp_path: Path, call: Call, part: str) -> None:
    status, _, line = call(write.main, *WORDS, "--out", tmp_path / "set", f"--part={part}")
    assert status == 2
    assert f"--part {part}: must be I/N with I from 1 to N" in line
    assert not (tmp_path / "set").exists()


def large(number: int) -> bytes:
    return np.random.default_rng(number).bytes(100_000)


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_pictures_bytes(tmp_path: Path, workers: int) -> None:
    """100 MB pass through; what is held is the chunks under way."""
    numbers = iter(itertools.count())
    splits: Splits = {
        split: [Picture(n // 4, n % 4, f"{n}.jpg", partial(large, next(numbers))) for n in range(count)]
        for split, count in (("train", 900), ("query", 10), ("gallery", 100))
    }
    tracemalloc.start()
    writer.write_shards(splits, tmp_path / "set", {"name": "large"}, workers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(path.stat().st_size for path in (tmp_path / "set").glob("*.tar")) > 100e6
    assert peak < 30e6


def test_a_picture_that_goes_while_it_is_written(tmp_path: Path, call: Call) -> None:
    from shards.sources import image_folder

    root = layout(tmp_path / "in", *SIX)
    splits = image_folder(root)
    gone = root / "query/q/2_c2.jpg"
    data = gone.read_bytes()
    gone.unlink()
    with pytest.raises(UserError, match=r"query/q/2_c2.jpg: gone since the source was listed"):
        writer.write_shards(splits, tmp_path / "set", {})
    gone.write_bytes(data)
    manifest = writer.write_shards(splits, tmp_path / "set", {})
    assert manifest is not None
    assert manifest == writer.write_shards(splits, tmp_path / "other", {})
