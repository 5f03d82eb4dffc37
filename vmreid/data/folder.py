"""Where a set's files lie: a folder of this machine, a web server, an object store. Manifests name files, never places."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import OrderedDict
from io import BufferedRandom, BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from vmreid.data.cache import Cache
from vmreid.data.remote import HttpStore, NoRanges, ObjectStore, Passing, persistently, unreadable
from vmreid.errors import UserError

if TYPE_CHECKING:
    from vmreid.data.manifest import Shard
    from vmreid.recipes.schema import Data

URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
OPEN_FILES = 128  # a process's usual limit is 1024 for all; training mixes the identities of 64 shards at a time
MANIFEST_BYTES = 1 << 28  # a million shards


class LocalFolder:
    """A folder of this machine, or mounted there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalFolder, (self.path,)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The set's name for people."""
        return self.path.name

    @property
    def uri(self) -> str:
        """Where the set lies, for other programs."""
        return self.path.resolve().as_uri()

    def where(self, file: str) -> str:
        """A file's place, for messages."""
        return str(self.path / file)

    def manifest(self) -> bytes:
        """The bytes of ``manifest.json``. Raises UserError where there is none."""
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder; --data takes a folder written by python -m shards.write, or its URL")
        if not (self.path / "manifest.json").is_file():
            found = ", ".join(sorted(entry.name for entry in self.path.iterdir())[:5]) or "nothing"
            raise UserError(f"{self.path}: no manifest.json in it (found {found}); write a set with python -m shards.write")
        return (self.path / "manifest.json").read_bytes()

    def open(self, file: str, size: int, digest: str) -> BufferedReader:
        """A whole file, open for reading. Raises Unreadable."""
        try:
            return (self.path / file).open("rb")
        except OSError as error:
            unreadable(self.where(file), error.strerror or str(error))

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        """``length`` bytes of a shard; fewer where it ends before. Raises Unreadable."""
        try:
            return os.pread(self._opened(shard), length, offset)
        except OSError as error:
            unreadable(self.where(shard.name), error.strerror or str(error))

    def expect(self, shard: Shard, offset: int, length: int) -> None:
        """Have the system read bytes of a shard into memory, without waiting for them; ``read`` tells where it cannot."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._opened(shard), offset, length, os.POSIX_FADV_WILLNEED)

    def _opened(self, shard: Shard) -> int:
        if shard.name not in self._open:
            self._open[shard.name] = os.open(self.path / shard.name, os.O_RDONLY)
            if len(self._open) > OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard.name)
        return self._open[shard.name]


class RemoteFolder:
    """A folder on a web server or in an object store. Whole files go through the cache."""

    def __init__(self, url: str, cache: Cache) -> None:
        self.uri, self.cache = url.rstrip("/"), cache
        self._store = HttpStore(self.uri) if urlsplit(url).scheme.lower() in ("http", "https") else ObjectStore(self.uri)
        self._ranges = True

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFolder, (self.uri, self.cache)

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The set's name for people."""
        return self.uri.rpartition("/")[2]

    def where(self, file: str) -> str:
        """A file's place, for messages."""
        return f"{self.uri}/{file}"

    def manifest(self) -> bytes:
        """The bytes of ``manifest.json``. Raises UserError where there is none."""

        def attempt() -> bytes:
            file = BytesIO()
            self._store.copy("manifest.json", file, MANIFEST_BYTES)
            return file.getvalue()

        return persistently(self.where("manifest.json"), attempt)

    def open(self, file: str, size: int, digest: str) -> BufferedReader:
        """A whole file of at most ``size`` bytes from the cache, open for reading. Raises Unreadable."""

        def attempt(copy: BufferedRandom) -> None:
            copy.seek(0)
            self._store.copy(file, copy, size)
            length = copy.tell()
            copy.truncate()
            if not has_digest(copy, digest):
                raise Passing(f"{length} bytes that differ from the manifest's digest")

        return self.cache.open(digest, size, lambda copy: persistently(self.where(file), lambda: attempt(copy)))

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        """``length`` bytes of a shard, by a range where the server gives ranges. Raises Unreadable."""
        if self._ranges:
            try:
                return persistently(self.where(shard.name), lambda: self._store.read(shard.name, offset, length, shard.size))
            except NoRanges:
                self._ranges = False
        with self.open(shard.name, shard.size, shard.sha256) as file:
            return os.pread(file.fileno(), length, offset)


ShardFolder: TypeAlias = LocalFolder | RemoteFolder
Place: TypeAlias = ShardFolder | Path


def as_folder(place: Place) -> ShardFolder:
    """A path as the folder that it names."""
    return LocalFolder(place) if isinstance(place, Path) else place


def weighted_folders(data: Data) -> list[tuple[ShardFolder, float]]:
    """The folders that ``data.shards`` names and their weights. Raises UserError for a URL that cannot be used."""
    assert data.shards is not None, "the launcher puts the synthetic set there"
    named = [(data.shards, 1.0)] if isinstance(data.shards, str) else [(each.shards, each.weight) for each in data.shards]
    return [(_folder(place, data), weight) for place, weight in named]


def _folder(place: str, data: Data) -> ShardFolder:
    if not URL.match(place):
        return LocalFolder(Path(place))
    parts = urlsplit(place)
    if "@" in parts.netloc or parts.query or parts.fragment:
        plain = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise UserError(
            f"{plain}: a URL of shards takes no password, query or fragment, since runs and MLflow keep the recipe; leave them "
            "out, and give keys by the environment of the store's package, such as s3fs for s3://"
        )
    return RemoteFolder(place, Cache(cache_folder(data), int(data.cache_gib * 2**30)))


def cache_folder(data: Data) -> Path:
    """``data.cache_dir``, or ``vmreid`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(data.cache_dir or Path(home) / "vmreid").expanduser()


def has_digest(file: BufferedReader | BufferedRandom, digest: str) -> bool:
    """Whether an open file's bytes, from its beginning, have a SHA-256 (hex)."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest() == digest
