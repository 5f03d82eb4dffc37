"""Webdataset pipelines: identity batches for training (byte ranges), whole shards for evaluation."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, get_worker_info

from vmreid.data.identity_batches import Draw, IdentityBatches
from vmreid.data.manifest import REWRITE, Split
from vmreid.data.transforms import TrainTransform, decode, resize
from vmreid.errors import UserError

Sample = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """One rank's share: pictures uint8 [B, 3, H, W], and int64 [B] ids, camids, index rows and pixel
    checksums. An id is the label 0..C-1 in training and the pid in evaluation."""

    images_BCHW: torch.Tensor
    ids_B: torch.Tensor
    camids_B: torch.Tensor
    rows_B: torch.Tensor
    checksums_B: torch.Tensor


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way out of a worker process, which would otherwise wrap it in a traceback."""

    message: str


class ShardRanges:
    """Reads byte ranges of a split's shards; files are opened once a process, on first use."""

    def __init__(self, folder: Path, split: Split, index: np.ndarray) -> None:
        self._paths = [folder / shard.name for shard in split.shards]
        self._index = index
        self._files: dict[tuple[int, int], int] = {}

    def picture(self, row: int) -> tuple[bytes, str]:
        """Bytes of the picture in index row ``row``, and a name for messages."""
        entry = self._index[row]
        shard, offset, length = int(entry["shard"]), int(entry["offset"]), int(entry["length"])
        path = self._paths[shard]
        file = (os.getpid(), shard)
        if file not in self._files:
            self._files[file] = os.open(path, os.O_RDONLY)
        data = os.pread(self._files[file], length, offset)
        if len(data) != length:
            raise UserError(f"{path}: {len(data)} of {length} bytes at {offset}, truncated while in use; {REWRITE}")
        return data, f"{path.name} picture {row:08d}"


class TrainStream:
    """This rank's micro-batches of all steps from ``begin`` on, epoch after epoch, in order.

    The global batch of a step is cut into ``accumulation`` micro-batches and each of those into ``world`` parts; parts in
    rank order are the micro-batch, so the global batch does not depend on the number of ranks.
    """

    def __init__(
        self, batches: IdentityBatches, ranges: ShardRanges, index: np.ndarray, transform: TrainTransform,
        *, rank: int, world: int, accumulation: int, begin: int, end: int,
    ) -> None:  # fmt: skip
        self.batches, self.ranges, self.index, self.transform = batches, ranges, index, transform
        self.rank, self.world, self.accumulation = rank, world, accumulation
        self.begin, self.end = begin, end
        self.part = batches.identities * batches.pictures // (world * accumulation)

    def loader(self, workers: int) -> Iterator[Batch]:
        """Batches in step order for any number of workers: each worker makes every n-th micro-batch."""
        pipeline = wds.DataPipeline(
            self._samples,
            wds.map(self._decode),
            wds.batched(self.part, collation_fn=_collate, partial=False),
            _caught,
        )
        return _batches(pipeline, workers)

    def _samples(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        micro_batches = range(self.begin * self.accumulation, self.end * self.accumulation)
        for micro in micro_batches[number::workers]:
            step, piece = divmod(micro, self.accumulation)
            draws = self.batches.batch(*divmod(step, self.batches.steps_per_epoch))
            first = (piece * self.world + self.rank) * self.part
            for draw in draws[first : first + self.part]:
                yield {"draw": draw}

    def _decode(self, sample: Sample) -> Sample:
        draw: Draw = sample["draw"]
        image_CHW = self.transform(decode(*self.ranges.picture(draw.row)), draw.seed)
        return _sample(image_CHW, draw.label, int(self.index[draw.row]["camid"]), draw.row)


def evaluation_batches(
    folder: Path, split: Split, size: tuple[int, int], batch_size: int, *, rank: int, world: int, workers: int
) -> Iterator[Batch]:
    """This rank's share of a split: every ``world``-th shard, whole. The last batch may be smaller; there may be none."""
    shards = split.shards[rank::world]
    paths = [str(folder / shard.name) for shard in shards]

    def pictures(sample: Sample) -> Sample:
        if not {"jpg", "json"} <= sample.keys():
            raise UserError(f"{sample['__url__']}: picture {sample['__key__']} lacks a member; {REWRITE}")
        fields = json.loads(sample["json"])
        image_CHW = resize(decode(sample["jpg"], f"{Path(sample['__url__']).name} picture {sample['__key__']}"), size)
        return _sample(image_CHW, int(fields["pid"]), int(fields["camid"]), int(sample["__key__"]))

    if not paths:
        return
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(paths),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.map(pictures),
        wds.batched(batch_size, collation_fn=_collate, partial=True),
        _caught,
    )
    missing = sum(shard.pictures for shard in shards)
    for batch in _batches(pipeline, min(workers, len(paths))):
        missing -= len(batch.rows_B)
        yield batch
    if missing:  # a tar cut between two members reads as a shorter one
        raise UserError(f"{folder}: {missing} pictures fewer than the manifest says, truncated while in use; {REWRITE}")


def _sample(image_CHW: torch.Tensor, identity: int, camid: int, row: int) -> Sample:
    checksum = zlib.crc32(image_CHW.numpy().tobytes())
    return {"image": image_CHW, "id": identity, "camid": camid, "row": row, "checksum": checksum}


def _collate(samples: list[Sample]) -> Batch:
    numbers = {name: torch.tensor([sample[name] for sample in samples]) for name in ("id", "camid", "row", "checksum")}
    images_BCHW = torch.stack([sample["image"] for sample in samples])
    return Batch(images_BCHW, numbers["id"], numbers["camid"], numbers["row"], numbers["checksum"])


def _caught(batches: Iterator[Batch]) -> Iterator[Batch | _Failure]:
    try:
        yield from batches
    except UserError as error:
        yield _Failure(str(error))
    except (tarfile.TarError, EOFError) as error:
        yield _Failure(f"{' '.join(str(error).split())}: a shard is not whole; {REWRITE}")
    except OSError as error:
        yield _Failure(f"{error}; see that the shards are still there and can be read")


def _batches(pipeline: wds.DataPipeline, workers: int) -> Iterator[Batch]:
    """A generator of its own keeps the loader from drawing from the global one, which a resumed run would see moved."""
    loader: DataLoader[Batch | _Failure] = DataLoader(
        pipeline, batch_size=None, num_workers=workers, generator=torch.Generator().manual_seed(0)
    )
    for batch in loader:
        if isinstance(batch, _Failure):
            raise UserError(batch.message)
        yield batch
