"""``shards.verify``: a line for each fault and exit status 1; 2 where there is no manifest to verify by."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from shard_commands import Call, jpeg, write_folder

from shards import verify
from vmreid.data.manifest import read_index, read_manifest


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
    assert faults(call, folder)[0] == f"{path.name}: bytes differ from the manifest's digest"
    data[int(row["offset"])] ^= 1  # no JPEG any more
    path.write_bytes(data)
    assert faults(call, folder)[1].startswith(f"{path.name} picture 00000002: does not decode")


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
