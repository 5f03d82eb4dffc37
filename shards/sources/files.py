"""Folders and names of a dataset: where it lies, which files are its pictures, what their names say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.sources.picture import Picture, reader
from vmreid.errors import UserError

JUNK = -1  # identity of a bad detection
SHOWN = 3  # examples in a message


def is_picture_name(name: str, suffixes: Iterable[str]) -> bool:
    """Whether the suffix is one of ``suffixes`` (lower case) and the name does not hide, as macOS' ``._*`` copies do."""
    return not name.startswith(".") and name.lower().endswith(tuple(suffixes))


def find_base(root: Path, *layouts: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """The folder that holds every entry of one of ``layouts``, and that layout: ``root``, or a folder directly below it.

    Raises UserError that names what is missing and lists what was found.
    """
    holds = ", or ".join(", ".join(layout) for layout in layouts)
    found = find_fit(root, lambda place: [layout for layout in layouts if not _missing(place, layout)], holds)
    if found:
        return found
    place, layout = min(
        ((place, layout) for place in (root, *_below(root)) for layout in layouts),
        key=lambda fit: len(_missing(*fit)) / len(fit[1]),
    )
    raise UserError(
        f"{place / _missing(place, layout)[0]}: missing (found in {place}: {found_in(place)}); --root is the folder that holds "
        f"{holds}"
    )


def find_fit(root: Path, fits: Callable[[Path], Sequence[Sequence[str]]], holds: str) -> tuple[Path, Sequence[str]] | None:
    """``root``, or else the folder directly below it, with the layout that ``fits`` finds in it; None where none fits.

    ``holds`` tells people what to look for. Raises UserError where there is no ``root``, or where more than one fits.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --root is the folder that holds {holds}")
    for places in ([root], _below(root)):
        found = [(place, layout) for place in places for layout in fits(place)]
        if len(found) > 1:
            twice = " and ".join(str(place / layout[0]) for place, layout in found[:2])
            raise UserError(f"{root}: holds the set twice, as {twice}; give the folder of one as --root")
        if found:
            return found[0]
    return None


def _below(root: Path) -> list[Path]:
    """An archive often unpacks to one more folder, and macOS puts one of its own beside it."""
    return sorted(entry for entry in root.iterdir() if entry.name != "__MACOSX" and entry.is_dir())


def _missing(place: Path, layout: Sequence[str]) -> list[str]:
    return [name for name in layout if not (place / name).exists()]


def found_in(folder: Path) -> str:
    """The first few entries of a folder, for a message."""
    return examples(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "nothing"


def examples(names: Sequence[str]) -> str:
    """The first few names, and whether there are more, for a message."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "") or "nothing"


def picture_names(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Sorted names of the pictures that lie directly in ``folder``. Raises UserError where there are none."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if is_picture_name(entry.name, suffixes) and entry.is_file())
    if not names:
        raise UserError(f"{folder}: no pictures in it ({', '.join(suffixes)} count; found {found_in(folder)}); check the folder")
    return names


@dataclass(frozen=True)
class Naming:
    """How a set names its pictures: groups ``pid`` and ``camera`` of a pattern for base names, and what they may be."""

    pattern: re.Pattern[str]
    pids: range
    cameras: range
    suffixes: tuple[str, ...] = (".jpg",)
    junk: int | None = JUNK  # identity of pictures that are left out

    def pictures(self, base: Path, folder: str) -> list[Picture]:
        """The pictures of ``base/folder``, sorted by name. Raises UserError for names that do not fit."""
        names = picture_names(base / folder, self.suffixes)
        matches = [self.pattern.match(name) for name in names]
        refuse(base / folder, names, [name for name, match in zip(names, matches, strict=True) if not match],
               "are not as the set names its pictures (identity, camera)")  # fmt: skip
        numbers = [(int(match["pid"]), int(match["camera"])) for match in matches if match]
        named = [(*pair, name) for pair, name in zip(numbers, names, strict=True) if pair[0] != self.junk]
        check_ranges(base / folder, named, self.pids, self.cameras)
        return [Picture(pid, camera, f"{folder}/{name}", reader(f"{base}/{folder}/{name}")) for pid, camera, name in named]


def check_ranges(where: Path, named: Sequence[tuple[int, int, str]], pids: range, cameras: range) -> None:
    """Raise UserError for (pid, camera, name) whose identity or camera the set cannot have."""
    names = [name for _, _, name in named]
    refuse(where, names, [name for pid, _, name in named if pid not in pids],
           f"have an identity outside {pids.start} to {pids.stop - 1}")  # fmt: skip
    refuse(where, names, [name for _, camera, name in named if camera not in cameras],
           f"have a camera outside {cameras.start} to {cameras.stop - 1}")  # fmt: skip


def refuse(
    where: Path, names: Sequence[object], wrong: Sequence[str], fault: str, way_out: str = "take the set as published"
) -> None:
    """Raise UserError with count and examples where any of ``names`` is ``wrong``."""
    if wrong:
        raise UserError(f"{where}: {len(wrong):,} of {len(names):,} {fault}: {examples(wrong)}; {way_out}")


def read_lines(path: Path, need: str) -> list[str]:
    """A list file's lines without empty ones. Raises UserError where it is missing; ``need`` says what it is for."""
    if not path.is_file():
        raise UserError(f"{path}: missing (found beside it: {found_in(path.parent)}); {need}")
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not readable as text ({error.reason}); take the list as published") from None
