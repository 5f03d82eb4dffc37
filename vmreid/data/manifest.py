"""The manifest of a shard folder and its index: what is there, where each picture lies, and whether it is whole.

A folder holds ``manifest.json``, and for each split tar shards and ``SPLIT.index.npy``: one row a picture, identity-major,
with the byte range of the picture in its shard. The row number is the picture's key in the shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from vmreid.errors import UserError

FORMAT_VERSION = 1
SPLITS = ("train", "query", "gallery")
INDEX_DTYPE = np.dtype([("pid", "<i8"), ("camid", "<i8"), ("shard", "<i4"), ("offset", "<i8"), ("length", "<i8")])
REWRITE = "write the set again with python -m shards.write"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Frozen):
    """One tar file: name, size in bytes, SHA-256 of its bytes, pictures in it."""

    name: str
    size: int
    sha256: str
    pictures: int


class Split(_Frozen):
    """Counts, shards, and the index file with the SHA-256 of its bytes."""

    pictures: int
    identities: int
    cameras: list[int]
    shards: list[Shard]
    index: str
    index_sha256: str


class Manifest(_Frozen):
    """``manifest.json``. ``digest`` covers every shard and index through their digests."""

    format_version: int
    source: dict[str, str | int | float | None]
    splits: dict[str, Split]
    digest: str


def digest_of(splits: dict[str, Split]) -> str:
    """SHA-256 (hex) over the splits' canonical JSON, shard and index digests included."""
    text = json.dumps({name: split.model_dump() for name, split in splits.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``; sizes of all shards are compared, their digests are not (shards.verify does).

    Raises UserError for a missing folder or manifest, another format version, missing or truncated shards.
    """
    manifest = parse_manifest(folder)
    for split in manifest.splits.values():
        for fault in size_faults(folder, split):
            raise UserError(f"{folder}: {fault}; {REWRITE}")
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """``read_manifest`` without a look at the other files."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --data takes a folder written by python -m shards.write")
    path = folder / "manifest.json"
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise UserError(f"{folder}: no manifest.json in it (found {found}); {REWRITE}")
    try:
        fields = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {REWRITE}") from None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version {version}, this vmreid reads {FORMAT_VERSION}; {REWRITE}")
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {REWRITE}") from None
    if digest_of(manifest.splits) != manifest.digest:
        raise UserError(f"{path}: digest does not match its contents, so it was edited; {REWRITE}")
    return manifest


def require_splits(manifest: Manifest, folder: Path, names: tuple[str, ...]) -> None:
    """Raise UserError where a split is missing or empty."""
    for name in names:
        if name not in manifest.splits or manifest.splits[name].pictures == 0:
            raise UserError(f"{folder}: no pictures in split {name}; {REWRITE} from a source that has it")


def read_index(folder: Path, split: Split) -> np.ndarray:
    """The split's index, memory-mapped: structured array of ``INDEX_DTYPE``, one row a picture, identity-major."""
    path = folder / split.index
    try:
        index: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not readable as an index ({' '.join(str(error).split())}); {REWRITE}") from None
    if index.dtype != INDEX_DTYPE or index.shape != (split.pictures,):
        raise UserError(f"{path}: shape {index.shape}, the manifest says {split.pictures} pictures; {REWRITE}")
    return index


def size_faults(folder: Path, split: Split) -> Iterator[str]:
    """One line for each file of the split that is missing, or a shard of another size than the manifest says."""
    if not (folder / split.index).is_file():
        yield f"{split.index}: missing"
    for shard in split.shards:
        path = folder / shard.name
        if not path.is_file():
            yield f"{shard.name}: missing"
        elif path.stat().st_size != shard.size:
            yield f"{shard.name}: {path.stat().st_size} bytes, truncated or changed; the manifest says {shard.size} bytes"
