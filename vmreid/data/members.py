"""Members of shards' tar files, in the form that webdataset's own reader gives them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from io import BufferedReader
from typing import Any

from vmreid.data.manifest import HEADER

NAME, SIZE, KIND = slice(0, 100), slice(124, 135), slice(156, 157)  # of a header, POSIX.1-1988 (ustar)
REGULAR = (b"0", b"\0")


def members(sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """``webdataset.tariterators.tar_file_expander`` for shards of ``shards.write``: plain headers, short names, regular files.

    Python's tarfile takes half as long to read two headers as decoding the picture of 256×128 between them does, this a seventh
    of that. Raises tarfile.ReadError for what is no such file.
    """
    for source in sources:
        for name, content in _members(source["stream"]):
            yield {"fname": name, "data": content, "__url__": source["url"]}
        yield {}  # the shard's end, so that no sample is of two


def _members(stream: BufferedReader) -> Iterator[tuple[str, bytes]]:
    while (header := stream.read(HEADER))[:1] not in (b"", b"\0"):
        try:
            name, size = header[NAME].rstrip(b"\0").decode("ascii"), int(header[SIZE], 8)
        except ValueError:
            raise tarfile.ReadError("bytes that are no header of a tar file") from None
        content = stream.read(size)
        if header[KIND] not in REGULAR or len(content) < size:
            raise tarfile.ReadError(f"{name}: no regular file of {size} bytes")
        stream.read(-size % HEADER)
        yield name, content
