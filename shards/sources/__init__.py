"""Where pictures come from: each source lists the pictures of its splits; their bytes are read when they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.sources.checks import check, hopeless_queries, unlike_published
from shards.sources.folder import image_folder
from shards.sources.khoa import vehicle_khoa
from shards.sources.market import (
    cuhk03np,
    cuhk03np_counts,
    dukemtmc,
    dukemtmc_counts,
    market1501,
    market1501_counts,
    occluded_duke,
    occluded_duke_counts,
)
from shards.sources.msmt import msmt17, msmt17_counts
from shards.sources.picture import Counts, Picture, Published, Splits
from shards.sources.pku import TEST_PICTURES, vehicleid, vehicleid_counts
from shards.sources.rendered import OBJECTS, synthetic
from shards.sources.resize import JPEG_QUALITY, shrink_all
from shards.sources.veri import veri776, veri776_counts

__all__ = [
    "FOLDER_SOURCES", "JPEG_QUALITY", "OBJECTS", "Counts", "FolderSource", "Picture", "Published", "Splits", "check", "cuhk03np",
    "dukemtmc", "hopeless_queries", "image_folder", "market1501", "msmt17", "occluded_duke", "shrink_all", "synthetic",
    "unlike_published", "vehicle_khoa", "vehicleid", "veri776",
]  # fmt: skip


@dataclass(frozen=True)
class FolderSource:
    """A dataset: ``pictures(root, **options)`` lists it, ``published(**options)`` is what its publishers counted.

    ``options`` are the command's: name to argparse settings.
    """

    pictures: Callable[..., Splits]
    published: Callable[..., Published] | None = None
    options: Mapping[str, dict[str, Any]] = field(default_factory=dict)


FOLDER_SOURCES = {
    "image_folder": FolderSource(
        image_folder, None, {"csv": {"type": Path, "help": "table with path (below --root), id, camera, view, split"}}
    ),
    "market1501": FolderSource(market1501, market1501_counts),
    "msmt17": FolderSource(
        msmt17,
        msmt17_counts,
        {"train_without_val": {"action": "store_true", "help": "leave list_val out; the usual 32,621 pictures have it"}},
    ),
    "dukemtmc": FolderSource(dukemtmc, dukemtmc_counts),
    "occluded_duke": FolderSource(occluded_duke, occluded_duke_counts),
    "cuhk03np": FolderSource(
        cuhk03np,
        cuhk03np_counts,
        {"boxes": {"choices": ("detected", "labeled"), "default": "detected", "help": "default: detected"}},
    ),
    "veri776": FolderSource(veri776, veri776_counts),
    "vehicleid": FolderSource(
        vehicleid,
        vehicleid_counts,
        {
            "test_size": {"type": int, "choices": tuple(TEST_PICTURES), "default": 800, "help": "vehicles; default: 800"},
            "seed": {"type": int, "default": 0, "help": "of the draw that makes the gallery; default: 0"},
        },
    ),
    "vehicle_khoa": FolderSource(vehicle_khoa),
}
