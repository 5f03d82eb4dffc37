"""Any set: one folder an identity, or a CSV that lists the pictures."""

from __future__ import annotations

import csv as csv_module
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from shards.sources.files import find_fit, found_in, is_picture_name, refuse
from shards.sources.picture import Picture, Splits, reader
from vmreid.data.manifest import SPLITS, UNKNOWN
from vmreid.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
COLUMNS = ("path", "id", "camera", "view", "split")
NEEDED = ("path", "id")
HELD = "one folder an identity, or train, query and gallery with those"


@dataclass(frozen=True, slots=True)
class _Row:
    """A picture as its folder or line has it."""

    path: str  # below the root
    identity: str
    camera: int | None
    view: int | None
    split: str  # empty: to be chosen


def image_folder(root: Path, csv: Path | None = None) -> Splits:
    """One folder an identity, below ``train``, ``query`` and ``gallery``, or directly below ``root``; or a ``csv``.

    All this may lie in a folder below ``root``, but what a CSV lists. Where nobody says the splits, the first half of the
    sorted identities trains, and of each other identity the first picture of each camera that has more is a query (where
    none has more: its first picture). Hidden files do not count.
    The camera is the number behind ``c`` or ``cam`` in the file name (``0002_c1s1_000451.jpg``); where no picture has one,
    queries and gallery count as two cameras. The CSV has the columns path (below ``root``), id, camera, view, split; the
    last three may be missing.
    """
    if csv is None:
        root = _base(root)
    rows = list(_folder_rows(root) if csv is None else _csv_rows(root, csv))
    pids = {name: pid for pid, name in enumerate(sorted({row.identity for row in rows}))}
    if all(not row.split for row in rows):
        rows = _choose_splits(rows)
    has_cameras = any(row.camera is not None for row in rows)
    splits: Splits = {name: [] for name in SPLITS}
    for row in rows:
        camera = row.camera if has_cameras else int(row.split == "gallery")
        if camera is None:
            raise UserError(f"{root / row.path}: no camera in its {'name' if csv is None else 'line'}, others have one "
                            f"(c1, cam1); rename it so that it has")  # fmt: skip
        name = row.path.removeprefix(f"{row.split}/") if csv is None else row.path
        read = reader(os.path.join(root, row.path))
        splits[row.split].append(Picture(pids[row.identity], camera, name, read, row.view))
    return splits


def _base(root: Path) -> Path:
    """``root``, or the folder directly below it that holds the identities."""
    found = find_fit(root, _layouts, HELD)
    if not found:
        raise UserError(f"{root}: no folder with pictures in it (found {found_in(root)}); --root is the folder that holds {HELD}")
    return found[0]


def _layouts(place: Path) -> list[list[str]]:
    """By what ``place`` holds a set: splits, else an identity, the first found with a picture, since there may be a million."""
    if splits := _splits_in(place):
        return [splits]
    with os.scandir(place) as entries:
        return list(islice(([entry.name] for entry in entries if entry.is_dir() and _pictures_in(entry.path)), 1))


def _splits_in(place: Path) -> list[str]:
    return [name for name in SPLITS if (place / name).is_dir()]


def _pictures_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_picture_name(entry.name, SUFFIXES) and entry.is_file())


def _folder_rows(root: Path) -> Iterator[_Row]:
    """Sorted by split, identity and name."""
    for split in SPLITS if _splits_in(root) else ("",):
        folder = root / split
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder (beside it: {found_in(folder.parent)}); image_folder needs train, query and gallery"
            )
        with os.scandir(folder) as entries:
            identities = sorted(entry.name for entry in entries if entry.is_dir())
        for identity in identities:
            for name in _pictures_in(os.path.join(folder, identity)):
                yield _Row(f"{split}/{identity}/{name}" if split else f"{identity}/{name}", identity, _camera(name), None, split)


def _camera(name: str) -> int | None:
    match = re.search(r"(?:^|_)c(?:am)?(\d+)", name.rpartition(".")[0])
    return int(match[1]) if match else None


def _csv_rows(root: Path, csv: Path) -> Iterator[_Row]:
    """In the order of their paths. Raises UserError for a line that is not as the header says, and for missing files."""
    if not csv.is_file():
        raise UserError(f"{csv}: no such file; --csv takes a table with the columns {', '.join(COLUMNS)}")
    try:
        with csv.open(newline="", encoding="utf-8-sig") as file:
            lines = csv_module.DictReader(file, strict=True)
            columns = list(lines.fieldnames or ())
            if not set(NEEDED) <= set(columns) <= set(COLUMNS) or len(set(columns)) < len(columns):
                raise UserError(
                    f"{csv}: has the columns {', '.join(columns)}; path and id are needed, camera, view and split may be there"
                )
            rows = [_csv_row(f"{csv} line {lines.line_num}", line, columns) for line in lines]
    except (csv_module.Error, UnicodeDecodeError) as error:
        raise UserError(f"{csv}: not readable as a table ({error}); write it as CSV in UTF-8") from None
    paths = [row.path for row in rows]
    missing = [path for path in paths if not os.path.isfile(root / path)]
    refuse(csv, paths, missing, "paths are no files", f"they count from --root, {root}")
    return iter(sorted(rows, key=lambda row: (row.path, row.identity)))


def _csv_row(where: str, line: dict[str, str], columns: list[str]) -> _Row:
    if None in line or None in line.values() or not all(line[name] for name in NEEDED):
        raise UserError(f"{where}: needs a value for each of {', '.join(columns)}; path and id may not be empty")
    if "split" in columns and line["split"] not in SPLITS:
        raise UserError(f"{where}: split {line['split']!r}; must be train, query or gallery")
    camera, view = (_number(where, line, name) for name in ("camera", "view"))
    if "view" in columns and view is None:
        view = UNKNOWN
    return _Row(line["path"], line["id"], camera, view, line.get("split", ""))


def _number(where: str, line: dict[str, str], name: str) -> int | None:
    text = line.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"-1|[0-9]{1,9}", text) or (name == "camera" and text == "-1"):
        raise UserError(f"{where}: {name} {text!r}; must be a whole number")
    return int(text)


def _choose_splits(rows: list[_Row]) -> list[_Row]:
    by_identity: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_identity[row.identity].append(row)
    chosen = []
    for number, identity in enumerate(sorted(by_identity)):
        group = by_identity[identity]
        queries = {row.path for row in _queries(group)}
        for row in group:
            split = "train" if number < len(by_identity) // 2 else "query" if row.path in queries else "gallery"
            chosen.append(_Row(row.path, row.identity, row.camera, row.view, split))
    return chosen


def _queries(rows: list[_Row]) -> list[_Row]:
    by_camera: dict[int | None, list[_Row]] = defaultdict(list)
    for row in rows:
        by_camera[row.camera].append(row)
    return [group[0] for group in by_camera.values() if len(group) > 1] or rows[:1]
