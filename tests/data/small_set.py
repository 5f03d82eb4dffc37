"""Shard sets of small noise pictures whose bytes the test knows."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shards.sources import Picture, Splits
from shards.writer import write_shards
from vmreid.data.manifest import INDEX_DTYPE, Manifest
from vmreid.data.streams import Batch

CAMERAS = 3
Encoded = dict[str, bytes]


def picture_bytes(pid: int, number: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A blotchy picture of its own for each identity and number."""
    noise = np.random.default_rng([pid, number]).integers(0, 256, (6, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((24, 36), Image.Resampling.BICUBIC).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def name_of(pid: int, number: int) -> str:
    return f"{pid}_{number}"


def write_small_set(out: Path, *, broken: str = "", **counts: Mapping[int, int]) -> tuple[Manifest, Encoded]:
    """Write splits given as ``{pid: pictures}``; the picture named ``broken`` is no picture. Bytes by ``name_of``."""
    encoded: Encoded = {}
    splits: Splits = {}
    for split, pictures_of in counts.items():
        splits[split] = []
        for pid, pictures in pictures_of.items():
            for number in range(pictures):
                name = name_of(pid, number)
                encoded[name] = b"not a picture" if name == broken else picture_bytes(pid, number)
                splits[split].append(Picture(pid, number % CAMERAS, name, lambda name=name: encoded[name]))  # type: ignore[misc]
    return write_shards(splits, out, {"name": "small"}), encoded


def index_of(lengths: Mapping[int, int], identities_per_shard: int = 4) -> np.ndarray:
    """An index without files: ``lengths`` maps pid to its pictures, in the order of the shards."""
    rows = [
        (pid, number % CAMERAS, position // identities_per_shard, 0, 0, 0)
        for position, (pid, length) in enumerate(lengths.items())
        for number in range(length)
    ]
    return np.array(rows, dtype=INDEX_DTYPE)


def pixel_checksums(batch: Batch) -> torch.Tensor:
    """CRC-32 of each picture's pixels; int64 [B]."""
    return torch.tensor([zlib.crc32(image_CHW.numpy().tobytes()) for image_CHW in batch.images_BCHW])
