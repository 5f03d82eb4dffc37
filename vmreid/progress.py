"""Progress of long work: a live bar with time left on a terminal, one plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


class Reporter:
    """Use as a context manager on one rank: ``advance`` once a unit of work, with a short text of what to see now."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._begin = self._last_line = time.monotonic()
        self._done_at_begin = done
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn(label),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns)
            self._task = self._bar.add_task(label, total=total, completed=done, text="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, text: str = "") -> None:
        """One more unit is done."""
        self.done += 1
        if self._bar:
            self._bar.update(self._task, completed=self.done, text=text)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES or self.done == self.total:
            self._last_line = now
            left = (now - self._begin) / (self.done - self._done_at_begin) * (self.total - self.done)
            minutes, seconds = divmod(round(left), 60)
            eta = f"  {minutes}m{seconds:02}s left" if self.done < self.total else ""
            print(f"{self.label} {self.done}/{self.total}  {text}{eta}".rstrip(), file=sys.stderr, flush=True)
