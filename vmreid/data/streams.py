"""Webdataset pipelines: identity batches for training (byte ranges), whole shards for evaluation."""

from __future__ import annotations

import json
import signal
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader, get_worker_info
from webdataset import tariterators

from vmreid.data.folder import Place, as_folder
from vmreid.data.handover import Parcel, Slots, forked
from vmreid.data.identity_batches import Draw, IdentityBatches
from vmreid.data.manifest import REWRITE, UNKNOWN, Split, check_digest
from vmreid.data.members import members
from vmreid.data.pictures import decode, pixels
from vmreid.data.ranges import Pictures
from vmreid.data.remote import AT_ONCE
from vmreid.data.transforms import TrainTransform, resize_pixels
from vmreid.errors import UserError

Sample = dict[str, Any]
SECONDS_TO_OUTLIVE = 30  # that a worker goes on after SIGTERM
NUMBERS = ("id", "camid", "row", "checksum", "replaced", "view", "type")  # of a sample, in the order of Batch
PARCEL = 128  # pictures that an evaluation's worker sends at once: the first arrive sooner, and slots take little memory
CPU = torch.device("cpu")
STAND_INS = 16  # identities tried for one place: more in a row say that nothing can be read, not some of it


@dataclass(frozen=True)
class Batch:
    """One rank's share: pictures uint8 [B, 3, H, W] on the device that was asked for, and int64 [B] ids, camids, index rows,
    pixel checksums (0 in evaluation, which asks for none), 1 where a picture stands in for an unreadable one, and the set's own
    numbers for view and type, ``UNKNOWN`` where it states none. An id is the label 0..C-1 in training and the pid in
    evaluation; views and types are read for evaluation alone."""

    images_BCHW: torch.Tensor
    ids_B: torch.Tensor
    camids_B: torch.Tensor
    rows_B: torch.Tensor
    checksums_B: torch.Tensor
    replaced_B: torch.Tensor
    views_B: torch.Tensor
    types_B: torch.Tensor


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way out of a worker process, which would otherwise wrap it in a traceback."""

    message: str


@dataclass(frozen=True)
class _Place:
    """One of the P of a step: its number in the batch, the identity that has it, and all rows of that."""

    epoch: int
    step: int
    number: int
    identity: int
    rows: list[int]


class TrainStream:
    """This rank's micro-batches of all steps from ``begin`` on, epoch after epoch, in order.

    The global batch of a step is cut into ``accumulation`` micro-batches and each of those into ``world`` parts; parts in
    rank order are the micro-batch, so the global batch does not depend on the number of ranks.

    What cannot be read or decoded is an error, or with ``skip`` left out and counted: another picture of the identity, in
    the epoch's order, takes its place; where none can be read, the identity at the same place of the next step does, and
    so on. What was unreadable to one rank alone changes nothing for the others: labels travel with the pictures.
    """

    def __init__(
        self, batches: IdentityBatches, ranges: Pictures, transform: TrainTransform,
        *, rank: int, world: int, accumulation: int, begin: int, end: int, skip: bool = False,
    ) -> None:  # fmt: skip
        self.batches, self.ranges, self.transform, self.skip = batches, ranges, transform, skip
        self.rank, self.world, self.accumulation = rank, world, accumulation
        self.begin, self.end = begin, end
        self.places = batches.identities // (world * accumulation)  # of a micro-batch, for this rank

    def loader(self, workers: int, device: torch.device = CPU) -> Iterator[Batch]:
        """Batches in step order for any number of workers: each worker makes every n-th micro-batch. Pictures on ``device``."""
        pipeline = wds.DataPipeline(self._samples)
        return _batches(pipeline, workers, self.places * self.batches.pictures, self.transform.size, device)

    def _samples(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        micro_batches = range(self.begin * self.accumulation, self.end * self.accumulation)
        places = self._places(micro_batches[number::workers])
        ahead = AT_ONCE - 1 if worker else 0  # a training process waits for what it reads, and keeps to its order
        for place in self._expected(places, ahead):
            yield from self._of_identity(place.epoch, place.identity, place.rows) or self._stand_ins(place)

    def _places(self, micro_batches: range) -> Iterator[_Place]:
        for micro in micro_batches:
            step, piece = divmod(micro, self.accumulation)
            first = (piece * self.world + self.rank) * self.places
            epoch, step = divmod(step, self.batches.steps_per_epoch)
            identities = self.batches.identities_at(epoch, step)
            for number in range(first, first + self.places):
                identity = int(identities[number])
                yield _Place(epoch, step, number, identity, self.batches.rows_of(epoch, identity))

    def _expected(self, places: Iterator[_Place], ahead: int) -> Iterator[_Place]:
        """The same places, each once the pictures of the ``ahead`` next ones are being read too."""
        waiting: deque[_Place] = deque()
        for place in places:
            self.ranges.expect(place.rows[: self.batches.pictures])
            waiting.append(place)
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting

    def _stand_ins(self, place: _Place) -> list[Sample]:
        """K pictures for a place of a batch whose identity cannot be read."""
        epoch, steps = place.epoch, self.batches.steps_per_epoch
        tried = min(STAND_INS, steps)
        for later in range(1, tried):
            identity = int(self.batches.identities_at(epoch, (place.step + later) % steps)[place.number])
            samples = self._of_identity(epoch, identity, self.batches.rows_of(epoch, identity))
            if samples:
                return [{**sample, "replaced": 1} for sample in samples]
        raise UserError(f"{tried} identities in a row cannot be read; see that the shards are there")

    def _of_identity(self, epoch: int, identity: int, rows: list[int]) -> list[Sample]:
        """K of its pictures, those that can be read again and again where there are fewer; none where none can be."""
        wanted = self.batches.pictures
        samples: list[Sample] = []
        good: list[int] = []
        for row in rows:
            try:
                samples.append(self._sample(self.batches.draw(epoch, identity, row, 0)))
                good.append(row)
            except UserError:
                if not self.skip:
                    raise
            if len(samples) == wanted:
                break
        for k in range(len(good), wanted if good else 0):
            samples.append(self._sample(self.batches.draw(epoch, identity, good[k % len(good)], k // len(good))))
        for k, sample in enumerate(samples):
            sample["replaced"] = int(sample["row"] != rows[k % len(rows)])
        return samples

    def _sample(self, draw: Draw) -> Sample:
        image_CHW = self.transform(decode(*self.ranges.picture(draw.row), self.transform.least), draw.seed)
        return _sample(image_CHW, draw.label, draw.camid, draw.row) | {"checksum": zlib.crc32(image_CHW.numpy().data)}


def evaluation_batches(
    place: Place, split: Split, size: tuple[int, int], batch_size: int,
    *, rank: int, world: int, workers: int, device: torch.device = CPU,
) -> Iterator[Batch]:  # fmt: skip
    """This rank's share of a split: every ``world``-th shard, whole, in batches of at most ``batch_size`` and at most ``PARCEL``
    pictures on ``device``; there may be none.

    Each shard's bytes are compared with the manifest's digest: scores are of all pictures or there are none.
    """
    folder = as_folder(place)
    names = [shard.name for shard in split.shards[rank::world]]
    shards = {shard.name: shard for shard in split.shards}

    def opened(urls: Iterator[Sample]) -> Iterator[Sample]:
        for name in (str(sample["url"]) for sample in urls):
            with folder.open(name, shards[name].size, shards[name].sha256) as stream:
                check_digest(folder, name, stream, shards[name].sha256)
                yield {"url": name, "stream": stream}

    def pictures(sample: Sample) -> Sample:
        name = f"{sample['__url__']} picture {sample['__key__']}"
        if not {"jpg", "json"} <= sample.keys():
            raise UserError(f"{folder}: {name} lacks a member; {REWRITE}")
        fields = json.loads(sample["json"])
        image_CHW = resize_pixels(pixels(sample["jpg"], name, size), size)
        kinds = {name: int(fields[name]) for name in ("view", "type") if name in fields}
        return _sample(image_CHW, int(fields["pid"]), int(fields["camid"]), int(sample["__key__"])) | kinds

    if not names:
        return
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(names),
        wds.split_by_worker,
        opened,
        members,
        tariterators.group_by_keys,
        wds.map(pictures),
    )
    yield from _batches(pipeline, min(workers, len(names)), min(batch_size, PARCEL), size, device)


def _sample(image_CHW: torch.Tensor, identity: int, camid: int, row: int) -> Sample:
    numbers = {"id": identity, "camid": camid, "row": row, "checksum": 0, "replaced": 0, "view": UNKNOWN, "type": UNKNOWN}
    return {"image": image_CHW, **numbers}


def _caught(batches: Iterator[Parcel]) -> Iterator[Parcel | _Failure]:
    try:
        yield from batches
    except UserError as error:
        yield _Failure(str(error))
    except (tarfile.TarError, EOFError) as error:
        yield _Failure(f"{' '.join(str(error).split())}: a shard is not whole; {REWRITE}")
    except OSError as error:
        yield _Failure(f"{error}; see that the shards are still there and can be read")


def _outlive_a_signal(worker: int) -> None:
    """A scheduler's SIGTERM may go to all processes of a job: the rank ends its step and saves, for which it needs its batches,
    and then ends its workers. One that nobody ends goes by itself."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_OUTLIVE))


def _batches(
    pipeline: wds.DataPipeline, workers: int, batch_size: int, size: tuple[int, int], device: torch.device
) -> Iterator[Batch]:
    """A generator of its own keeps the loader from drawing from the global one, which a resumed run would see moved."""
    slots = Slots(workers, batch_size, size, device)

    def parcels(samples: Iterator[Sample]) -> Iterator[Parcel]:
        return slots.parcels((sample["image"], [sample[name] for name in NUMBERS]) for sample in samples)

    pipeline.append(parcels)
    pipeline.append(_caught)
    loader: DataLoader[Parcel | _Failure] = DataLoader(
        pipeline,
        batch_size=None,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_outlive_a_signal,
        **forked(workers),
    )
    try:
        for arrived in loader:
            if isinstance(arrived, _Failure):
                raise UserError(arrived.message)
            images_BCHW, numbers_7B = slots.take(arrived)
            yield Batch(images_BCHW, *numbers_7B)
    finally:
        slots.close()
