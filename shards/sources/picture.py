"""What every source gives: pictures by split, and what the set's publishers counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vmreid.errors import UserError


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a source: identity, camera, a name for people, and how to get its encoded bytes.

    ``view`` and ``type`` are the set's own numbers, ``UNKNOWN`` where it gives none for it; None: the set has no such thing.
    """

    pid: int
    camid: int
    name: str
    read: Callable[[], bytes]
    view: int | None = None
    type: int | None = None

    def facts(self) -> dict[str, int | str]:
        """What is written beside the bytes."""
        facts: dict[str, int | str] = {"pid": self.pid, "camid": self.camid, "name": self.name}
        numbers = {"view": self.view, "type": self.type}
        return facts | {name: number for name, number in numbers.items() if number is not None}


Splits = dict[str, list[Picture]]


@dataclass(frozen=True)
class Counts:
    """What the publishers counted in a split; several numbers where papers differ, none where nobody says."""

    identities: tuple[int, ...] = ()
    pictures: tuple[int, ...] = ()
    cameras: tuple[int, ...] = ()


Published = dict[str, Counts]


def reader(path: str | Path) -> Callable[[], bytes]:
    """Reads a file when called. A million of these are held at a time, so it keeps a string, not a Path."""
    return partial(_read, str(path))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: gone since the source was listed; put it back and repeat the command") from None
