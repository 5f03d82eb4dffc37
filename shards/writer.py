"""Pictures to identity-major tar shards with index and manifest. The same pictures give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import webdataset as wds

from shards.plan import Plan, PlannedShard, SourceFacts, make_plan
from shards.processes import processes
from shards.sources import Picture, Splits
from shards.sources.files import examples
from shards.unfinished import ROW_DTYPE, Record, Unfinished
from vmreid.data.manifest import FORMAT_VERSION, INDEX_DTYPE, Manifest, Split, digest_of, parse_manifest, sha256_of
from vmreid.progress import Reporter
from vmreid.run_folder import write_atomically

CHUNK = 16  # pictures that a process reads at a time
PICTURES_WORTH_PROCESSES = 1000  # fewer are written before the processes have started


def write_shards(
    splits: Splits, out: Path, source: SourceFacts, workers: int = 1, part: tuple[int, int] = (1, 1)
) -> Manifest | None:
    """Write all ``splits`` into the new or empty folder ``out``; ``workers`` processes read or render the pictures.

    ``part`` (i, n) writes the i-th share of the shards, and whichever part ends last the manifest; None where others are
    still missing. Neither number changes a byte. The manifest comes last, so that a folder without one is not a set. What an
    interrupted or failed call leaves is gone on from by the next with the same pictures and ``source``, which keeps every
    whole shard. Raises UserError where ``out`` is in use.
    """
    plan = make_plan(splits, source)
    if part != (1, 1) and (manifest := _finished(out, plan)):
        return manifest
    unfinished = Unfinished(out, plan)
    number, parts = part
    try:
        _write_missing(plan.shards[number - 1 :: parts], unfinished, workers)
        return _finish(out, plan, unfinished)
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and (manifest := _finished(out, plan)):  # by another process, meanwhile
            return manifest
        if isinstance(error, OSError) and Path(error.filename or out).is_relative_to(out):  # as when the disk is full
            error.filename = str(out)
        done = len(unfinished.recorded())
        print(f"{out}: {done} of {len(plan.shards)} shards are whole; the same command goes on from there", file=sys.stderr)
        raise


def _finished(out: Path, plan: Plan) -> Manifest | None:
    """The manifest that the other parts have written while this one had not begun; its shards are as planned."""
    if not (out / "manifest.json").is_file():
        return None
    manifest = parse_manifest(out)
    planned = {split: [(shard.name, len(shard.pictures)) for shard in shards] for split, shards in plan.splits.items()}
    written = {name: [(shard.name, shard.pictures) for shard in split.shards] for name, split in manifest.splits.items()}
    return manifest if (manifest.source, written) == (plan.source, planned) else None


def _write_missing(shards: list[PlannedShard], unfinished: Unfinished, workers: int) -> None:
    recorded = unfinished.recorded()
    begun = [shard for shard in shards if shard.name in recorded]
    kept = set()
    if begun:
        with Reporter("checking shards that are there", len(begun)) as progress:
            for shard in begun:
                if unfinished.is_whole(shard):
                    kept.add(shard.name)
                progress.advance(shard.name)
    missing = [shard for shard in shards if shard.name not in kept]
    pictures = [picture for shard in missing for picture in shard.pictures]
    number = sum(len(shard.pictures) for shard in shards)
    with (
        _readers(workers if len(pictures) >= PICTURES_WORTH_PROCESSES else 1) as read,
        Reporter("writing pictures", number, number - len(pictures)) as progress,
    ):
        jpegs = read(pictures)
        for shard in missing:
            with unfinished.under_way(shard) as path:
                unfinished.keep(shard, path, _write_shard(shard, path, jpegs, progress))


Read = Callable[[list[Picture]], Iterator[bytes]]  # the pictures' bytes, in their order


@contextlib.contextmanager
def _readers(workers: int) -> Iterator[Read]:
    if workers == 1:
        yield lambda pictures: (picture.read() for picture in pictures)
        return
    with processes(workers, __name__) as pool:
        yield partial(_read_ahead, pool, 4 * workers)


def _read_ahead(pool: ProcessPoolExecutor, chunks: int, pictures: list[Picture]) -> Iterator[bytes]:
    """At most ``chunks`` chunks are on their way, so that memory stays bounded where reading outruns writing."""
    waiting: deque[Future[list[bytes]]] = deque()
    for begin in range(0, len(pictures), CHUNK):
        waiting.append(pool.submit(_read, pictures[begin : begin + CHUNK]))
        if len(waiting) == chunks:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _read(pictures: list[Picture]) -> list[bytes]:
    return [picture.read() for picture in pictures]


def _write_shard(shard: PlannedShard, path: Path, jpegs: Iterator[bytes], progress: Reporter) -> np.ndarray:
    """Returns a row of ``ROW_DTYPE`` for each picture."""
    sums = []
    with path.open("wb") as file, wds.TarWriter(file, mtime=0, user="vmreid", group="vmreid") as tar:
        for row, picture in enumerate(shard.pictures, start=shard.first):
            jpeg = next(jpegs)
            sums.append((zlib.crc32(jpeg), hashlib.blake2b(jpeg, digest_size=ROW_DTYPE["digest"].itemsize).digest()))
            tar.write({"__key__": f"{row:08d}", "jpg": jpeg, "json": json.dumps(picture.facts()).encode()})
            progress.advance(picture.name)
    with tarfile.open(path) as written:
        ranges = [(member.offset_data, member.size) for member in written if member.name.endswith(".jpg")]
    return np.array([(*place, *both) for place, both in zip(ranges, sums, strict=True)], dtype=ROW_DTYPE)


def _finish(out: Path, plan: Plan, unfinished: Unfinished) -> Manifest | None:
    """Index and manifest, once every shard is there. Another part may do so at the same time: it writes the same bytes."""
    records = unfinished.records()
    if records is None:
        manifest = _finished(out, plan)
        if manifest:  # by another part, whose folder this one has made again
            unfinished.remove()
        return manifest
    written = {name: _write_index(name, shards, records, out) for name, shards in plan.splits.items()}
    manifest = Manifest(format_version=FORMAT_VERSION, source=plan.source, splits=written, digest=digest_of(written))
    write_atomically(out / "manifest.json", manifest.model_dump_json(indent=1) + "\n")
    unfinished.remove()
    _tell_copies(plan.shards, records)
    return manifest


def _write_index(name: str, shards: list[PlannedShard], records: dict[str, Record], out: Path) -> Split:
    index = np.empty(sum(len(shard.pictures) for shard in shards), dtype=INDEX_DTYPE)
    for shard in shards:
        part = index[shard.first : shard.first + len(shard.pictures)]
        part["pid"] = [picture.pid for picture in shard.pictures]
        part["camid"] = [picture.camid for picture in shard.pictures]
        part["shard"] = shard.number
        for field in ("offset", "length", "crc32"):
            part[field] = records[shard.name].rows[field]
    path, data = out / f"{name}.index.npy", io.BytesIO()
    np.save(data, index)
    write_atomically(path, data.getvalue())
    return Split(
        pictures=len(index),
        identities=len(np.unique(index["pid"])),
        cameras=np.unique(index["camid"]).tolist(),
        shards=[records[shard.name].shard for shard in shards],
        index=path.name,
        index_sha256=sha256_of(path),
    )


def _tell_copies(shards: list[PlannedShard], records: dict[str, Record]) -> None:
    """Warn of pictures with the same bytes; those that count as another identity are shown first."""
    pictures = [picture for shard in shards for picture in shard.pictures]
    digests = np.concatenate([np.empty(0, ROW_DTYPE), *(records[shard.name].rows for shard in shards)])["digest"]
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[group] != np.arange(len(digests)))
    if not len(copies):
        return
    pairs = [(pictures[first[group[copy]]], pictures[copy]) for copy in copies]
    pairs.sort(key=lambda pair: pair[0].pid == pair[1].pid)
    unlike = sum(one.pid != other.pid for one, other in pairs)
    shown = examples([f"{one.name} = {other.name}" for one, other in pairs])
    print(
        f"warning: {len(pairs):,} pictures have the bytes of an earlier one, {unlike:,} of them under another identity: {shown}",
        file=sys.stderr,
    )
