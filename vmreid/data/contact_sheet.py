"""What a model is going to train on, at a glance: identities x cameras."""

from __future__ import annotations

import numpy as np

from vmreid.data.folder import Place
from vmreid.data.manifest import Manifest, require_splits
from vmreid.data.sheet import Cell, Line, SplitPictures, draw_sheet

IDENTITIES, CAMERAS = 8, 24  # at most
COLUMNS = 8  # at least, where there are pictures: few cameras have several each


def draw_contact_sheet(data: Place, manifest: Manifest) -> bytes:
    """A PNG file of the training split, or of the gallery where nothing trains: a line an identity, columns by camera.

    Where there are more identities or cameras than fit, those shown are spread evenly. A camera that has not seen an
    identity leaves its place empty. Raises UserError where a picture cannot be read.
    """
    name = "train" if "train" in manifest.splits and manifest.splits["train"].pictures else "gallery"
    require_splits(manifest, data, (name,))
    split = manifest.splits[name]
    pictures = SplitPictures(data, split)
    pids, starts, counts = np.unique(pictures.index["pid"], return_index=True, return_counts=True)  # rows are identity-major
    cameras = [split.cameras[number] for number in _spread(len(split.cameras), CAMERAS)]
    each = max(1, COLUMNS // len(cameras))
    lines = []
    for position in _spread(len(pids), IDENTITIES):
        rows = np.arange(starts[position], starts[position] + counts[position])
        seen_by = pictures.index["camid"][rows]
        cells: list[Cell | None] = []
        for camera in cameras:
            shown = [pictures.cell(int(row)) for row in rows[seen_by == camera][:each]]
            cells += [*shown, *[None] * (each - len(shown))]
        lines.append(Line(f"identity {pids[position]} · {counts[position]} pictures", cells))
    title = f"{'Training' if name == 'train' else 'Gallery'} data: {manifest.source['name']}"
    counted = f"{split.pictures} pictures of {split.identities} identities from {len(split.cameras)} cameras"
    return draw_sheet(title, f"{counted}; {len(lines)} identities, {len(cameras)} cameras shown", lines)


def _spread(number: int, most: int) -> list[int]:
    """Up to ``most`` of 0..number-1, evenly spread, the first and the last among them."""
    return [int(place) for place in np.linspace(0, number - 1, min(number, most)).round()]
