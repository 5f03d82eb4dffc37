"""Every picture arrives as it was sent, whoever sent it and however long the taker waits."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vmreid.data.handover import SLOTS, Parcel, Slots, forked

SIZE, BATCH = (6, 4), 3
LONG, SHORT = 24, 1  # batches of the first worker and of the others


class Batches(IterableDataset[Parcel]):
    """Of each worker; the last of it smaller. Numbers: worker, row, checksum."""

    def __init__(self, workers: int, device: str = "cpu") -> None:
        self.slots = Slots(workers, BATCH, SIZE, torch.device(device))

    def __iter__(self) -> Iterator[Parcel]:
        worker = get_worker_info()
        number = worker.id if worker else 0
        return self.slots.parcels(pictures(number, (SHORT if number else LONG) * BATCH - 1))


def pictures(worker: int, count: int) -> Iterator[tuple[torch.Tensor, list[int]]]:
    random = torch.Generator().manual_seed(worker)
    for row in range(count):
        image_CHW = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=random)
        yield image_CHW, [worker, row, zlib.crc32(image_CHW.numpy())]


def loaded(batches: Batches) -> Iterator[Parcel]:
    return iter(DataLoader(batches, batch_size=None, **forked(len(batches.slots.full_WS))))


def facts(images_BCHW: torch.Tensor, numbers_NB: torch.Tensor) -> list[tuple[int, int]]:
    """Worker and row of each, once its pixels have been compared with what was sent."""
    for image_CHW, checksum in zip(images_BCHW.cpu(), numbers_NB[2].tolist(), strict=True):
        assert zlib.crc32(image_CHW.contiguous().numpy()) == checksum
    return [tuple(each) for each in numbers_NB[:2].T.tolist()]


def all_rows(workers: int) -> list[tuple[int, int]]:
    counts = [LONG, *[SHORT] * (workers - 1)]
    return [(worker, row) for worker, count in enumerate(counts) for row in range(count * BATCH - 1)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("wait", [0.0, 0.01])
def test_every_picture_as_it_was_sent(workers: int, wait: float, device: str) -> None:
    """Also from a worker that is asked for the batches of those that have ended, and is far ahead."""
    batches = Batches(workers, device)
    found, kept, places = [], [], []
    for parcel in loaded(batches):
        time.sleep(wait)
        places.append(parcel.place)
        kept.append(batches.slots.take(parcel))
        assert kept[-1][0].device.type == device
        found += facts(*kept[-1])
    batches.slots.close()
    assert sorted(found) == all_rows(workers)
    assert sorted(fact for batch in kept for fact in facts(*batch)) == sorted(found), (
        "a slot was used again: what was taken changed"
    )
    assert any(places)
    assert not batches.slots.full_WS.any()
    if workers == 5 and wait:
        assert not all(places), "no batch was sent by itself, so that was not tried"


def test_a_slot_waits_to_be_emptied() -> None:
    """What has arrived and was not looked at yet keeps its pixels, though the worker goes on."""
    parcels, batches = [], Batches(1)
    for parcel in loaded(batches):
        parcels.append(parcel)
        time.sleep(0.01)
        if len(parcels) > SLOTS + 2:
            break
    assert [parcel.place is None for parcel in parcels] == [False] * SLOTS + [True] * 3
    assert [fact for parcel in parcels for fact in facts(*batches.slots.take(parcel))] == [
        (0, row) for row in range((SLOTS + 3) * BATCH)
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_slots_are_enough_for_one_that_takes_its_time(device: str) -> None:
    """Each batch is taken when the worker is asked for another already: none goes the slow way."""
    batches, places = Batches(1, device), []
    for parcel in loaded(batches):
        time.sleep(0.01)
        places.append(parcel.place)
        batches.slots.take(parcel)
    batches.slots.close()
    assert len(places) == LONG
    assert all(places)


def test_a_process_without_workers() -> None:
    batches = Batches(0)
    parcels = DataLoader(batches, batch_size=None, **forked(0))
    assert [fact for parcel in parcels for fact in facts(*batches.slots.take(parcel))] == all_rows(1)
