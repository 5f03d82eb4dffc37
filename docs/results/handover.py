"""What it takes to get a batch from a loader's worker: ``python docs/results/handover.py OUT.json [WORKERS…]``.

Batches of 256 pictures of 256×128 that are ready, so that nothing but handing over is timed: by a worker's slots and as torch
hands over tensors, in turns; milliseconds a batch by the clock, and of the processor in the process that takes them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from vmreid.data.handover import Parcel, Slots, forked
from vmreid.timing import device_name
from vmreid.versions import versions

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, SIZE, TIMED, WARM, ROUNDS = 256, (256, 128), 60, 4, 5


class Ready(IterableDataset[Parcel]):
    """Each worker's batches, by its slots or as tensors."""

    def __init__(self, workers: int, batches: int, by_slots: bool) -> None:
        self.slots, self.batches, self.by_slots = Slots(workers, BATCH, SIZE, DEVICE), batches, by_slots

    def __iter__(self) -> Iterator[Parcel]:
        torch.set_num_threads(1)
        images_BCHW = torch.randint(256, (BATCH, 3, *SIZE), dtype=torch.uint8)
        if self.by_slots:
            yield from self.slots.parcels((image_CHW, [0] * 7) for _ in range(self.batches) for image_CHW in images_BCHW)
        else:
            yield from (Parcel(np.zeros((7, BATCH), np.int64), images_BCHW.clone(), None) for _ in range(self.batches))


def milliseconds(workers: int, by_slots: bool) -> tuple[float, float]:
    """A batch, by the clock and of this process."""
    warm = WARM * workers
    ready = Ready(workers, (TIMED + warm) // workers + 1, by_slots)
    loader = DataLoader(ready, batch_size=None, **forked(workers))
    for number, parcel in enumerate(loader):
        ready.slots.take(parcel)
        if number + 1 == warm:
            begin, worked = time.perf_counter(), time.process_time()
        if number + 1 == warm + TIMED:
            ready.slots.close()
            return 1e3 * (time.perf_counter() - begin) / TIMED, 1e3 * (time.process_time() - worked) / TIMED
    raise AssertionError("the workers ended too early")


def main() -> None:
    torch.set_num_threads(1)
    out, numbers = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or [1]
    rows = []
    for workers in numbers:
        found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for by_slots, each in found.items():
                each.append(milliseconds(workers, by_slots))
        for by_slots, each in found.items():
            clock, processor = (statistics.median(column) for column in zip(*each, strict=True))
            row = {
                "workers": workers,
                "by": "slots" if by_slots else "torch",
                "ms": clock,
                "ms of the taker's processor": processor,
            }
            print(row, flush=True)
            rows.append(row)
    setting = {"device": device_name(DEVICE), "versions": versions(), "batch": BATCH, "size": SIZE, "rounds": ROUNDS}
    out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
