"""What the tests of ``shards.write`` and ``shards.verify`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from shards import write
from vmreid.data.manifest import read_index, read_manifest
from vmreid.data.streams import ShardRanges

SMALL = ("--identities", "8", "--cameras", "3", "--pictures", "5", "--seed", "3")
Call = Callable[..., tuple[int, str, str]]  # see the fixture ``call``


def jpeg(path: Path, kind: str = "JPEG") -> Path:
    """Write a small picture that depends on its path's last parts."""
    seed = list("/".join(path.parts[-3:]).encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 8, 3), np.uint8)).save(path, kind)
    return path


def pictures_of(folder: Path) -> dict[str, list[tuple[int, int, bytes]]]:
    """By split, (pid, camid, bytes) of each picture as the index says."""
    found = {}
    for name, split in read_manifest(folder).splits.items():
        index = read_index(folder, split)
        ranges = ShardRanges(folder, split, index)
        found[name] = [(int(row["pid"]), int(row["camid"]), ranges.picture(at)[0]) for at, row in enumerate(index)]
    return found


def cameras_of(folder: Path, split: str) -> list[tuple[int, int]]:
    return [(pid, camid) for pid, camid, _ in pictures_of(folder)[split]]


def write_folder(call: Call, root: Path, out: Path, source: str = "image_folder") -> Path:
    status, _, line = call(write.main, source, "--root", root, "--out", out)
    assert status == 0, line
    return out


def refusal(call: Call, root: Path, out: Path, source: str = "image_folder") -> str:
    status, _, line = call(write.main, source, "--root", root, "--out", out)
    assert status == 2
    assert line.startswith("error: ")
    assert not out.exists()
    return line
