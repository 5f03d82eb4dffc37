"""VeRi-776: vehicles with view and type, where the files that state them are there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from shards.sources.files import Naming, find_base, read_lines, refuse
from shards.sources.picture import Counts, Published, Splits
from vmreid.data.manifest import UNKNOWN
from vmreid.errors import UserError

FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
NAMING = Naming(re.compile(r"(?P<pid>\d+)_c(?P<camera>\d{3})_"), range(0, 777), range(1, 21))
VIEW_FIELDS = 42  # path, 20 points, view
VIEWS = range(8)  # front, rear, left, left front, left rear, right, right front, right rear
TYPE_ERRATA = {3: 2, 7: 2, 41: 2}  # vehicles whose type is 0 in old copies


def veri776(root: Path) -> Splits:
    """VeRi-776 with each picture's view (keypoint_train.txt, keypoint_test.txt) and type (train_label.xml, test_label.xml).

    A picture that those files, or a copy without them, leave out has -1.
    """
    base, _ = find_base(root, tuple(FOLDERS.values()))
    views = _views(base / "keypoint_train.txt") | _views(base / "keypoint_test.txt")
    types = _types(base / "train_label.xml") | _types(base / "test_label.xml")
    splits: Splits = {}
    for split, folder in FOLDERS.items():
        splits[split] = []
        for picture in NAMING.pictures(base, folder):
            name = PurePosixPath(picture.name).name
            kind = types.get(name, UNKNOWN) or TYPE_ERRATA.get(picture.pid, UNKNOWN)
            splits[split].append(replace(picture, view=views.get(name, UNKNOWN), type=kind))
    return splits


def veri776_counts() -> Published:
    """The readme and the loaders count the identities of train differently."""
    return {
        "train": Counts((576, 575), (37_778,), (20,)),
        "query": Counts((200,), (1_678,)),
        "gallery": Counts((200,), (11_579,)),
    }


def _views(path: Path) -> dict[str, int]:
    """By base name; lines repeat. Raises UserError where they contradict each other or have another form."""
    if not path.is_file():
        return {}
    lines = read_lines(path, "")
    fields = [line.split() for line in lines]
    fits = [len(words) == VIEW_FIELDS and words[-1].isdecimal() and int(words[-1]) in VIEWS for words in fields]
    refuse(path, lines, [line[:60] for line, fit in zip(lines, fits, strict=True) if not fit],
           f"lines are not a path, 20 points and a view from 0 to {VIEWS.stop - 1}")  # fmt: skip
    views: dict[str, int] = {}
    unlike = []
    for words in fields:
        name, view = PurePosixPath(words[0]).name, int(words[-1])
        if views.setdefault(name, view) != view:
            unlike.append(name)
    refuse(path, lines, unlike, "lines give a picture a second view")
    return views


def _types(path: Path) -> dict[str, int]:
    """By base name. The files declare gb2312, which the parser refuses, so they are decoded here."""
    if not path.is_file():
        return {}
    text = path.read_bytes().decode("gb18030", errors="replace")
    try:
        items = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text)).iter("Item")
        return {item.attrib["imageName"]: int(item.attrib["typeID"]) for item in items if "typeID" in item.attrib}
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not readable as VeRi-776's labels ({error}); take the file as published, or away") from None
