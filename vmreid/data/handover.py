"""How pictures get from a loader's workers into the process that takes them: through memory that both have mapped all along,
from which a GPU copies them itself.

torch gives each tensor that leaves a worker shared memory of its own: made, filled page by page, its descriptor sent through
a socket, mapped, unmapped. That takes several times as long as copying the pictures does. Then it copies them once more,
into memory that a GPU can read.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

AHEAD = 2  # batches that DataLoader asks a worker for before it takes the first
SLOTS = AHEAD + 2  # of each worker: it fills one while those wait and a GPU still copies the one before


@dataclass(frozen=True)
class Place:
    """The first ``rows`` of a worker's slot."""

    worker: int
    slot: int
    rows: int


@dataclass(frozen=True)
class Parcel:
    """A batch on its way: int64 numbers [n, B] of its pictures, and these, uint8 [B, 3, H, W], or where they lie."""

    numbers_NB: np.ndarray  # not a tensor, which would travel in shared memory
    images_BCHW: torch.Tensor | None
    place: Place | None


class Slots:
    """Where the workers of one loader leave batches of at most ``batch_size`` pictures of one ``size`` (height, width) for
    ``device``. To be made before the workers are, and these by ``forked``; to be closed when they have ended."""

    def __init__(self, workers: int, batch_size: int, size: tuple[int, int], device: torch.device) -> None:
        # A page is taken when it is first written to: never, by a loader without workers
        places = (max(1, workers), SLOTS)
        self.images_WSBCHW = _shared(*places, batch_size, 3, *size)
        self.full_WS = _shared(*places)
        self._upload = _Upload(self, device) if device.type == "cuda" else None

    def parcels(self, samples: Iterable[tuple[torch.Tensor, Sequence[int]]]) -> Iterator[Parcel]:
        """In a worker: pictures uint8 [3, H, W] and their numbers, by the batch; each is copied before the next is made, so that
        a worker has one in its own memory, which stays in the processor's cache."""
        samples = iter(samples)
        while True:
            room = self._room()
            images_BCHW = torch.empty(self.images_WSBCHW.shape[2:], dtype=torch.uint8) if room is None else self.at(room)
            numbers: list[Sequence[int]] = []
            for image_CHW, own in itertools.islice(samples, len(images_BCHW)):
                images_BCHW[len(numbers)] = image_CHW
                numbers.append(own)
            if not numbers:
                return
            numbers_NB = np.array(numbers, dtype=np.int64).T
            if room is None:
                yield Parcel(numbers_NB, images_BCHW[: len(numbers)], None)
            else:
                self.full_WS[room.worker, room.slot] = 1
                yield Parcel(numbers_NB, None, replace(room, rows=len(numbers)))

    def take(self, parcel: Parcel) -> tuple[torch.Tensor, torch.Tensor]:
        """In the process that has made the slots: a batch's pictures uint8 [B, 3, H, W] on the device, and its numbers int64
        [n, B]. A parcel is to be taken once: its slot is free again."""
        numbers_NB = torch.from_numpy(parcel.numbers_NB)
        if self._upload:
            return self._upload(parcel), numbers_NB.pin_memory()
        if parcel.place is None:
            assert parcel.images_BCHW is not None
            return parcel.images_BCHW, numbers_NB
        images_BCHW = self.at(parcel.place).clone()
        self.empty(parcel.place)
        return images_BCHW, numbers_NB

    def at(self, place: Place) -> torch.Tensor:
        """The pictures that lie there."""
        return self.images_WSBCHW[place.worker, place.slot, : place.rows]

    def empty(self, place: Place) -> None:
        """Let the worker fill the slot again."""
        self.full_WS[place.worker, place.slot] = 0

    def close(self) -> None:
        """Let go of what a GPU copies from."""
        if self._upload:
            self._upload.close()

    def _room(self) -> Place | None:
        """A free slot of this worker, whole. None in a process that is no worker, and where others have ended and this one is
        asked for their batches too: these go by memory of their own."""
        worker = get_worker_info()
        if worker is None:
            return None
        free = (self.full_WS[worker.id] == 0).nonzero()
        return Place(worker.id, int(free[0]), self.images_WSBCHW.shape[2]) if len(free) else None


class _Upload:
    """Copies by a GPU from slots, while it is at work on what came before."""

    def __init__(self, slots: Slots, device: torch.device) -> None:
        self._slots, self._device = slots, device
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._under_way: tuple[Place, torch.cuda.Event] | None = None
        self._registered: set[int] = set()  # addresses of slots whose pages stay where they are

    def __call__(self, parcel: Parcel) -> torch.Tensor:
        """Its pictures on the device, for the stream that is current there."""
        self._empty_copied()
        if parcel.place is None:
            found = parcel.images_BCHW
            assert found is not None
        else:
            found = self._slots.at(parcel.place)
            self._register(self._slots.images_WSBCHW[parcel.place.worker, parcel.place.slot])
        with torch.cuda.stream(self._copying):
            images_BCHW = found.to(self._device, non_blocking=True)
            copied = self._copying.record_event()
        working = torch.cuda.current_stream(self._device)
        working.wait_event(copied)
        images_BCHW.record_stream(working)  # its memory is the copying stream's, which would use it again too early
        if parcel.place is not None:
            self._under_way = parcel.place, copied
        return images_BCHW

    def close(self) -> None:
        self._empty_copied()
        while self._registered:
            _checked(_cuda().cudaHostUnregister(self._registered.pop()))

    def _empty_copied(self) -> None:
        if self._under_way:
            place, copied = self._under_way
            copied.synchronize()  # which it is long since: the next batch had to arrive before anybody asked
            self._slots.empty(place)
            self._under_way = None

    def _register(self, slot_BCHW: torch.Tensor) -> None:
        if slot_BCHW.data_ptr() not in self._registered:
            with torch.cuda.device(self._device):
                _checked(_cuda().cudaHostRegister(slot_BCHW.data_ptr(), slot_BCHW.nbytes, 0))
            self._registered.add(slot_BCHW.data_ptr())


def forked(workers: int) -> dict[str, Any]:
    """DataLoader's settings for so many that share what this process has mapped."""
    return {"num_workers": workers, "prefetch_factor": AHEAD, "multiprocessing_context": "fork"} if workers else {}


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _checked(error: Any) -> None:
    torch.cuda.check_error(int(error))


def _shared(*shape: int) -> torch.Tensor:
    """Zero bytes that processes forked from now on share."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
