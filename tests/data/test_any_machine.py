"""The same pictures, augmented alike, in the same order, for 1 to 4 ranks and any number of workers, from disk or by HTTP."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from small_set import write_small_set
from web import served

from vmreid.data.cache import Cache
from vmreid.data.folder import Place, RemoteFolder
from vmreid.data.identity_batches import IdentityBatches
from vmreid.data.manifest import read_index, read_manifest
from vmreid.data.ranges import JoinedRanges, ShardRanges
from vmreid.data.streams import Batch, TrainStream
from vmreid.data.transforms import TrainTransform
from vmreid.recipes.schema import Augment

TRANSFORM = TrainTransform((16, 8), Augment(crop_scale=(0.5, 1.0), flip=0.5, colour_jitter=0.3))
EPOCHS, IDENTITIES, PICTURES = 3, 12, 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = [tmp_path_factory.mktemp("sets") / name for name in ("one", "other")]
    for number, folder in enumerate(out):
        write_small_set(folder, train={pid * 3 + number: 1 + pid % 4 for pid in range(26 - 6 * number)})
    return out


def stream(places: list[Place], rank: int = 0, world: int = 1, accumulation: int = 1, begin: int = 0) -> TrainStream:
    splits = [read_manifest(place).splits["train"] for place in places]
    indexes = [read_index(place, split) for place, split in zip(places, splits, strict=True)]
    batches = IdentityBatches(indexes, IDENTITIES, PICTURES, 5, [1.0, 2.0][: len(places)])
    ranges = [ShardRanges(*each) for each in zip(places, splits, indexes, strict=True)]
    return TrainStream(
        batches, JoinedRanges(ranges), TRANSFORM, rank=rank, world=world, accumulation=accumulation,
        begin=begin, end=EPOCHS * batches.steps_per_epoch,
    )  # fmt: skip


def digests(places: list[Place], world: int, accumulation: int, workers: int) -> list[str]:
    """One for each step's pictures, from all ranks."""
    parts = [list(stream(places, rank, world, accumulation).loader(workers)) for rank in range(world)]
    micro_batches = [[part[number] for part in parts] for number in range(len(parts[0]))]
    steps = [micro_batches[begin : begin + accumulation] for begin in range(0, len(micro_batches), accumulation)]
    return [hashlib.sha256(b"".join(told(batch) for micro in step for batch in micro)).hexdigest() for step in steps]


def told(batch: Batch) -> bytes:
    return torch.stack([batch.rows_B, batch.ids_B, batch.camids_B, batch.checksums_B], dim=1).numpy().tobytes()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("sets", [1, 2])
def test_digests_of_three_epochs(folders: list[Path], sets: int) -> None:
    places: list[Place] = [*folders[:sets]]
    expected = digests(places, 1, 1, 0)
    assert len(expected) == len(set(expected)) == EPOCHS * {1: 26 // 12, 2: 46 // 12}[sets]
    for world in (1, 2, 3, 4):
        for workers in (0, 1, 3):
            assert digests(places, world, 1, workers) == expected, (world, workers)
    assert digests(places, 2, 3, 1) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_by_http_and_resumed_without_reading_again(folders: list[Path], tmp_path: Path) -> None:
    """What a resumed stream reads is what the whole one read from that step on, request by request and byte by byte."""
    with served(folders[0]) as web:
        place = RemoteFolder(web.url, Cache(tmp_path, 1 << 30))
        expected = digests([folders[0]], 1, 1, 0)
        assert digests([place], 1, 1, 0) == digests([place], 2, 1, 2) == expected
        assert len(web.asked("train.index.npy")) == 1  # the cache has it for all others
        read: list[int] = []  # bytes, by the step where a stream begins
        whole: list[tuple[str, str]] = []
        for begin in range(7):
            rest = stream([place], begin=begin)
            web.requests.clear()
            before = web.sent
            assert len(list(rest.loader(0))) == 6 - begin
            read.append(web.sent - before)
            whole = whole or web.requests[:]
            assert web.requests == whole[len(whole) - len(web.requests) :]
        assert read == sorted(set(read), reverse=True)  # each step has its bytes
        assert read[-1] == 0
