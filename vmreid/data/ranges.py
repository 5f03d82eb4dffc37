"""Single pictures of a set by their byte ranges."""

from __future__ import annotations

import contextlib
import threading
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np

from vmreid.data.folder import LocalFolder, Place, as_folder
from vmreid.data.manifest import HEADER, REWRITE, Split
from vmreid.data.remote import AT_ONCE, Unreadable
from vmreid.errors import UserError

SPARE = 1 << 20  # bytes read in vain rather than asked for apart: at 100 MB/s they take 10 ms, less than a round trip


class Pictures(Protocol):
    """Pictures by row."""

    def picture(self, row: int) -> tuple[bytes, str]: ...

    def expect(self, rows: Sequence[int]) -> None: ...


class _Span:
    """Bytes of a shard from ``begin`` to ``end`` that a thread reads."""

    def __init__(self, shard: int, begin: int, end: int, read: Callable[[int, int, int], bytes]) -> None:
        self.shard, self.begin, self.end, self._read = shard, begin, end, read
        self._bytes: bytes | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)  # no process waits for one at its end
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(UserError, OSError):  # whoever wants the bytes reads again, and tells
            self._bytes = self._read(self.shard, self.begin, self.end - self.begin)

    def bytes(self) -> bytes | None:
        """Wait for them. None where they cannot be read."""
        self._thread.join()
        return self._bytes


class ShardRanges:
    """Reads byte ranges of a split's shards, each with the tar header before it, which says whose picture it is.

    The index's CRC-32 says whether the picture's bytes are those that were written.
    """

    def __init__(self, place: Place, split: Split, index: np.ndarray) -> None:
        self._folder, self._shards, self._index = as_folder(place), split.shards, index
        self._spans: deque[_Span] = deque(maxlen=AT_ONCE)
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
        """Begin to read the pictures of ``rows``, of one identity; at once where that takes fewer requests to a remote folder.

        The last ``AT_ONCE`` calls are remembered, so ``picture`` is to be asked for the first one's before the next call.
        """
        entries = self._index[list(rows)]
        begins, ends = entries["offset"] - HEADER, entries["offset"] + entries["length"]
        if isinstance(self._folder, LocalFolder):
            for number, begin, end in zip(entries["shard"].tolist(), begins.tolist(), ends.tolist(), strict=True):
                self._folder.expect(self._shards[number], begin, end - begin)
            return
        number, begin, end = int(entries["shard"][0]), int(begins.min()), int(ends.max())
        if (entries["shard"] == number).all() and end - begin <= int((ends - begins).sum()) + SPARE:
            self._spans.append(_Span(number, begin, end, self._read_alone))

    def _read(self, number: int, offset: int, length: int) -> bytes:
        for span in reversed(self._spans):  # an identity may come twice around the end of an epoch: the last one waits for all
            if span.shard == number and span.begin <= offset and offset + length <= span.end:
                data = span.bytes()
                if data is not None:
                    return data[offset - span.begin : offset - span.begin + length]
        return self._read_alone(number, offset, length)

    def _read_alone(self, number: int, offset: int, length: int) -> bytes:
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
