"""``shards.verify``: a line for each fault and exit status 1; 2 where there is no manifest to verify by."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from shard_commands import Call, jpeg, write_folder

from shards import faults as finder
from shards import verify
from shards.sources import Picture
from shards.writer import write_shards
from vmreid.data.manifest import parse_manifest, read_index, read_manifest
from vmreid.errors import UserError


def test_a_whole_set(rendered: Path, call: Call) -> None:
    status, out, _ = call(verify.main, rendered)
    assert (status, out) == (0, f"{rendered}: 40 pictures, 0 faults, digest {read_manifest(rendered).digest}\n")


def faults(call: Call, folder: Path) -> list[str]:
    status, out, _ = call(verify.main, folder)
    assert status == 1
    *lines, last = out.splitlines()
    assert f"40 pictures, {len(lines)} faults" in last
    return lines


def test_a_flipped_byte_in_a_picture(folder: Path, call: Call) -> None:
    row = read_index(folder, read_manifest(folder).splits["gallery"])[2]
    path = folder / f"gallery-{row['shard']:06d}.tar"
    data = bytearray(path.read_bytes())
    data[int(row["offset"]) + int(row["length"]) // 2] ^= 1
    path.write_bytes(data)
    told = [
        f"{path.name}: bytes differ from the manifest's digest",
        f"{path.name} picture 00000002: bytes differ from the index's CRC-32",
    ]
    assert faults(call, folder)[:2] == told
    data[int(row["offset"])] ^= 1  # no JPEG any more
    path.write_bytes(data)
    first, second, third = faults(call, folder)
    assert [first, second] == told
    assert third.startswith(f"{path.name} picture 00000002: does not decode")


def test_a_truncated_shard(folder: Path, call: Call) -> None:
    path = folder / "query-000001.tar"
    size = path.stat().st_size
    os.truncate(path, 900)
    lines = faults(call, folder)
    assert lines[0] == f"query-000001.tar: 900 bytes, truncated or changed; the manifest says {size} bytes"
    assert all(line.startswith("query-000001.tar: ") for line in lines)


def test_missing_files_are_listed_together(folder: Path, call: Call) -> None:
    for name in ("train-000000.tar", "gallery-000002.tar", "query.index.npy"):
        (folder / name).unlink()
    assert faults(call, folder) == ["train-000000.tar: missing", "query.index.npy: missing", "gallery-000002.tar: missing"]


def test_an_edited_index(folder: Path, call: Call) -> None:
    path = folder / "train.index.npy"
    index = np.load(path)
    index["camid"][3] += 1
    np.save(path, index)
    assert faults(call, folder) == ["train.index.npy: bytes differ from the manifest's digest"]


@pytest.mark.parametrize("change", ["folder", "manifest", "version", "edited"])
def test_no_manifest_to_verify_by(folder: Path, call: Call, change: str) -> None:
    path = folder / "manifest.json"
    if change == "manifest":
        path.unlink()
    elif change != "folder":
        fields = json.loads(path.read_text())
        fields |= {"format_version": 99} if change == "version" else {"digest": "0" * 64}
        path.write_text(json.dumps(fields))
    status, out, line = call(verify.main, folder / "none" if change == "folder" else folder)
    assert (status, out) == (2, "")
    assert line.startswith(f"error: {folder}")
    assert "python -m shards.write" in line


def test_a_picture_that_does_not_decode(tmp_path: Path, call: Call) -> None:
    root = tmp_path / "in"
    for name in ("train/1/1_c1.jpg", "query/2/2_c1.jpg", "gallery/2/2_c2.jpg", "gallery/2/2_c3.jpg"):
        jpeg(root / name)
    (root / "gallery/2/2_c3.jpg").write_bytes((root / "gallery/2/2_c3.jpg").read_bytes()[:200])
    (root / "query/2/2_c1.jpg").write_bytes(b"")
    out = write_folder(call, root, tmp_path / "out")
    status, text, _ = call(verify.main, out)
    assert status == 1
    first, second, last = text.splitlines()
    assert first.startswith("query-000000.tar picture 00000000: does not decode as a picture")
    assert second.startswith("gallery-000000.tar picture 00000001: does not decode as a picture")
    assert "4 pictures, 2 faults" in last


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)


@pytest.fixture
def always_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sets, too, are looked at by several processes."""
    monkeypatch.setattr(finder, "PICTURES_WORTH_PROCESSES", 0)


@pytest.mark.usefixtures("always_processes")
def test_any_number_of_workers_lists_the_same_in_the_same_order(folder: Path, call: Call) -> None:
    manifest = read_manifest(folder)
    for split in manifest.splits.values():
        for number in (0, len(split.shards) - 1):
            flip(folder / split.shards[number].name, -1)
        flip(folder / split.shards[1].name, int(read_index(folder, split)["offset"][0]))  # the first bytes of its first JPEG
    (folder / manifest.splits["query"].index).unlink()
    listed = [call(verify.main, folder, "--workers", workers) for workers in (1, 2, 3)]
    assert [status for status, _, _ in listed] == [1, 1, 1]
    assert listed[0][1] == listed[1][1] == listed[2][1]
    names = [line.split(":")[0].split()[0] for line in listed[0][1].splitlines()[:-1]]
    last = {name: f"{name}-{len(manifest.splits[name].shards) - 1:06d}.tar" for name in manifest.splits}
    assert names == [
        *("train-000000.tar", *["train-000001.tar"] * 3, last["train"]),
        "query.index.npy",
        *("gallery-000000.tar", *["gallery-000001.tar"] * 3, last["gallery"]),
    ]


@pytest.mark.usefixtures("always_processes")
def test_a_killed_process_is_an_error_and_no_hang(tmp_path: Path) -> None:
    slow = io.BytesIO()
    Image.new("1", (5000, 5000)).save(slow, "PNG")  # a fraction of a second each
    pictures = [Picture(pid, 0, "it", slow.getvalue) for pid in range(8)]
    manifest = write_shards({"train": pictures}, tmp_path / "set", {"name": "slow"})
    (tmp_path / "set" / manifest.splits["train"].shards[0].name).unlink()
    lines = finder.find_faults(tmp_path / "set", manifest, 2)
    assert next(lines).endswith("missing")
    for process in psutil.Process().children(recursive=True):
        if process.ppid() != os.getpid():  # the fork server's children
            process.kill()
    with pytest.raises(UserError, match=r"^a process of 2 was killed.*fewer --workers$"):
        list(lines)


def test_damaged_shards_and_indices_end_in_lines(folder: Path) -> None:
    """Bytes are changed where headers, fields and pictures lie; nothing is raised, and each change is told."""
    random = np.random.default_rng(0)
    manifest = parse_manifest(folder)
    for number in range(60):
        split = manifest.splits[("train", "query", "gallery")[number % 3]]
        path = folder / (split.index if number % 10 == 9 else split.shards[number % len(split.shards)].name)
        whole = path.read_bytes()
        data = bytearray(whole)
        for place in random.integers(0, len(data) if number % 2 else 512, 4):
            data[place] = data[place] ^ int(random.integers(1, 256))
        path.write_bytes(data)
        lines = list(finder.find_faults(folder, manifest))
        assert lines[0] == f"{path.name}: bytes differ from the manifest's digest"
        assert not any("\n" in line for line in lines)
        path.write_bytes(whole)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"null", b"\xff", b'{"pid": {}, "camid": []}'])
def test_fields_that_are_none(folder: Path, call: Call, content: bytes) -> None:
    path = folder / "train-000000.tar"
    data = path.read_bytes()
    begin = data.index(b'{"pid"')
    end = data.index(b"}", begin) + 1
    path.write_bytes(data[:begin] + content.ljust(end - begin) + data[end:])
    assert any(line.startswith("train-000000.tar") for line in faults(call, folder)[1:])


def test_a_compressed_shard_is_not_one(folder: Path, call: Call) -> None:
    path = folder / "train-000000.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    lines = faults(call, folder)
    assert any(line.startswith("train-000000.tar: not readable as a tar of pictures") for line in lines)


def test_the_sheet_is_drawn_of_a_whole_set_alone(folder: Path, call: Call) -> None:
    path = folder.parent / "sheet.png"
    status, out, _ = call(verify.main, folder, "--sheet", path)
    assert (status, out.splitlines()[-1]) == (0, str(path))
    assert Image.open(path).format == "PNG"
    path.unlink()
    flip(folder / "train-000000.tar", -1)
    status, out, _ = call(verify.main, folder, "--sheet", path)
    assert (status, out.splitlines()[-1]) == (1, f"{path}: not drawn of a set with faults")
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--workers", "0"], "--workers 0"), (["--sheet", "none/it.png"], "none"), (["--sheet", "."], "--sheet .")],
)
def test_wrong_words_are_one_line(folder: Path, call: Call, words: list[str], value: str) -> None:
    status, out, line = call(verify.main, folder, *words)
    assert (status, out) == (2, "")
    assert line.startswith("error: ")
    assert value in line
