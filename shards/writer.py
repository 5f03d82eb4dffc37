"""Pictures to identity-major tar shards with index and manifest. The same pictures give the same bytes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import multiprocessing
import signal
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path

import numpy as np
import webdataset as wds

from shards.sources import Picture, Splits
from vmreid.data.manifest import FORMAT_VERSION, INDEX_DTYPE, Manifest, Shard, Split, digest_of, sha256_of
from vmreid.errors import UserError
from vmreid.progress import Reporter

PICTURES_PER_SHARD = 4096
SHARDS_WANTED = 16  # small sets still give every rank and worker a shard
CHUNK = 16  # pictures that a process reads at a time
PICTURES_WORTH_PROCESSES = 1000  # fewer are written before the processes have started


def write_shards(splits: Splits, out: Path, source: dict[str, str | int | float | None], workers: int = 1) -> Manifest:
    """Write all ``splits`` into the new or empty folder ``out``; ``workers`` processes read or render the pictures.

    The manifest comes last, so that a folder without one is not a set. What an interrupted or failed call leaves is
    removed. Raises UserError where ``out`` is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; give a new --out, or remove it first")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); choose another --out") from None
    try:
        number = sum(map(len, splits.values()))
        with (
            _readers(workers if number >= PICTURES_WORTH_PROCESSES else 1) as read,
            Reporter("writing pictures", number) as progress,
        ):
            written = {name: _write_split(name, pictures, out, read, progress) for name, pictures in splits.items()}
        manifest = Manifest(format_version=FORMAT_VERSION, source=source, splits=written, digest=digest_of(written))
        (out / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # as when the disk is full
            error.filename = str(out)
        with contextlib.suppress(OSError):
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
        raise
    return manifest


Read = Callable[[list[Picture]], Iterator[bytes]]  # the pictures' bytes, in their order


@contextlib.contextmanager
def _readers(workers: int) -> Iterator[Read]:
    if workers == 1:
        yield lambda pictures: (picture.read() for picture in pictures)
        return
    context = multiprocessing.get_context("forkserver")  # forks of this process could inherit another thread's locks
    context.set_forkserver_preload([__name__])
    with context.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield partial(_read_ahead, pool, 4 * workers)


def _read_ahead(pool: Pool, chunks: int, pictures: list[Picture]) -> Iterator[bytes]:
    """At most ``chunks`` chunks are on their way, so that memory stays bounded where reading outruns writing."""
    waiting: deque[AsyncResult[list[bytes]]] = deque()
    for begin in range(0, len(pictures), CHUNK):
        waiting.append(pool.apply_async(_read, (pictures[begin : begin + CHUNK],)))
        if len(waiting) == chunks:
            yield from waiting.popleft().get()
    while waiting:
        yield from waiting.popleft().get()


def _read(pictures: list[Picture]) -> list[bytes]:
    return [picture.read() for picture in pictures]


def _write_split(split: str, pictures: list[Picture], out: Path, read: Read, progress: Reporter) -> Split:
    pictures = sorted(pictures, key=lambda picture: picture.pid)  # stable: a source's order holds within an identity
    shards: list[Shard] = []
    rows: list[tuple[int, ...]] = []
    jpegs = read(pictures)
    for number, part in enumerate(_whole_identities(pictures)):
        path = out / f"{split}-{number:06d}.tar"
        with path.open("wb") as file, wds.TarWriter(file, mtime=0, user="vmreid", group="vmreid") as tar:
            for row, picture in enumerate(part, start=len(rows)):
                fields = {"pid": picture.pid, "camid": picture.camid, "name": picture.name}
                tar.write({"__key__": f"{row:08d}", "jpg": next(jpegs), "json": json.dumps(fields).encode()})
                progress.advance(picture.name)
        with tarfile.open(path) as written:
            ranges = [(member.offset_data, member.size) for member in written if member.name.endswith(".jpg")]
        rows += [(item.pid, item.camid, number, *place) for item, place in zip(part, ranges, strict=True)]
        shards.append(Shard(name=path.name, size=path.stat().st_size, sha256=sha256_of(path), pictures=len(part)))
    index, data = out / f"{split}.index.npy", io.BytesIO()
    np.save(data, np.array(rows, dtype=INDEX_DTYPE))
    index.write_bytes(data.getvalue())  # np.save's own error on a full disk may not say so
    return Split(
        pictures=len(pictures),
        identities=len({picture.pid for picture in pictures}),
        cameras=sorted({picture.camid for picture in pictures}),
        shards=shards,
        index=index.name,
        index_sha256=sha256_of(index),
    )


def _whole_identities(pictures: list[Picture]) -> Iterator[list[Picture]]:
    """Cut into shards at identity borders, so that an identity is one byte range."""
    size = min(PICTURES_PER_SHARD, math.ceil(len(pictures) / SHARDS_WANTED))
    part: list[Picture] = []
    for _, group in groupby(pictures, key=lambda picture: picture.pid):
        part += group
        if len(part) >= size:
            yield part
            part = []
    if part:
        yield part
