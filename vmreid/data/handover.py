"""How pictures get from a loader's workers into the process that takes them: through memory that both have mapped all along.

torch gives each tensor that leaves a worker shared memory of its own: made, filled page by page, its descriptor sent through
a socket, mapped, unmapped. That takes several times as long as copying the pictures does.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch.utils.data import get_worker_info

SLOTS = 2  # of each worker: as many batches as DataLoader asks it for ahead


class Unpacked(NamedTuple):
    """A batch that has arrived: pictures uint8 [B, 3, H, W], and int64 numbers [n, B] of each."""

    images_BCHW: torch.Tensor
    numbers_NB: torch.Tensor


class Slots:
    """Where the workers of one loader leave batches of at most ``batch_size`` pictures of one ``size`` (height, width). To be
    made before the workers are, and these by ``forked``."""

    def __init__(self, workers: int, batch_size: int, size: tuple[int, int]) -> None:
        # A page is taken when it is first written to: never, by a loader without workers
        places = (max(1, workers), SLOTS)
        self.images_WSBCHW = _shared(*places, batch_size, 3, *size)
        self.full_WS = _shared(*places)
        _there[id(self)] = self

    def send(self, images: list[torch.Tensor], numbers_NB: np.ndarray) -> Parcel:
        """In a worker: a batch for the process that has made it."""
        worker = get_worker_info()
        slot = self._free(worker.id) if worker else None
        if worker is None or slot is None:
            return Parcel(numbers_NB, torch.stack(images), None)
        torch.stack(images, out=self.images_WSBCHW[worker.id, slot, : len(images)])
        self.full_WS[worker.id, slot] = 1
        return Parcel(numbers_NB, None, Place(id(self), worker.id, slot, len(images)))

    def _free(self, worker: int) -> int | None:
        """None where other workers have ended, and this one is asked for their batches too."""
        free = (self.full_WS[worker] == 0).nonzero()
        return int(free[0]) if len(free) else None


def forked(workers: int) -> dict[str, Any]:
    """DataLoader's settings for so many that share what this process has mapped."""
    return {"num_workers": workers, "prefetch_factor": SLOTS, "multiprocessing_context": "fork"} if workers else {}


@dataclass(frozen=True)
class Place:
    """The first ``rows`` of a worker's slot; ``slots`` names the ``Slots``."""

    slots: int
    worker: int
    slot: int
    rows: int


@dataclass(frozen=True)
class Parcel:
    """A batch on its way: its pictures, or where they lie. To be opened once."""

    numbers_NB: np.ndarray  # not a tensor, which would travel in shared memory
    images_BCHW: torch.Tensor | None
    place: Place | None

    def unpack(self) -> Unpacked:
        """With memory of its own; the slot is free again."""
        return self._opened(torch.Tensor.clone)

    def pin_memory(self) -> Unpacked:
        """In page-locked memory, from which a GPU copies while the host goes on; DataLoader's thread asks for it."""
        return self._opened(torch.Tensor.pin_memory)

    def _opened(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> Unpacked:
        numbers_NB = copy(torch.from_numpy(self.numbers_NB))
        if self.place is None:
            assert self.images_BCHW is not None
            return Unpacked(copy(self.images_BCHW), numbers_NB)
        slots, at = _there[self.place.slots], (self.place.worker, self.place.slot)
        images_BCHW = copy(slots.images_WSBCHW[at][: self.place.rows])
        slots.full_WS[at] = 0
        return Unpacked(images_BCHW, numbers_NB)


_there: WeakValueDictionary[int, Slots] = WeakValueDictionary()  # of this process: what a parcel names


def _shared(*shape: int) -> torch.Tensor:
    """Zero bytes that processes forked from now on share."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
