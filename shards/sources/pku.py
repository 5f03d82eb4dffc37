"""VehicleID (PKU): two folders, lists of names, no cameras; the gallery is drawn."""

from __future__ import annotations

import hashlib
import re
from itertools import groupby
from pathlib import Path

from shards.sources.files import find_base, picture_names, read_lines, refuse
from shards.sources.picture import Counts, Picture, Published, Splits, reader

IMAGES, LISTS = "image", "train_test_split"
LINE = re.compile(r"(?P<name>\S+)\s+(?P<pid>\d{1,9})$")
TEST_PICTURES = {800: 6_493, 1600: 13_377, 2400: 19_777, 3200: None, 6000: None, 13164: None}  # None: nobody says
QUERY_CAMERA, GALLERY_CAMERA = 0, 1  # made up; they differ, so that the metric leaves no gallery picture out


def vehicleid(root: Path, test_size: int = 800, seed: int = 0) -> Splits:
    """VehicleID with the test list of ``test_size`` vehicles: one drawn picture of each is gallery, the others are queries.

    The draw depends on seed, identity and its pictures' names alone, so it repeats on any machine.
    """
    base, _ = find_base(root, (IMAGES, LISTS))
    there = set(picture_names(base / IMAGES, (".jpg",)))
    splits: Splits = {"train": _listed(base, "train_list.txt", there), "query": [], "gallery": []}
    for pid, group in groupby(_listed(base, f"test_list_{test_size}.txt", there), key=lambda picture: picture.pid):
        pictures = list(group)
        drawn = int.from_bytes(hashlib.sha256(f"{seed} {pid}".encode()).digest()) % len(pictures)
        for number, item in enumerate(pictures):
            split, camera = ("gallery", GALLERY_CAMERA) if number == drawn else ("query", QUERY_CAMERA)
            splits[split].append(Picture(pid, camera, item.name, item.read))
    return splits


def vehicleid_counts(test_size: int, seed: int) -> Published:
    pictures = TEST_PICTURES[test_size]
    query = () if pictures is None else (pictures - test_size,)
    return {
        "train": Counts((13_164,), (113_346, 110_178)),
        "query": Counts((test_size,), query),
        "gallery": Counts((test_size,), (test_size,)),
    }


def _listed(base: Path, name: str, there: set[str]) -> list[Picture]:
    """The pictures of a list, sorted by identity and name."""
    path = base / LISTS / name
    lines = read_lines(path, "VehicleID comes with it")
    matches = [LINE.match(line) for line in lines]
    refuse(path, lines, [line for line, match in zip(lines, matches, strict=True) if not match], "lines are not NAME IDENTITY")
    listed = sorted((int(match["pid"]), f"{match['name']}.jpg") for match in matches if match)
    refuse(path, lines, [picture for _, picture in listed if picture not in there], f"are not in {IMAGES}")
    return [Picture(pid, QUERY_CAMERA, f"{IMAGES}/{picture}", reader(f"{base}/{IMAGES}/{picture}")) for pid, picture in listed]
