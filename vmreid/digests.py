"""What a checkpoint's files must be: sizes and digests in ``digests.json``, written last, so that a folder with it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DIGESTS = "digests.json"
THREADS = 4  # hashing leaves Python's lock alone
Entry = tuple[int, str]  # bytes, BLAKE2b (hex)


def entries_of(paths: Iterable[Path]) -> dict[str, Entry]:
    """By file name, what is on the disk now and stays there when the power goes."""
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(threads.map(_synced_entry, paths))


def as_text(entries: Mapping[str, Entry]) -> str:
    """The content of ``digests.json``."""
    return json.dumps(dict(sorted(entries.items())), indent=1) + "\n"


def damage(folder: Path, names: Iterable[str] | None = None) -> str:
    """What is wrong with the files of a whole checkpoint, of all or of ``names``, as one clause; empty if nothing is."""
    try:
        entries = {name: (int(size), str(digest)) for name, (size, digest) in json.loads((folder / DIGESTS).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{DIGESTS} is not readable"
    chosen = list(entries) if names is None else list(names)
    for name in chosen:
        path = folder / name
        if name not in entries or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entries[name][0]:
            return f"{name} has {path.stat().st_size} bytes, {entries[name][0]} were written"
    with ThreadPoolExecutor(THREADS) as threads:
        for name, digest in zip(chosen, threads.map(_digest, (folder / name for name in chosen)), strict=True):
            if digest != entries[name][1]:
                return f"{name} holds other bytes than were written"
    return ""


def sync(path: Path) -> None:
    """Have a file or a folder's entries written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synced_entry(path: Path) -> tuple[str, Entry]:
    sync(path)
    return path.name, (path.stat().st_size, _digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
