"""The training loader beside what bounds it, decoding and transforming alone, and beside what others load pictures with."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info

from vmreid.benchmarks.loader_rows import BOUND, Rate
from vmreid.data.identity_batches import IdentityBatches
from vmreid.data.manifest import read_index, read_manifest, require_splits
from vmreid.data.pictures import decode
from vmreid.data.ranges import ShardRanges
from vmreid.data.streams import TrainStream
from vmreid.data.transforms import TrainTransform
from vmreid.recipes import Recipe
from vmreid.versions import versions

PICTURES = 4096  # at most, of those that are decoded from memory or lie in the folder
REPEATS = 9  # of every case, one round after the other: a machine's other work does not last through all
WARM_UP = 3  # batches, and those that the workers have made ahead
SECONDS = 1.0  # that a case is timed, at least
AHEAD = 2  # batches a worker makes ahead: the default of DataLoader
SHUFFLED = 1000  # pictures in webdataset's buffer, as its documentation has it
NEVER = 2**40  # an end that is not reached


class LoaderBenchmark:
    """Four loaders with the recipe's transform and batch size, over the training split of ``data``, warm.

    ``folder`` is empty and gets the pictures that the plain folder loader reads. Raises UserError for a set that cannot be
    trained on.
    """

    def __init__(self, data: Path, recipe: Recipe, workers: list[int], folder: Path) -> None:
        self.manifest = read_manifest(data)
        require_splits(self.manifest, data, ("train",))
        self.data, self.recipe, self.folder, self.split = data, recipe, folder, self.manifest.splits["train"]
        self.index = read_index(data, self.split)
        self.batches = IdentityBatches(self.index, recipe.identities_per_batch, recipe.data.pictures_per_identity, recipe.seed)
        self.ranges = ShardRanges(data, self.split, self.index)
        self.transform = TrainTransform(recipe.data.image_size, recipe.data.augment)
        self.batch_size = recipe.train.batch_size
        loaders = {BOUND: self._alone, "vmreid": self._stream, "folder": self._folder, "webdataset": self._webdataset}
        self._pictures = [self.ranges.picture(row)[0] for row in range(min(PICTURES, self.split.pictures))]
        self._paths = self._extracted()
        self.cases = [(name, count, loader) for count in workers for name, loader in loaders.items()] * REPEATS

    def rates(self) -> Iterator[Rate]:
        """Time one case after the other, all of them ``REPEATS`` times."""
        for name, count, loader in self.cases:
            yield Rate(name, count, self._images_per_s(loader(count), count))

    def parts_us(self) -> dict[str, float]:
        """Microseconds a picture of reading, decoding and transforming, each alone on one core; the least of some rounds."""
        rows = range(min(len(self._pictures), 256))
        decoded = [self._decoded(row) for row in rows]
        parts: dict[str, Callable[[int], object]] = {
            "read": self.ranges.picture,
            "decode": self._decoded,
            "transform": lambda row: self.transform(decoded[row], (row,)),
        }
        return {name: min(_seconds(part, rows) for _ in range(REPEATS)) / len(rows) * 1e6 for name, part in parts.items()}

    def setting(self, command: str) -> dict[str, Any]:
        """What the figures hold for."""
        data = self.recipe.data
        return {
            "command": command,
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
            "versions": versions(),
            "data_digest": self.manifest.digest,
            "pictures": self.split.pictures,
            "bytes_a_picture": float(self.index["length"].mean()),
            "image_size": data.image_size,
            "augment": data.augment.model_dump(),
            "batch_size": self.batch_size,
            "repeats": REPEATS,
            "seconds": SECONDS,
        }

    def _images_per_s(self, batches: Iterator[Any], workers: int) -> float:
        for _ in range(WARM_UP + AHEAD * workers):
            next(batches)
        made, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < SECONDS:
            next(batches)
            made += 1
        return made * self.batch_size / (time.perf_counter() - begin)

    def _alone(self, workers: int) -> Iterator[Any]:
        return iter(DataLoader(_Alone(self._pictures, self.transform, self.batch_size), batch_size=None, num_workers=workers))

    def _stream(self, workers: int) -> Iterator[Any]:
        stream = TrainStream(self.batches, self.ranges, self.transform, rank=0, world=1, accumulation=1, begin=0, end=NEVER)
        return stream.loader(workers)

    def _folder(self, workers: int) -> Iterator[Any]:
        dataset = _Folder(self._paths, self.transform)
        sampler = RandomSampler(dataset, num_samples=NEVER)
        return iter(DataLoader(dataset, self.batch_size, sampler=sampler, num_workers=workers))

    def _webdataset(self, workers: int) -> Iterator[Any]:
        paths = [str(self.data / shard.name) for shard in self.split.shards]
        pictures = wds.WebDataset(paths, resampled=True, shardshuffle=False).shuffle(SHUFFLED).decode()
        pipeline = pictures.map(_Transformed(self.transform)).batched(self.batch_size)
        return iter(wds.WebLoader(pipeline, batch_size=None, num_workers=workers))

    def _decoded(self, row: int) -> Any:
        return decode(self._pictures[row], "picture", self.transform.least)

    def _extracted(self) -> list[Path]:
        """Files of the pictures, a folder an identity."""
        paths = []
        for row, data in enumerate(self._pictures):
            path = self.folder / str(self.index[row]["pid"]) / f"{row}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            paths.append(path)
        return paths


class _Alone(IterableDataset[int]):
    """Decodes and transforms pictures from memory, and keeps none: no more can come from so many processes."""

    def __init__(self, pictures: list[bytes], transform: TrainTransform, batch_size: int) -> None:
        self.pictures, self.transform, self.batch_size = pictures, transform, batch_size

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        for number in itertools.count(worker.id if worker else 0, worker.num_workers if worker else 1):
            for place in range(number * self.batch_size, (number + 1) * self.batch_size):
                self.transform(decode(self.pictures[place % len(self.pictures)], "picture", self.transform.least), (place,))
            yield number


class _Folder(Dataset[tuple[torch.Tensor, int]]):
    """Pictures of a folder with a subfolder an identity."""

    def __init__(self, paths: list[Path], transform: TrainTransform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        path = self.paths[place]
        return self.transform(decode(path.read_bytes(), path.name, self.transform.least), (place,)), int(path.parent.name)


class _Transformed:
    """A sample of webdataset, decoded and transformed as all others are."""

    def __init__(self, transform: TrainTransform) -> None:
        self.transform = transform

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        picture = decode(sample["jpg"], sample["__key__"], self.transform.least)
        return self.transform(picture, (sample["__key__"],)), sample["json"]["pid"]


def _seconds(part: Callable[[int], object], rows: range) -> float:
    begin = time.perf_counter()
    for row in rows:
        part(row)
    return time.perf_counter() - begin
