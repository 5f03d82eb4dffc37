"""Rendered pictures: no folder, and the same for everybody."""

from __future__ import annotations

import io
from functools import partial

from PIL import Image

from shards.sources.picture import Picture, Splits
from shards.sources.resize import JPEG_QUALITY
from shards.synthetic import render

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
