"""Whole files of remote folders on this machine's disk, shared by its ranks and their workers, up to a size limit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from io import BufferedRandom, BufferedReader
from pathlib import Path

from vmreid.errors import UserError

STALE_SECONDS = 3600.0  # a download that has not grown for this long lost its process; those alive have shorter time limits
PARTIAL = ".partial"


class Cache:
    """Files by the SHA-256 of their bytes, so that two sets or two runs never mix; the least recently opened go first.

    Processes of all ranks may use one folder at once: a file is downloaded under a lock that dies with its process, and
    takes its name only when it is whole.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def open(self, digest: str, size: int, download: Callable[[BufferedRandom], None]) -> BufferedReader:
        """The file of ``digest``, open for reading; where it is not here yet, ``download`` writes its at most ``size`` bytes.

        An open file stays readable when others need its room. Raises UserError where ``size`` is more than the limit, and
        what ``download`` raises.
        """
        path = self.folder / digest
        found = _opened(path)
        if found is None:
            with self._locked(digest[:2]):  # few locks for any number of files
                found = _opened(path) or self._downloaded(path, size, download)
        return found

    def _downloaded(self, path: Path, size: int, download: Callable[[BufferedRandom], None]) -> BufferedReader:
        partial = path.with_suffix(PARTIAL)
        try:
            with self._locked("room"):
                self._make_room(size)
                with partial.open("wb") as file:
                    file.truncate(size)  # others count it whole from now on
            with partial.open("r+b") as file:
                download(file)
            found = partial.open("rb")
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return found

    def _make_room(self, size: int) -> None:
        if size > self.limit:
            raise UserError(
                f"data.cache_gib {self.limit / 2**30:.3g}: in {self.folder}, too little for a file of {size / 2**30:.3g} GiB; "
                "raise it"
            )
        files = sorted(self._files(), key=lambda item: item[1].st_mtime)
        taken = sum(status.st_size for _, status in files)
        for path, status in files:
            if taken + size <= self.limit:
                return
            if path.suffix != PARTIAL or time.time() - status.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
                taken -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.suffix != ".lock":
                    yield path, path.stat()

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _opened(path: Path) -> BufferedReader | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # removed, or another user's: it is open all the same
        os.utime(path)
    return file
