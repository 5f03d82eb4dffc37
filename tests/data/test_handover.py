"""Every picture arrives as it was sent, whoever sent it and however long the taker waits."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vmreid.data.handover import Parcel, Slots, Unpacked, forked

SIZE, BATCH = (6, 4), 3
LONG, SHORT = 24, 1  # batches of the first worker and of the others


class Batches(IterableDataset[Parcel]):
    """Of each worker; the last of it smaller. Numbers: worker, row, checksum."""

    def __init__(self, workers: int) -> None:
        self.slots = Slots(workers, BATCH, SIZE)

    def __iter__(self) -> Iterator[Parcel]:
        worker = get_worker_info()
        number = worker.id if worker else 0
        random = torch.Generator().manual_seed(number)
        count = SHORT if number else LONG
        for batch in range(count):
            rows = BATCH - (batch == count - 1)
            images = [torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=random) for _ in range(rows)]
            numbers = [[number] * rows, range(batch * BATCH, batch * BATCH + rows), [zlib.crc32(each.numpy()) for each in images]]
            yield self.slots.send(images, np.array(numbers, dtype=np.int64))


def loaded(workers: int, batches: Batches | None = None) -> Iterator[Parcel]:
    return iter(DataLoader(batches or Batches(workers), batch_size=None, **forked(workers)))


def facts(batch: Unpacked) -> list[tuple[int, int]]:
    """Worker and row of each, once its pixels have been compared with what was sent."""
    for image_CHW, checksum in zip(batch.images_BCHW, batch.numbers_NB[2].tolist(), strict=True):
        assert zlib.crc32(image_CHW.contiguous().numpy()) == checksum
    return [tuple(each) for each in batch.numbers_NB[:2].T.tolist()]


def all_rows(workers: int) -> list[tuple[int, int]]:
    counts = [LONG, *[SHORT] * (workers - 1)]
    return [(worker, row) for worker, count in enumerate(counts) for row in range(count * BATCH - 1)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("wait", [0.0, 0.01])
def test_every_picture_as_it_was_sent(workers: int, wait: float) -> None:
    """Also from a worker that is asked for the batches of those that have ended, and is far ahead."""
    found, kept, places = [], [], []
    for parcel in loaded(workers):
        time.sleep(wait)
        places.append(parcel.place)
        kept.append(parcel.unpack())
        found += facts(kept[-1])
    assert sorted(found) == all_rows(workers)
    assert sorted(fact for batch in kept for fact in facts(batch)) == sorted(found), (
        "a slot was used again: what was taken changed"
    )
    assert any(places)
    if workers == 5 and wait:
        assert not all(places), "no batch was sent by itself, so that was not tried"


def test_a_slot_waits_to_be_emptied() -> None:
    """What has arrived and was not looked at yet keeps its pixels, though the worker goes on."""
    parcels, batches = [], Batches(1)
    for parcel in loaded(1, batches):
        parcels.append(parcel)
        time.sleep(0.01)
        if len(parcels) > 4:
            break
    assert [parcel.place is None for parcel in parcels] == [False, False, True, True, True]
    assert [fact for parcel in parcels for fact in facts(parcel.unpack())] == [(0, row) for row in range(5 * BATCH)]


def test_a_process_without_workers() -> None:
    assert [fact for parcel in loaded(0) for fact in facts(parcel.unpack())] == all_rows(1)


def test_pinning_empties_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DataLoader's thread copies to page-locked memory, for which there must be a GPU: a copy stands in for that."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batches, places = Batches(1), []
    for row, parcel in enumerate(loaded(1, batches)):
        places.append(parcel.place)
        assert facts(parcel.pin_memory())[0] == (0, row * BATCH)
    assert any(places)
    assert not batches.slots.full_WS.any()
