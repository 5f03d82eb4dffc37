"""Files on a web server or in an object store: byte ranges and whole files, with time limits and further attempts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import fsspec
import urllib3

from vmreid.errors import UserError

T = TypeVar("T")

CONNECT_SECONDS = 10.0  # a handshake takes under 1 s; a lost packet of it is sent again after 1, 3 and 7 s
READ_SECONDS = 20.0  # of silence: a busy store's slowest answers take a few seconds
SLOWEST = 64 * 1024  # bytes a second: what is slower is asked for again, from another server where there are several
ATTEMPTS = 8  # with waits of 0.25, 0.5, ... 16 s, 32 s in all: longer than a server's restart or a store's fail-over
FIRST_WAIT = 0.25
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that another attempt may mend
CHUNK = 1 << 16
AT_ONCE = 8  # reads of a process that are under way: a store 20 ms away then gives it 400 identities/s


class Unreadable(UserError):
    """A file, or a part of one, that cannot be had; ``data.skip_unreadable`` goes on without it."""


class NoRanges(Exception):
    """The server gives whole files only."""


class Passing(Exception):
    """A failure that another attempt may mend."""


def persistently(where: str, attempt: Callable[[], T]) -> T:
    """``attempt``'s result, tried again after each ``Passing`` failure. Raises Unreadable after the last."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except Passing as failure:
            if number == ATTEMPTS:
                reason = " ".join(str(failure).split())[:200]
                unreadable(where, f"{reason}, {ATTEMPTS} times")
        time.sleep(FIRST_WAIT * 2 ** (number - 1))
    raise AssertionError("not reached")


def unreadable(where: str, reason: str) -> NoReturn:
    """Raise Unreadable with the way out. Training can do without a shard, not without manifest or index."""
    without = ", or train without it by data.skip_unreadable=true" if where.endswith(".tar") else ""
    raise Unreadable(f"{where}: {reason}; see that it is there and can be read{without}")


class HttpStore:
    """Files below an ``http://`` or ``https://`` URL. Proxies come from the environment."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._pools: dict[int, urllib3.PoolManager] = {}

    def read(self, name: str, offset: int, length: int, size: int) -> bytes:
        """``length`` bytes of a file of ``size`` bytes. Raises NoRanges, Passing, Unreadable."""
        last = offset + length - 1
        data = bytearray()
        response = self._get(name, {"Range": f"bytes={offset}-{last}"})
        try:
            if response.status == 200:
                raise NoRanges
            given = response.headers.get("Content-Range", "")
            if response.status == 416 or given.rpartition("/")[2] not in ("*", str(size)):
                unreadable(f"{self.url}/{name}", f"of another size ({given or 'no such range'}), the manifest says {size} bytes")
            if given.partition("/")[0] != f"bytes {offset}-{last}":
                raise Passing(f"asked for bytes {offset}-{last}, got {given}")
            for chunk in _chunks(response, length):
                data += chunk
        finally:
            self._release(response, whole=len(data) == length)
        return bytes(data)

    def copy(self, name: str, file: BinaryIO, most: int) -> None:
        """Write a whole file of at most ``most`` bytes. Raises Passing, Unreadable."""
        response = self._get(name, {})
        whole = False
        try:
            if response.status != 200:
                raise Passing(f"status {response.status}")
            declared = response.headers.get("Content-Length", "")
            length = int(declared) if declared.isdigit() else None
            if length is not None and length > most:
                unreadable(f"{self.url}/{name}", f"{length} bytes where at most {most} belong")
            for chunk in _chunks(response, length, most):
                file.write(chunk)
            whole = True
        finally:
            self._release(response, whole)

    def _get(self, name: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        where = f"{self.url}/{name}"
        try:
            response = self._pool().request(
                "GET", where, headers={"Accept-Encoding": "identity", **headers}, preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
                retries=urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=5),
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise Passing(str(error)) from None
        if response.status in PASSING:
            self._release(response, whole=False)
            raise Passing(f"status {response.status}")
        if response.status >= 400 and response.status != 416:
            self._release(response, whole=False)
            unreadable(where, f"status {response.status}")
        return response

    def _release(self, response: urllib3.BaseHTTPResponse, whole: bool) -> None:
        """A connection whose answer was not read to its end cannot be used again."""
        if whole:
            response.release_conn()
        else:
            response.close()

    def _pool(self) -> urllib3.PoolManager:
        """Connections are not shared with the process that this one was forked from."""
        if os.getpid() not in self._pools:
            parts = urlsplit(self.url)
            proxy = getproxies().get(parts.scheme)
            bypassed = not proxy or proxy_bypass(parts.hostname or "")
            made = urllib3.PoolManager(maxsize=AT_ONCE) if bypassed else urllib3.ProxyManager(str(proxy), maxsize=AT_ONCE)
            self._pools.setdefault(os.getpid(), made)
        return self._pools[os.getpid()]


def _chunks(response: urllib3.BaseHTTPResponse, length: int | None, most: int | None = None) -> Iterator[bytes]:
    """An answer's bytes as they come, ``length`` of them where it is known. Raises Passing for fewer or too slow ones."""
    begin, got = time.monotonic(), 0
    limit = most if length is None else length
    try:
        while chunk := response.read1(CHUNK):
            got += len(chunk)
            if limit is not None and got > limit:
                raise Passing(f"more than {limit} bytes")
            if time.monotonic() - begin > READ_SECONDS + got / SLOWEST:
                raise Passing(f"{got} bytes in {time.monotonic() - begin:.0f} s")
            yield chunk
            if got == length:
                return
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Passing(f"{type(error).__name__} after {got} bytes") from None
    if length is not None and got != length:
        raise Passing(f"{got} of {length} bytes")


class ObjectStore:
    """Files below a URL of any kind that fsspec opens, such as ``s3://`` with s3fs installed.

    Keys and endpoints come from that package's own environment and files, and so do its time limits.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._files: dict[int, Any] = {}
        try:
            fsspec.get_filesystem_class(urlsplit(url).scheme)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{url}: {' '.join(str(error).split())}; install the package that opens such URLs for fsspec"
            ) from None

    def read(self, name: str, offset: int, length: int, size: int) -> bytes:
        """``length`` bytes of a file. Raises Passing, Unreadable."""
        data: bytes = self._try(name, lambda files, path: files.cat_file(path, offset, offset + length))
        if len(data) != length:
            found = self._try(name, lambda files, path: files.size(path))
            if found != size:
                unreadable(f"{self.url}/{name}", f"{found} bytes, truncated or changed; the manifest says {size} bytes")
            raise Passing(f"{len(data)} of {length} bytes at {offset}")
        return data

    def copy(self, name: str, file: BinaryIO, most: int) -> None:
        """Write a whole file of at most ``most`` bytes. Raises Passing, Unreadable."""
        with self._try(name, lambda files, path: files.open(path, "rb")) as source:
            got = 0
            while chunk := self._try(name, lambda *_: source.read(CHUNK * 16)):
                got += len(chunk)
                if got > most:
                    unreadable(f"{self.url}/{name}", f"more than {most} bytes")
                file.write(chunk)

    def _try(self, name: str, action: Callable[[Any, str], Any]) -> Any:
        """Stores raise exceptions of their own packages, so any but a plain no is taken for a passing one."""
        try:
            return action(self._system(), f"{self.url}/{name}")
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            unreadable(f"{self.url}/{name}", f"{type(error).__name__} {' '.join(str(error).split())[:200]}")
        except Exception as error:
            raise Passing(f"{type(error).__name__} {error}") from error

    def _system(self) -> Any:
        """A file system of this process's own, as for connections."""
        if os.getpid() not in self._files:
            scheme = urlsplit(self.url).scheme
            self._files.setdefault(os.getpid(), fsspec.filesystem(scheme, skip_instance_cache=True))
        return self._files[os.getpid()]
