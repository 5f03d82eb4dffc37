"""Single pictures of a set by their byte ranges."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np

from vmreid.data.folder import Place, as_folder
from vmreid.data.manifest import HEADER, REWRITE, Split
from vmreid.data.remote import Unreadable
from vmreid.errors import UserError

SPARE = 1 << 20  # bytes read in vain rather than asked for apart: at 100 MB/s they take 10 ms, less than a round trip


class Pictures(Protocol):
    """Pictures by row."""

    def picture(self, row: int) -> tuple[bytes, str]: ...

    def expect(self, rows: Sequence[int]) -> None: ...


class ShardRanges:
    """Reads byte ranges of a split's shards, each with the tar header before it, which says whose picture it is.

    The index's CRC-32 says whether the picture's bytes are those that were written.
    """

    def __init__(self, place: Place, split: Split, index: np.ndarray) -> None:
        self._folder, self._shards, self._index = as_folder(place), split.shards, index
        self._span = (-1, 0, b"")  # shard, offset and bytes of what was read ahead
        self._lost: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._index)

    def picture(self, row: int) -> tuple[bytes, str]:
        """Bytes of the picture in index row ``row``, and a name for messages.

        Raises UserError where the bytes are not there, not that picture's or changed; once a shard cannot be read, it is not
        tried again.
        """
        entry = self._index[row]
        number, offset, length = int(entry["shard"]), int(entry["offset"]), int(entry["length"])
        shard = self._shards[number]
        data = self._read(number, offset - HEADER, HEADER + length)
        if len(data) != HEADER + length:
            raise UserError(
                f"{self._folder.where(shard.name)}: {max(0, len(data) - HEADER)} of {length} bytes at {offset}, truncated while "
                f"in use; {REWRITE}"
            )
        if not data.startswith(b"%08d." % row):
            raise UserError(
                f"{self._folder.where(shard.name)}: picture {row:08d} is not at {offset}, where the index says; {REWRITE}"
            )
        content = data[HEADER:]
        if zlib.crc32(content) != entry["crc32"]:
            raise UserError(
                f"{self._folder.where(shard.name)}: picture {row:08d} has other bytes than were written (CRC-32); {REWRITE}"
            )
        return content, f"{shard.name} picture {row:08d}"

    def expect(self, rows: Sequence[int]) -> None:
        """Read the pictures of ``rows`` at once, where that takes fewer requests to a remote folder."""
        entries = self._index[list(rows)]
        begin, end = int(entries["offset"].min()) - HEADER, int((entries["offset"] + entries["length"]).max())
        wanted = int(entries["length"].sum()) + HEADER * len(entries)
        number = int(entries["shard"][0])
        if self._folder.remote and (entries["shard"] == number).all() and end - begin <= wanted + SPARE:
            try:
                self._span = (number, begin, self._read(number, begin, end - begin))
            except Unreadable:
                return  # ``picture`` tells

    def _read(self, number: int, offset: int, length: int) -> bytes:
        shard, begin, data = self._span
        if shard == number and begin <= offset and offset + length <= begin + len(data):
            return data[offset - begin : offset - begin + length]
        if number in self._lost:
            raise Unreadable(self._lost[number])
        try:
            return self._folder.read(self._shards[number], offset, length)
        except Unreadable as error:
            self._lost[number] = str(error)
            raise


class JoinedRanges:
    """Several sets' pictures; the rows of the second follow those of the first."""

    def __init__(self, parts: Sequence[ShardRanges]) -> None:
        self._parts = parts
        self._begins = [0, *accumulate(map(len, parts))]

    def picture(self, row: int) -> tuple[bytes, str]:
        """As of ``ShardRanges``."""
        part = bisect_right(self._begins, row) - 1
        return self._parts[part].picture(row - self._begins[part])

    def expect(self, rows: Sequence[int]) -> None:
        """As of ``ShardRanges``; the rows are of one set."""
        part = bisect_right(self._begins, rows[0]) - 1
        self._parts[part].expect([row - self._begins[part] for row in rows])
