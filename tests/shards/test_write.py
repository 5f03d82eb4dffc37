"""``shards.write synthetic``: the same bytes each time, whole identities, and places that cannot be written to."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_commands import SMALL, Call, cameras_of, pictures_of

from shards import sources, write, writer
from shards.synthetic import render
from vmreid.data.manifest import SPLITS, read_index, read_manifest
from vmreid.errors import UserError

ROOT = Path(__file__).parents[2]


def test_two_writes_are_the_same_bytes(rendered: Path, tmp_path: Path, call: Call) -> None:
    assert call(write.main, "synthetic", *SMALL, "--out", tmp_path)[0] == 0  # an empty folder will do
    names = sorted(path.name for path in rendered.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (rendered / name).read_bytes(), name
    other = tmp_path / "other seed"
    assert call(write.main, "synthetic", *SMALL[:-1], "4", "--out", other)[0] == 0
    assert read_manifest(other).digest != read_manifest(rendered).digest


def test_synthetic_splits(rendered: Path) -> None:
    pids = {split: {pid for pid, _ in cameras_of(rendered, split)} for split in SPLITS}
    assert pids == {"train": {0, 1, 2, 3}, "query": {4, 5, 6, 7}, "gallery": {4, 5, 6, 7}}
    counts = {name: split.pictures for name, split in read_manifest(rendered).splits.items()}
    assert counts == {"train": 20, "query": 4, "gallery": 16}
    assert all(len({camid for _, camid in cameras_of(rendered, split)}) == 3 for split in SPLITS)
    assert read_manifest(rendered).source == {
        "name": "synthetic",
        "identities": 8,
        "cameras": 3,
        "pictures": 5,
        "seed": 3,
        "objects": "both",
    }


def test_several_processes_write_the_same_bytes(
    rendered: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PICTURES_WORTH_PROCESSES", 0)
    assert call(write.main, "synthetic", *SMALL, "--out", tmp_path, "--workers", "3")[0] == 0
    assert read_manifest(tmp_path).digest == read_manifest(rendered).digest
    for path in rendered.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def fail() -> bytes:
    raise UserError("picture 5: cannot be read")


def test_what_fails_in_a_process_is_told_and_leaves_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PICTURES_WORTH_PROCESSES", 0)
    splits = sources.synthetic(4, 2, 2, 0)
    whole = writer.write_shards(splits, tmp_path / "whole", {})
    mended = dict(splits, query=list(splits["query"]))
    splits["query"][1] = replace(splits["query"][1], read=fail)
    with pytest.raises(UserError, match=r"^picture 5: cannot be read$"):
        writer.write_shards(splits, tmp_path / "set", {}, workers=2)
    assert not (tmp_path / "set/manifest.json").exists()
    assert writer.write_shards(mended, tmp_path / "set", {}, workers=2) == whole


def die() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def test_a_killed_process_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PICTURES_WORTH_PROCESSES", 0)
    splits = sources.synthetic(4, 2, 2, 0)
    splits["query"][1] = replace(splits["query"][1], read=die)
    with pytest.raises(UserError, match=r"^a process of 2 was killed, .*fewer --workers$"):
        writer.write_shards(splits, tmp_path / "set", {}, workers=2)


@pytest.mark.parametrize(("objects", "numbers"), [("people", [0, 2, 4, 6]), ("vehicles", [1, 3, 5, 7]), ("both", [0, 1, 2, 3])])
def test_objects_are_the_renderers_even_or_odd_numbers(tmp_path: Path, call: Call, objects: str, numbers: list[int]) -> None:
    words = ("--identities", "8", "--cameras", "2", "--pictures", "2", "--objects", objects)
    assert call(write.main, "synthetic", *words, "--out", tmp_path)[0] == 0
    train = [data for _, _, data in pictures_of(tmp_path)["train"]]
    wanted = [
        jpeg_bytes(number, (number_of + picture) % 2, picture) for number_of, number in enumerate(numbers) for picture in (0, 1)
    ]
    assert train == wanted


def jpeg_bytes(identity: int, camera: int, picture: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(0, identity, camera, picture)).save(buffer, "JPEG", quality=sources.JPEG_QUALITY)
    return buffer.getvalue()


@pytest.mark.parametrize(("cameras", "pictures"), [(2, 2), (2, 3), (2, 8), (6, 2), (3, 9)])
def test_each_query_has_a_positive_in_another_camera(cameras: int, pictures: int) -> None:
    splits = sources.synthetic(5, cameras, pictures, 0)
    for query in splits["query"]:
        assert any(item.pid == query.pid and item.camid != query.camid for item in splits["gallery"])


@pytest.mark.parametrize("split", SPLITS)
def test_an_identity_is_one_range_of_one_shard(rendered: Path, split: str) -> None:
    index = read_index(rendered, read_manifest(rendered).splits[split])
    ends: dict[int, tuple[int, int]] = {}
    for row in index:
        pid, shard, offset, length = (int(row[name]) for name in ("pid", "shard", "offset", "length"))
        if pid in ends:
            assert ends[pid][0] == shard
            assert 0 < offset - ends[pid][1] < 4096  # its neighbour's padding, facts and header lie between
        ends[pid] = (shard, offset + length)
    pids = index["pid"].tolist()
    assert pids == sorted(pids)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("synthetic", "--identities", "3"), "--identities 3: must be at least 4"),
        (("synthetic", "--cameras", "one"), "'one'"),
        (("synthetic", "--objects", "cats"), "'cats'"),
        (("synthetic", "--workers", "0"), "--workers 0: must be at least 1"),
        (("synthetic", "--seeed", "1"), "did you mean --seed?"),
        (("market", "--root", "."), "'market'"),
        (("image_folder",), "--root"),
    ],
)
def test_wrong_arguments(tmp_path: Path, call: Call, words: tuple[str, ...], told: str) -> None:
    status, _, line = call(write.main, *words, "--out", tmp_path / "set")
    assert status == 2
    assert told in line
    assert not (tmp_path / "set").exists()


def test_out_in_use(rendered: Path, tmp_path: Path, call: Call) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in rendered.iterdir()}
    status, _, line = call(write.main, "synthetic", *SMALL, "--out", rendered)
    assert status == 2
    assert line == f"error: {rendered}: exists and is not an empty folder; give a new --out, or remove it first"
    assert {path.name: path.stat().st_mtime_ns for path in rendered.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    assert call(write.main, "synthetic", *SMALL, "--out", tmp_path / "file")[0] == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk(tmp_path: Path) -> None:
    words = f"{sys.executable} -m shards.write synthetic {' '.join(SMALL)} --out {tmp_path}/set"
    inside = f"mount -t tmpfs -o size=280k none {tmp_path} || exit 77; {words}; status=$?; ls {tmp_path}; exit $status"
    try:
        done = subprocess.run(["unshare", "--mount", "sh", "-c", inside], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if done.returncode in (1, 77):
        pytest.skip("this user cannot mount a small disk")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == f"error: {tmp_path}/set: No space left on device; free some space or choose another place"
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == ["set"]  # what `ls` printed: the command itself said nothing
    assert re.search(r"/set: \d+ of 12 shards are whole; the same command goes on from there\n", done.stderr)


def test_unwritable_place(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/vmreid-set"), tmp_path / "file" / "set"):
        status, _, line = call(write.main, "synthetic", *SMALL, "--out", out)
        assert status == 2
        assert line.startswith(f"error: {out}: cannot be made (")


def test_a_source_that_cannot_be_read(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int, identity: int, camera: int, number: int) -> Any:
        if identity == 5:
            raise PermissionError(13, "Permission denied", "picture 5")
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("shards.sources.rendered.render", fail)
    status, _, line = call(write.main, "synthetic", *SMALL, "--out", tmp_path / "set")
    assert (status, line) == (2, "error: picture 5: Permission denied; change its permissions or choose another place")
    assert not (tmp_path / "set/manifest.json").exists()
