"""Market-1501 and the sets that took its form: three folders, names such as ``0002_c1s1_000451_03.jpg``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from shards.sources.files import JUNK, Naming, find_base
from shards.sources.picture import Counts, Published, Splits
from vmreid.errors import UserError

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
NAME = re.compile(r"(?P<pid>-?\d+)_c(?P<camera>\d+)\D")
DISTRACTOR = 0  # identity of the gallery pictures that show nobody's query

MARKET = Naming(NAME, range(1, 1502), range(1, 7))
DISTRACTORS = "images"
DUKE = Naming(NAME, range(1, 10_000), range(1, 9))
CUHK = Naming(NAME, range(0, 1468), range(1, 3), (".png",))


def market1501(root: Path) -> Splits:
    """Market-1501, with the 500k distractors in the gallery where the folder ``images`` is there.

    Junk (identity -1) is left out; the distractors of ``bounding_box_test`` (identity 0) stay in the gallery.
    """
    base, _ = find_base(root, (TRAIN, QUERY, GALLERY))
    splits = _three_folders(base, "", MARKET)
    if (base / DISTRACTORS).is_dir():
        nobody = replace(MARKET, pids=range(JUNK, DISTRACTOR + 1), junk=None)
        splits["gallery"] += [replace(picture, pid=DISTRACTOR) for picture in nobody.pictures(base, DISTRACTORS)]
    return splits


def market1501_counts() -> Published:
    """In the gallery the distractors are one identity more."""
    return {
        "train": Counts((751,), (12_936,), (6,)),
        "query": Counts((750,), (3_368,), (6,)),
        "gallery": Counts((751,), (15_913, 515_913), (6,)),
    }


def dukemtmc(root: Path) -> Splits:
    """DukeMTMC-reID, from a copy that the user has: its owners withdrew it, so it is never fetched."""
    base, _ = find_base(root, (TRAIN, QUERY, GALLERY))
    return _three_folders(base, "", DUKE)


def dukemtmc_counts() -> Published:
    return {
        "train": Counts((702,), (16_522,), (8,)),
        "query": Counts((702,), (2_228,), (8,)),
        "gallery": Counts((1_110,), (17_661,), (8,)),
    }


def occluded_duke(root: Path) -> Splits:
    """Occluded-Duke, from a copy that the user has."""
    return dukemtmc(root)


def occluded_duke_counts() -> Published:
    return {
        "train": Counts((702,), (15_618,), (8,)),
        "query": Counts((519,), (2_210,), (8,)),
        "gallery": Counts((1_110,), (17_661,), (8,)),
    }


def cuhk03np(root: Path, boxes: str = "detected") -> Splits:
    """CUHK03-np (767/700) in the form of Market-1501, with ``detected`` or ``labeled`` boxes.

    Raises UserError for the raw .mat form, which is HDF5.
    """
    raw = [path for path in (root / "cuhk-03.mat", root / "cuhk03_release" / "cuhk-03.mat") if path.is_file()]
    if raw:
        raise UserError(
            f"{raw[0]}: the raw form is HDF5, which is not read; take the one with {boxes}/{TRAIN}, {boxes}/{QUERY} and "
            f"{boxes}/{GALLERY}"
        )
    base, _ = find_base(root, tuple(f"{boxes}/{folder}" for folder in (TRAIN, QUERY, GALLERY)))
    return _three_folders(base, f"{boxes}/", CUHK)


def cuhk03np_counts(boxes: str) -> Published:
    train, gallery = {"detected": (7_365, 5_332), "labeled": (7_368, 5_328)}[boxes]
    return {
        "train": Counts((767,), (train,), (2,)),
        "query": Counts((700,), (1_400,), (2,)),
        "gallery": Counts((700,), (gallery,), (2,)),
    }


def _three_folders(base: Path, prefix: str, naming: Naming) -> Splits:
    with_distractors = replace(naming, pids=range(DISTRACTOR, naming.pids.stop))
    return {
        "train": naming.pictures(base, prefix + TRAIN),
        "query": naming.pictures(base, prefix + QUERY),
        "gallery": with_distractors.pictures(base, prefix + GALLERY),
    }
