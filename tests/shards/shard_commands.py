"""What the tests of ``shards.write`` and ``shards.verify`` share."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards import write
from vmreid.data.manifest import read_index, read_manifest
from vmreid.data.ranges import ShardRanges

SMALL = ("--identities", "8", "--cameras", "3", "--pictures", "5", "--seed", "3")
Call = Callable[..., tuple[int, str, str]]  # see the fixture ``call``


def jpeg(path: Path, kind: str = "JPEG") -> Path:
    """Write a small picture that depends on its path's last parts."""
    seed = list("/".join(path.parts[-3:]).encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 8, 3), np.uint8)).save(path, kind)
    return path


def layout(root: Path, *names: str) -> Path:
    """Small pictures of these names below ``root``."""
    for name in names:
        jpeg(root / name, "PNG" if name.endswith("png") else "JPEG")
    return root


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


def facts_of(folder: Path, split: str) -> list[dict[str, Any]]:
    """The json member of each picture, in order."""
    facts = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    assert content
                    facts.append(json.load(content))
    return facts


def write_folder(call: Call, root: Path, out: Path, source: str = "image_folder", *options: object) -> Path:
    status, _, line = call(write.main, source, "--root", root, "--out", out, *options)
    assert status == 0, line
    return out


def refusal(call: Call, root: Path, out: Path, source: str = "image_folder", *options: object) -> str:
    status, _, line = call(write.main, source, "--root", root, "--out", out, *options)
    assert status == 2
    assert line.startswith("error: ")
    assert not out.exists()
    return line
