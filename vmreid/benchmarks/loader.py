"""The training loader beside what bounds it, decoding and transforming alone, and beside what others load pictures with."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import urllib3
import webdataset as wds
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info

from vmreid.benchmarks.loader_rows import BOUND, Rate
from vmreid.benchmarks.sources import Source, drop_pages
from vmreid.data.folder import URL, weighted_folders
from vmreid.data.identity_batches import IdentityBatches
from vmreid.data.manifest import read_index, read_manifest, require_splits
from vmreid.data.pictures import decode
from vmreid.data.ranges import ShardRanges
from vmreid.data.streams import TrainStream
from vmreid.data.transforms import TrainTransform
from vmreid.errors import UserError
from vmreid.recipes import Recipe
from vmreid.versions import versions

PICTURES = 4096  # at most, of those that are decoded from memory or lie in the folder
REPEATS = 9  # of every case, one round after the other: a machine's other work does not last through all
WARM_UP = 3  # batches, and those that the workers have made ahead
SECONDS = 1.0  # that a case is timed, at least
TURNS = 4  # batches of each worker that are timed, at least: workers end together, so a short time sees one more or less
AHEAD = 2  # batches a worker makes ahead: the default of DataLoader
SHUFFLED = 1000  # pictures in webdataset's buffer, as its documentation has it
NEVER = 2**40  # an end that is not reached


class LoaderBenchmark:
    """Four loaders with the recipe's transform and batch size, over the training split of a set, read as ``source`` says.

    Its folder gets the pictures that the plain folder loader reads. Raises UserError for a set that cannot be trained on, or
    is too small for cold reads.
    """

    def __init__(self, source: Source, recipe: Recipe, workers: list[int]) -> None:
        data = source.data
        self.manifest = read_manifest(data)
        require_splits(self.manifest, data, ("train",))
        self.source, self.recipe, self.split = source, recipe, self.manifest.splits["train"]
        self.index = read_index(data, self.split)
        self.batches = IdentityBatches(self.index, recipe.identities_per_batch, recipe.data.pictures_per_identity, recipe.seed)
        self.ranges = ShardRanges(data, self.split, self.index)
        self.transform = TrainTransform(recipe.data.image_size, recipe.data.augment)
        self.batch_size = recipe.train.batch_size
        loaders = {BOUND: self._alone, "vmreid": self._stream, "folder": self._folder, "webdataset": self._webdataset}
        self._pictures = [self.ranges.picture(row)[0] for row in range(min(PICTURES, self.split.pictures))]
        self._files = self._extracted()
        self._epochs = itertools.count()
        self._once = min(self.batches.steps_per_epoch, len(self._files) // self.batch_size)  # batches without a repetition
        if source.read == "cold":
            self._check_size(max(workers))
        self.cases = [(name, count, loader) for count in workers for name, loader in loaders.items()] * REPEATS

    def rates(self) -> Iterator[Rate]:
        """Time one case after the other, all of them ``REPEATS`` times."""
        for name, count, loader in self.cases:
            if self.source.read == "cold":
                shards = [self.source.data / shard.name for shard in self.split.shards]
                drop_pages([*shards, *(self.source.folder / file for file in self._files)])
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
            "read": self.source.read,
            "seconds_to_first_byte": self.source.seconds_to_first_byte,
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
        before = WARM_UP + AHEAD * workers
        for _ in range(before):
            next(batches)
        most = self._once - before - AHEAD * workers if self.source.read == "cold" else NEVER
        made, begin = 0, time.perf_counter()
        while made < most and (time.perf_counter() - begin < SECONDS or made < TURNS * workers):
            next(batches)
            made += 1
        return made * self.batch_size / (time.perf_counter() - begin)

    def _alone(self, workers: int) -> Iterator[Any]:
        return iter(DataLoader(_Alone(self._pictures, self.transform, self.batch_size), batch_size=None, num_workers=workers))

    def _stream(self, workers: int) -> Iterator[Any]:
        """By the path or URL as training reads it; from an epoch of its own, so that other pictures are read each time."""
        data = self.recipe.data.model_copy(update={"shards": self.source.shards, "cache_dir": str(self.source.cache)})
        ((place, _),) = weighted_folders(data)
        ranges = ShardRanges(place, self.split, read_index(place, self.split))
        begin = next(self._epochs) * self.batches.steps_per_epoch
        stream = TrainStream(self.batches, ranges, self.transform, rank=0, world=1, accumulation=1, begin=begin, end=NEVER)
        return stream.loader(workers)

    def _folder(self, workers: int) -> Iterator[Any]:
        dataset = _Folder(self.source.pictures, self._files, self.transform)
        sampler = RandomSampler(dataset, num_samples=NEVER)
        return iter(DataLoader(dataset, self.batch_size, sampler=sampler, num_workers=workers))

    def _webdataset(self, workers: int) -> Iterator[Any]:
        places = [f"{self.source.shards}/{shard.name}" for shard in self.split.shards]
        pictures = wds.WebDataset(places, resampled=True, shardshuffle=False).shuffle(SHUFFLED).decode()
        pipeline = pictures.map(_Transformed(self.transform)).batched(self.batch_size)
        return iter(wds.WebLoader(pipeline, batch_size=None, num_workers=workers))

    def _decoded(self, row: int) -> Any:
        return decode(self._pictures[row], "picture", self.transform.least)

    def _extracted(self) -> list[str]:
        """Names of files with the pictures, a folder an identity."""
        files = []
        for row, data in enumerate(self._pictures):
            path = self.source.folder / str(self.index[row]["pid"]) / f"{row}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            files.append(f"{path.parent.name}/{path.name}")
        return files

    def _check_size(self, workers: int) -> None:
        """A picture that comes again is in memory by then, so cold turns end before."""
        least = WARM_UP + 2 * AHEAD * workers + 1
        if self._once < least:
            raise UserError(
                f"{self.source.data}: {self._once} batches of {self.batch_size} in which no picture comes twice, --read cold "
                f"takes at least {least} with {workers} workers; give a larger set or fewer --workers"
            )


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
    """Pictures of a folder, or of a URL, with a subfolder an identity."""

    def __init__(self, place: str, files: list[str], transform: TrainTransform) -> None:
        self.place, self.files, self.transform = place, files, transform
        self._read = self._get if URL.match(place) else self._open

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        file = self.files[number]
        picture = decode(self._read(f"{self.place}/{file}"), file, self.transform.least)
        return self.transform(picture, (number,)), int(file.partition("/")[0])

    def _open(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def _get(self, url: str) -> bytes:
        return self._pool.request("GET", url).data

    @functools.cached_property
    def _pool(self) -> urllib3.PoolManager:
        """Made at the first picture, so by each worker for itself: its connection stays open."""
        return urllib3.PoolManager()


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
