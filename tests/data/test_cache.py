"""The cache: each file once, whole or not at all, within its limit, whatever processes share it and however they end."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from io import BufferedRandom
from pathlib import Path

import pytest

from vmreid.data.cache import Cache
from vmreid.errors import UserError


def content(number: int, size: int = 1000) -> bytes:
    return bytes([number]) * size


def writes(data: bytes) -> Callable[[BufferedRandom], None]:
    def download(file: BufferedRandom) -> None:
        file.write(data)

    return download


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def get(cache: Cache, data: bytes) -> bytes:
    """Through the cache."""
    with cache.open(digest(data), len(data), writes(data)) as file:
        return file.read()


def have(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.suffix != ".lock"}


def no_download(file: BufferedRandom) -> None:
    raise AssertionError("it was here already")


def test_the_least_recently_opened_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "cache", 3500)
    for number in range(3):
        assert get(cache, content(number)) == content(number)
        os.utime(cache.folder / digest(content(number)), (number, number))
    cache.open(digest(content(0)), 1000, no_download).close()  # now the youngest
    assert get(cache, content(3)) == content(3)
    assert have(cache) == {digest(content(number)) for number in (0, 2, 3)}
    assert get(cache, content(4, 3500)) == content(4, 3500)
    assert have(cache) == {digest(content(4, 3500))}


def test_an_open_file_stays_readable(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    with cache.open(digest(content(1)), 1000, writes(content(1))) as file:
        get(cache, content(2))
        assert have(cache) == {digest(content(2))}
        assert file.read() == content(1)


def test_larger_than_the_limit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cache_gib"):
        get(Cache(tmp_path, 999), content(1))
    assert have(Cache(tmp_path, 999)) == set()


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 5000)

    def fail(file: BufferedRandom) -> None:
        file.write(b"half")
        raise UserError("gone")

    with pytest.raises(UserError, match="gone"):
        cache.open(digest(content(1)), 1000, fail)
    assert have(cache) == set()
    assert get(cache, content(1)) == content(1)


def slow_get(folder: Path, count: Path) -> bytes:
    """In a process of its own: note that a download began, and take long over it."""

    def download(file: BufferedRandom) -> None:
        with count.open("a") as notes:
            notes.write("x")
        time.sleep(0.3)
        file.write(content(1))

    with Cache(folder, 5000).open(digest(content(1)), 1000, download) as file:
        return file.read()


def test_processes_download_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        found = pool.starmap(slow_get, [(tmp_path / "cache", tmp_path / "count")] * 8, chunksize=1)
    assert found == [content(1)] * 8
    assert (tmp_path / "count").read_text() == "x"


def never_ends(folder: Path) -> None:
    def download(file: BufferedRandom) -> None:
        file.write(content(1)[:500])
        file.flush()
        time.sleep(60)

    Cache(folder, 5000).open(digest(content(1)), 1000, download)


def test_a_killed_download_holds_nobody_up(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=never_ends, args=(tmp_path,))
    process.start()
    while not list(tmp_path.glob("*.partial")):
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert get(Cache(tmp_path, 5000), content(1)) == content(1)
    assert have(Cache(tmp_path, 5000)) == {digest(content(1))}


def test_room_of_downloads_under_way_is_taken_but_old_ones_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 2500)
    partial = tmp_path / f"{digest(content(9))}.partial"
    partial.write_bytes(content(9))
    get(cache, content(1))
    get(cache, content(2))
    assert have(cache) == {partial.name, digest(content(2))}
    os.utime(partial, (0, 0))
    get(cache, content(3))
    assert have(cache) == {digest(content(2)), digest(content(3))}
