"""What a picture costs an evaluation's worker, by step: ``OMP_NUM_THREADS=1 python docs/results/picture_steps.py SET OUT.json``.

SET holds pictures of the image size, 256×128, so none is resized. Each step alone over the gallery, beside what it took the
place of; microseconds a picture, the least of some rounds.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from webdataset.tariterators import group_by_keys, tar_file_expander

from vmreid.data.manifest import read_manifest
from vmreid.data.members import members
from vmreid.data.pictures import _by_pillow, pixels
from vmreid.data.streams import PARCEL, evaluation_batches
from vmreid.data.transforms import resize_pixels
from vmreid.timing import device_name
from vmreid.versions import versions

SIZE, ROUNDS = (256, 128), 15


def main() -> None:
    torch.set_num_threads(1)
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    split = read_manifest(folder).splits["gallery"]
    files = [folder / shard.name for shard in split.shards]
    jpegs = [sample["jpg"] for sample in samples(files, members)]
    images = [pixels(data, "picture") for data in jpegs[:PARCEL]]
    tensors = [resize_pixels(image_HWC, SIZE) for image_HWC in images]
    slot_BCHW = torch.zeros(PARCEL, 3, *SIZE, dtype=torch.uint8)
    steps: dict[str, Callable[[], int]] = {
        "members of the tar, webdataset": lambda: count(samples(files, tar_file_expander)),
        "members of the tar, vmreid": lambda: count(samples(files, members)),
        "JPEG to array, Pillow": lambda: count(np.asarray(_by_pillow(data, "picture", None)) for data in jpegs),
        "JPEG to array, simplejpeg": lambda: count(pixels(data, "picture") for data in jpegs),
        "channels first": lambda: count(resize_pixels(each, SIZE) for each in images),
        "checksum of the pixels": lambda: count(zlib.crc32(each.numpy().data) for each in tensors),
        "array to slot, a parcel at the end": lambda: at_the_end(images, slot_BCHW),
        "array to slot, each at once": lambda: at_once(images, slot_BCHW),
        "all": lambda: sum(
            len(batch.rows_B) for batch in evaluation_batches(folder, split, SIZE, PARCEL, rank=0, world=1, workers=0)
        ),
    }
    found = {name: min(microseconds(step) for _ in range(ROUNDS)) for name, step in steps.items()}
    for name, value in found.items():
        print(f"{name:36s} {value:6.1f}")
    setting = {"device": device_name(torch.device("cpu")), "versions": versions(), "pictures": len(jpegs), "rounds": ROUNDS}
    out.write_text(json.dumps({"setting": setting, "microseconds a picture": found}, indent=1) + "\n")


def samples(files: list[Path], reader: Callable[[Iterable[Any]], Iterable[Any]]) -> Iterator[dict[str, Any]]:
    for path in files:
        with path.open("rb") as stream:
            yield from group_by_keys(reader([{"url": path.name, "stream": stream}]))


def at_the_end(images: list[np.ndarray], slot_BCHW: torch.Tensor) -> int:
    torch.stack([resize_pixels(image_HWC, SIZE) for image_HWC in images], out=slot_BCHW)
    return len(images)


def at_once(images: list[np.ndarray], slot_BCHW: torch.Tensor) -> int:
    for number, image_HWC in enumerate(images):
        slot_BCHW[number] = resize_pixels(image_HWC, SIZE)
    return len(images)


def count(made: Iterable[Any]) -> int:
    """How many there are; each is let go before the next."""
    return sum(1 for _ in made)


def microseconds(step: Callable[[], int]) -> float:
    begin = time.perf_counter()
    pictures = step()
    return 1e6 * (time.perf_counter() - begin) / pictures


if __name__ == "__main__":
    main()
