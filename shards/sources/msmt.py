"""MSMT17, V1 and V2: four lists of pictures beside their folders."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shards.sources.files import check_ranges, find_base, is_picture_name, read_lines, refuse
from shards.sources.picture import Counts, Picture, Published, Splits, reader
from vmreid.errors import UserError

FORMS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))  # V1; V2, whose faces are blurred
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
LINE = re.compile(r"(?P<path>[^_]+_[^_]+_(?P<camera>\d+)_\S+)\s+(?P<pid>\d{1,9})$")
SUFFIXES = (".jpg", ".jpeg")
TRAIN_PIDS, TEST_PIDS, CAMERAS = range(1041), range(3060), range(1, 16)


def msmt17(root: Path, train_without_val: bool = False) -> Splits:
    """MSMT17 V1 or V2, which is told by its folders; ``list_val`` belongs to train unless ``train_without_val``.

    Both train and test count identities from 0, so those of the test begin behind the last of train and val.
    """
    base, (train_folder, test_folder) = find_base(root, *FORMS)
    missing = [name for name in LISTS if not (base / name).is_file()]
    if missing:
        raise UserError(f"{base}: lacks {', '.join(missing)}, and without lists nobody knows the splits; add them to the folder")
    train, val = (_listed(base, train_folder, name, TRAIN_PIDS, 0) for name in LISTS[:2])
    shift = 1 + max((picture.pid for picture in train + val), default=-1)
    query, gallery = (_listed(base, test_folder, name, TEST_PIDS, shift) for name in LISTS[2:])
    return {"train": train if train_without_val else train + val, "query": query, "gallery": gallery}


def msmt17_counts(train_without_val: bool) -> Published:
    return {
        "train": Counts((1_041,), () if train_without_val else (32_621,), (15,)),
        "query": Counts((3_060,), (11_659,), (15,)),
        "gallery": Counts((3_060,), (82_161,), (15,)),
    }


def _listed(base: Path, folder: str, name: str, pids: range, shift: int) -> list[Picture]:
    """The pictures of a list, sorted by path. Some copies have ``.jpeg`` where the list says ``.jpg``."""
    lines = read_lines(base / name, "MSMT17 comes with it")
    matches = [LINE.match(line) for line in lines]
    refuse(base / name, lines, [line for line, match in zip(lines, matches, strict=True) if not match],
           "lines are not PATH_..._CAMERA_... IDENTITY")  # fmt: skip
    listed = sorted((match["path"], int(match["pid"]), int(match["camera"])) for match in matches if match)
    check_ranges(base / name, [(pid, camera, path) for path, pid, camera in listed], pids, CAMERAS)
    there = _paths_below(base / folder)
    paths = [(path, path if path in there else _other_suffix(path)) for path, _, _ in listed]
    refuse(base / name, paths, [path for path, other in paths if other not in there], f"are not in {folder}")
    return [
        Picture(pid + shift, camera, f"{folder}/{path}", reader(f"{base}/{folder}/{path}"))
        for (_, path), (_, pid, camera) in zip(paths, listed, strict=True)
    ]


def _paths_below(folder: Path) -> set[str]:
    found: set[str] = set()
    for parent, _, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        found.update((below / name).as_posix() for name in names if is_picture_name(name, SUFFIXES))
    return found


def _other_suffix(path: str) -> str:
    stem, _, suffix = path.rpartition(".")
    return f"{stem}.{'jpeg' if suffix == 'jpg' else 'jpg'}"
