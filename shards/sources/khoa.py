"""The Vehicle-Re-ID-Dataset of Khoa et al.: two cameras, three lists."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from shards.sources.files import find_base, read_lines
from shards.sources.picture import Picture, Splits, reader
from vmreid.errors import UserError

KHOA_NAME = re.compile(r"^(car|motorcycle|truck|bus)_(\d+)_cam([12])\.jpg$")


def vehicle_khoa(root: Path) -> Splits:
    """The Vehicle-Re-ID-Dataset of Khoa et al.: train.txt and val.txt train, test.txt is query (camera 1) and gallery (camera 2).

    An identity is the pair (type, number): numbers repeat between types.
    """
    base, _ = find_base(root, ("images", "train.txt", "val.txt", "test.txt"))
    identities: dict[tuple[str, int], list[tuple[str, str, int]]] = defaultdict(list)
    for listed, part in (("train", "train"), ("val", "train"), ("test", "test")):
        for name in read_lines(base / f"{listed}.txt", "the set comes with it"):
            match = KHOA_NAME.match(name)
            if not match:
                raise UserError(f"{base / listed}.txt: {name} is not TYPE_NUMBER_camN.jpg; take the list as published")
            identities[match[1], int(match[2])].append((part, name, int(match[3])))
    splits: Splits = {"train": [], "query": [], "gallery": []}
    for pid, key in enumerate(sorted(identities)):
        for part, name, camera in sorted(identities[key]):
            split = "train" if part == "train" else "query" if camera == 1 else "gallery"
            path = base / "images" / part / name
            if not path.is_file():
                raise UserError(f"{path}: listed but missing; the copy at {base} is not whole")
            splits[split].append(Picture(pid, camera, name, reader(path)))
    return splits
