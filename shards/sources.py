"""Where pictures come from: each source lists the pictures of its splits; their bytes are read when they are written."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from shards.synthetic import render
from vmreid.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Picture:
    """One picture of a source: identity, camera, a name for people, and how to get its encoded bytes."""

    pid: int
    camid: int
    name: str
    read: Callable[[], bytes]


Splits = dict[str, list[Picture]]


OBJECTS = {"both": (1, 0), "people": (2, 0), "vehicles": (2, 1)}  # identity i is the renderer's number factor * i + offset


def synthetic(identities: int, cameras: int, pictures: int, seed: int, objects: str = "both") -> Splits:
    """Rendered people, vehicles or both in turn: the first half of the identities train, the others are query and gallery.

    Picture j of identity i is seen by camera (i + j) modulo ``cameras``. The first quarter of a test identity's pictures
    (at least one) are queries, so each has positives in other cameras.
    """
    factor, offset = OBJECTS[objects]
    splits: Splits = {"train": [], "query": [], "gallery": []}
    queries = max(1, pictures // 4)
    for identity in range(identities):
        for number in range(pictures):
            camera = (identity + number) % cameras
            test_split = "query" if number < queries else "gallery"
            split = "train" if identity < identities // 2 else test_split
            name = f"{identity:06d}_c{camera + 1}_{number:04d}.jpg"
            read = partial(_rendered, seed, factor * identity + offset, camera, number)
            splits[split].append(Picture(identity, camera, name, read))
    return splits


def _rendered(seed: int, identity: int, camera: int, number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(seed, identity, camera, number)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def image_folder(root: Path) -> Splits:
    """One folder an identity, below ``train``, ``query`` and ``gallery``, or directly below ``root``.

    In the second form the first half of the sorted identities trains, and of each other identity the first picture of
    each camera that has more is a query (where none has more: its first picture). Hidden files do not count. The camera
    is the number behind ``c`` or ``cam`` in the file name (``0002_c1s1_000451.jpg``); where no name has one, queries and
    gallery count as two cameras.
    """
    folders = {name: root / name for name in ("train", "query", "gallery")}
    if any(folder.is_dir() for folder in folders.values()):
        found = {name: _identity_folders(folder) for name, folder in folders.items()}
    else:
        identities = _identity_folders(root)
        names = sorted(identities)
        test = {name: identities[name] for name in names[len(names) // 2 :]}
        query = {name: _queries(paths) for name, paths in test.items()}
        rest = {name: [path for path in paths if path not in query[name]] for name, paths in test.items()}
        found = {
            "train": {name: identities[name] for name in names[: len(names) // 2]},
            "query": query,
            "gallery": rest,
        }
    pids = {name: pid for pid, name in enumerate(sorted(set().union(*found.values())))}
    has_cameras = any(_camera(path) is not None for group in found.values() for paths in group.values() for path in paths)
    splits: Splits = {}
    for split, group in found.items():
        pictures = []
        for name, paths in group.items():
            for path in paths:
                camera = _camera(path) if has_cameras else int(split == "gallery")
                if camera is None:
                    raise UserError(f"{path}: no camera in its name, others have one (c1, cam1); rename it so that it has")
                pictures.append(Picture(pids[name], camera, f"{name}/{path.name}", path.read_bytes))
        splits[split] = pictures
    return splits


def _identity_folders(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        there = ", ".join(sorted(entry.name for entry in folder.parent.iterdir())[:6]) if folder.parent.is_dir() else "nothing"
        raise UserError(f"{folder}: no such folder (beside it: {there}); image_folder needs train, query and gallery")
    found = {
        entry.name: sorted(path for path in entry.iterdir() if _is_picture(path))
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
    }
    return {name: paths for name, paths in found.items() if paths}


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _queries(paths: list[Path]) -> list[Path]:
    by_camera: dict[int | None, list[Path]] = defaultdict(list)
    for path in paths:
        by_camera[_camera(path)].append(path)
    return [group[0] for group in by_camera.values() if len(group) > 1] or paths[:1]


def _camera(path: Path) -> int | None:
    match = re.search(r"(?:^|_)c(?:am)?(\d+)", path.stem)
    return int(match[1]) if match else None


KHOA_NAME = re.compile(r"^(car|motorcycle|truck|bus)_(\d+)_cam([12])\.jpg$")


def vehicle_khoa(root: Path) -> Splits:
    """The Vehicle-Re-ID-Dataset of Khoa et al.: train.txt and val.txt train, test.txt is query (camera 1) and gallery (camera 2).

    An identity is the pair (type, number): numbers repeat between types.
    """
    identities: dict[tuple[str, int], list[tuple[str, str, int]]] = defaultdict(list)
    for listed, part in (("train", "train"), ("val", "train"), ("test", "test")):
        for name in _list(root, listed):
            match = KHOA_NAME.match(name)
            if not match:
                raise UserError(f"{root / listed}.txt: {name} is not TYPE_NUMBER_camN.jpg; take the list as published")
            identities[match[1], int(match[2])].append((part, name, int(match[3])))
    splits: Splits = {"train": [], "query": [], "gallery": []}
    for pid, key in enumerate(sorted(identities)):
        for part, name, camera in sorted(identities[key]):
            split = "train" if part == "train" else "query" if camera == 1 else "gallery"
            path = root / "images" / part / name
            if not path.is_file():
                raise UserError(f"{path}: listed but missing; the copy at {root} is not whole")
            splits[split].append(Picture(pid, camera, name, path.read_bytes))
    return splits


def _list(root: Path, part: str) -> list[str]:
    path = root / f"{part}.txt"
    if not path.is_file():
        raise UserError(f"{path}: missing; --root is the folder that holds train.txt, val.txt, test.txt and images/")
    return path.read_text().split()


def check(splits: Splits, where: str) -> None:
    """Raise UserError for an empty split or an identity that both trains and tests."""
    for name, pictures in splits.items():
        if not pictures:
            raise UserError(f"{where}: no pictures for {name} ({', '.join(sorted(SUFFIXES))} count); check the folder")
    both = _pids(splits["train"]) & (_pids(splits["query"]) | _pids(splits["gallery"]))
    if both:
        names = [picture.name for picture in splits["train"] if picture.pid in both]
        raise UserError(f"{where}: {len(both)} identities both train and test, such as that of {names[0]}; keep each in one")


def _pids(pictures: Iterable[Picture]) -> set[int]:
    return {picture.pid for picture in pictures}
