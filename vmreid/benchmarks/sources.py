"""Where the loader benchmark's pictures come from: files in memory, files on disk alone, a store over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from vmreid.errors import UserError

Read = Literal["warm", "cold", "http"]
FIRST_BYTE_SECONDS = 0.015  # object stores of one's own region take 10 to 20 ms for each request, loopback takes none
REMAINS = 0.01  # share of the pages that may stay in memory: what another process reads by chance
RANGE = re.compile(rb"^range: *bytes=(\d+)-(\d+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """How it is read: the set ``data`` and single pictures in ``folder``, and the path or URL by which loaders reach each.

    ``cache`` is a folder for whole files of remote sets. ``seconds_to_first_byte``: before each answer of the server.
    """

    read: Read
    data: Path
    folder: Path
    cache: Path
    shards: str
    pictures: str
    seconds_to_first_byte: float | None = None


@contextlib.contextmanager
def opened(read: Read, data: Path, scratch: Path) -> Iterator[Source]:
    """A set, and folders for its single pictures and for the cache below ``scratch``, which are made.

    ``http`` serves the set and the pictures by a process of its own, until the end. Raises UserError without curl for that.
    """
    folder, cache = scratch / "pictures", scratch / "cache"
    folder.mkdir()
    cache.mkdir()
    if read != "http":
        yield Source(read, data, folder, cache, str(data), str(folder))
        return
    if not shutil.which("curl"):
        raise UserError("--read http: webdataset reads URLs by curl, which is not on PATH; install it")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=_serve, args=((data, folder), FIRST_BYTE_SECONDS, sender), daemon=True)
    server.start()
    sender.close()  # so that a server that does not start is an error here, not a wait
    try:
        url = f"http://127.0.0.1:{receiver.recv()}"
        yield Source(read, data, folder, cache, f"{url}/0", f"{url}/1", FIRST_BYTE_SECONDS)
    finally:
        server.terminate()
        server.join()


def drop_pages(paths: Iterable[Path]) -> None:
    """Take the files out of memory. Their directory entries stay. Raises UserError where the files stay too."""
    stayed = pages = 0
    os.sync()  # what is not on disk yet cannot be dropped
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            held = pages_held(file.fileno())
        stayed, pages = stayed + sum(held), pages + len(held)
    if stayed > REMAINS * pages:
        raise UserError(
            f"--read cold: {stayed} of {pages} pages stay in memory; put the set and TMPDIR on a local disk, such as one with "
            "ext4 or xfs, and end what else reads them"
        )


def pages_held(file: int) -> list[int]:
    """1 for each page of an open file, not an empty one, that is in memory, 0 for each that is not."""
    size = os.fstat(file).st_size
    held = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(file, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        first = ctypes.c_char.from_buffer(mapped)  # only of what could be written to; nothing is
        failed = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(size), held)
        del first
    assert not failed
    return [page & 1 for page in held]


def _serve(roots: tuple[Path, Path], seconds: float, port: Connection) -> None:
    """Answer GET of ``/0/NAME`` and ``/1/NAME``, files below the two roots, on a free port, which is sent first."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:  # connections stay open, for all alike
                request = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(seconds)
                writer.write(_answer(roots, request))
                await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def _answer(roots: tuple[Path, Path], request: bytes) -> bytes:
    _, number, name = request.split(b" ", 2)[1].decode().split("/", 2)
    path, wanted = (roots[int(number)] / name).resolve(), RANGE.search(request)
    if not path.is_file() or not path.is_relative_to(roots[int(number)].resolve()):  # other users reach this port too
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    size = path.stat().st_size
    first, last = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted else (0, size - 1)
    with path.open("rb") as file:
        body = os.pread(file.fileno(), last - first + 1, first)
    status = HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Range: bytes {first}-{last}/{size}\r\n" if wanted else ""
    return f"{head}\r\n".encode() + body
