"""What is not as the manifest says: files, indices, and each picture of each shard, looked at by several processes."""

from __future__ import annotations

import contextlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.processes import processes
from vmreid.data.manifest import Manifest, Shard, Split, read_index, sha256_of, size_faults
from vmreid.data.pictures import decode
from vmreid.errors import UserError
from vmreid.progress import Reporter

PICTURES_WORTH_PROCESSES = 4096  # fewer are looked at before the processes have started


@dataclass(frozen=True)
class _Place:
    """A shard with its file and its split's index, its number in the index, and the index row of its first picture."""

    shard: Shard
    path: Path
    index: Path
    number: int
    first: int


Check = Callable[[list[_Place]], Iterator[list[str]]]  # each shard's faults, in order


def find_faults(folder: Path, manifest: Manifest, workers: int = 1) -> Iterator[str]:
    """One line for each file or picture that is not as the manifest says, in the same order for any number of ``workers``.

    A process holds one picture at a time. Raises UserError where one is killed.
    """
    places: list[_Place] = []
    lines: list[tuple[list[str], int]] = []  # of each split, and how many of ``places`` are its own
    for name, split in manifest.splits.items():
        of_split: list[_Place] = []
        lines.append((list(_split_faults(folder, name, split, of_split)), len(of_split)))
        places += of_split
    pictures = sum(place.shard.pictures for place in places)
    with (
        _checking(workers if pictures >= PICTURES_WORTH_PROCESSES else 1) as check,
        Reporter("verifying shards", len(places)) as progress,
    ):
        checked = zip(places, check(places), strict=True)
        for of_files, shards in lines:
            yield from of_files
            for _ in range(shards):
                place, of_shard = next(checked)
                yield from of_shard
                progress.advance(place.shard.name)


def _split_faults(folder: Path, name: str, split: Split, places: list[_Place]) -> Iterator[str]:
    """Faults of a split's files and index. Where the index can be gone by, ``places`` gets the shards that are there."""
    yield from size_faults(folder, split)
    path = folder / split.index
    if not path.is_file():
        return
    if sha256_of(path) != split.index_sha256:
        yield f"{split.index}: bytes differ from the manifest's digest"
        return
    try:
        index = read_index(folder, split)
    except UserError as error:
        yield str(error).partition(";")[0]
        return
    counts = (len(np.unique(index["pid"])), sorted(map(int, np.unique(index["camid"]))))
    if counts != (split.identities, split.cameras):
        yield f"{name}: index has {counts[0]} identities and cameras {counts[1]}, the manifest says otherwise"
    first = 0
    for number, shard in enumerate(split.shards):
        if (folder / shard.name).is_file():
            places.append(_Place(shard, folder / shard.name, path, number, first))
        first += shard.pictures
    if first != split.pictures:
        yield f"{name}: shards hold {first} pictures, the manifest says {split.pictures}"


@contextlib.contextmanager
def _checking(workers: int) -> Iterator[Check]:
    if workers == 1:
        yield lambda places: map(_shard_faults, places)
        return
    with processes(workers, __name__) as pool:
        yield lambda places: pool.map(_shard_faults, places)


def _shard_faults(place: _Place) -> list[str]:
    faults = []
    if place.path.stat().st_size == place.shard.size and sha256_of(place.path) != place.shard.sha256:
        faults.append(f"{place.shard.name}: bytes differ from the manifest's digest")
    index = np.load(place.index, mmap_mode="r")
    seen = 0
    try:
        with tarfile.open(place.path, "r:") as tar:  # as byte ranges read it, so not compressed
            for member in tar:
                key, _, kind = member.name.partition(".")
                content = tar.extractfile(member)
                data = content.read() if content else b""
                row = index[int(key)]
                picture = f"{place.shard.name} picture {key}"
                if kind == "json":
                    fields = json.loads(data)
                    if (fields["pid"], fields["camid"]) != (int(row["pid"]), int(row["camid"])):
                        faults.append(f"{picture}: identity or camera differ from the index")
                    continue
                seen += 1
                if (int(row["offset"]), int(row["length"])) != (member.offset_data, member.size):
                    faults.append(f"{picture}: lies elsewhere than the index says")
                if zlib.crc32(data) != row["crc32"]:
                    faults.append(f"{picture}: bytes differ from the index's CRC-32")
                try:
                    decode(data, picture, (1, 1))  # reads every byte of a JPEG, and makes few pixels of them
                except UserError as error:
                    faults.append(str(error).partition(";")[0])
    except Exception as error:  # damaged headers and fields end in errors of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        faults.append(f"{place.shard.name}: not readable as a tar of pictures ({reason})")
    in_index = int((index["shard"][place.first : place.first + place.shard.pictures] == place.number).sum())
    if seen != in_index:
        faults.append(f"{place.shard.name}: {seen} pictures, the index says {in_index} from row {place.first}")
    return faults
