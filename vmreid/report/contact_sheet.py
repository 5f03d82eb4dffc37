"""What a model is going to train on: a few identities, as their cameras see them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from vmreid.data.folder import Place
from vmreid.data.manifest import Manifest
from vmreid.report.sheet import Line, SplitPictures, draw_sheet

IDENTITIES, COLUMNS = 8, 8


def draw_contact_sheet(data: Place, manifest: Manifest) -> bytes:
    """A PNG file of the training split: a line an identity, a picture of each camera, then further ones.

    Raises UserError where a picture cannot be read.
    """
    split = manifest.splits["train"]
    pictures = SplitPictures(data, split)
    pids, starts, counts = np.unique(pictures.index["pid"], return_index=True, return_counts=True)  # rows are identity-major
    shown = np.linspace(0, len(pids) - 1, min(IDENTITIES, len(pids))).round().astype(int)
    lines = []
    for position in shown:
        rows = range(starts[position], starts[position] + counts[position])
        cells = [pictures.cell(row) for row in _by_camera(rows, pictures)[:COLUMNS]]
        lines.append(Line(f"identity {pids[position]} · {counts[position]} pictures", cells))
    title = f"Training data: {manifest.source['name']}"
    counted = f"{split.pictures} pictures of {split.identities} identities from {len(split.cameras)} cameras"
    return draw_sheet(title, f"{counted}; {len(shown)} identities shown", lines)


def _by_camera(rows: range, pictures: SplitPictures) -> list[int]:
    """The first picture of each camera in camera order, then the second of each, and so on."""
    of_camera: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        of_camera[int(pictures.index[row]["camid"])].append(row)
    rounds = [(turn, camera, row) for camera, group in of_camera.items() for turn, row in enumerate(group)]
    return [row for _, _, row in sorted(rounds)]
