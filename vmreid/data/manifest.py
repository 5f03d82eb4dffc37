"""The manifest of a shard folder and its index: what is there, where each picture lies, and whether it is whole.

A folder holds ``manifest.json``, and for each split tar shards and ``SPLIT.index.npy``: one row a picture, identity-major,
with the byte range of the picture in its shard and the CRC-32 of its bytes. The row number is the picture's key in the shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from tokenize import TokenError
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vmreid.data.folder import LocalFolder, Place, ShardFolder, as_folder, has_digest
from vmreid.errors import UserError

FORMAT_VERSION = 2
SPLITS = ("train", "query", "gallery")
INDEX_DTYPE = np.dtype(
    [("pid", "<i8"), ("camid", "<i8"), ("shard", "<i4"), ("offset", "<i8"), ("length", "<i8"), ("crc32", "<u4")]
)
UNKNOWN = -1  # view or type of a picture for which the set states none
REWRITE = "write the set again with python -m shards.write"
HEADER = 512  # bytes of a tar member's header, right before its content
ROWS = 1 << 20  # of an index looked at together: memory stays bounded whatever its length
INDEX_HEADER = 4096  # more than numpy writes before the rows

# a bare file name: a manifest says what a file is called, the user alone says where it lies
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**62)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Frozen):
    """One tar file: name, size in bytes, SHA-256 of its bytes, pictures in it."""

    name: FileName
    size: Count
    sha256: Digest
    pictures: Count


class Split(_Frozen):
    """Counts, shards, and the index file with the SHA-256 of its bytes."""

    pictures: Count
    identities: Count
    cameras: list[int]
    shards: list[Shard]
    index: FileName
    index_sha256: Digest


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


def read_manifest(place: Place) -> Manifest:
    """Read and check a folder's ``manifest.json``. Of a local folder the sizes of all shards are compared too; of a remote
    one they are as shards are read. Digests are not (shards.verify compares them).

    Raises UserError for a missing folder or manifest, another format version, missing or truncated shards.
    """
    folder = as_folder(place)
    manifest = parse_manifest(folder)
    if isinstance(folder, LocalFolder):
        for split in manifest.splits.values():
            for fault in size_faults(folder.path, split):
                raise UserError(f"{folder}: {fault}; {REWRITE}")
    return manifest


def parse_manifest(place: Place) -> Manifest:
    """``read_manifest`` without a look at the other files."""
    folder = as_folder(place)
    content, path = folder.manifest(), folder.where("manifest.json")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
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


def require_splits(manifest: Manifest, place: Place, names: tuple[str, ...]) -> None:
    """Raise UserError where a split is missing or empty."""
    for name in names:
        if name not in manifest.splits or manifest.splits[name].pictures == 0:
            raise UserError(f"{place}: no pictures in split {name}; {REWRITE} from a source that has it")


def read_index(place: Place, split: Split) -> np.ndarray:
    """The split's index, memory-mapped: structured array of ``INDEX_DTYPE``, one row a picture, identity-major.

    Raises UserError where its bytes are not those that the manifest means, or do not fit the shards.
    """
    folder = as_folder(place)
    path = folder.where(split.index)
    with folder.open(split.index, split.pictures * INDEX_DTYPE.itemsize + INDEX_HEADER, split.index_sha256) as file:
        check_digest(folder, split.index, file, split.index_sha256)
        try:
            index = _mapped(file)
        except (ValueError, EOFError, OSError, SyntaxError, TokenError) as error:  # numpy reads a header as Python
            raise UserError(f"{path}: not readable as an index ({' '.join(str(error).split())}); {REWRITE}") from None
    if index.dtype != INDEX_DTYPE or index.shape != (split.pictures,):
        raise UserError(f"{path}: shape {index.shape}, the manifest says {split.pictures} pictures; {REWRITE}")
    for fault in _faults_of_rows(index, split):
        raise UserError(f"{path}: {fault}; {REWRITE}")
    return index


def check_digest(folder: ShardFolder, name: str, file: BufferedReader, digest: str) -> None:
    """Raise UserError unless an open file is what the manifest means; it stands at its beginning afterwards."""
    if not has_digest(file, digest):
        raise UserError(f"{folder.where(name)}: bytes differ from the manifest's digest, truncated or changed; {REWRITE}")
    file.seek(0)


def _mapped(file: BufferedReader) -> np.ndarray:
    """numpy's own way needs a name, and a file of the cache may lose its name while it is in use."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of numpy's format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("Python objects in it")
    return np.memmap(file, dtype, "r", offset=file.tell(), shape=shape)


def _faults_of_rows(index: np.ndarray, split: Split) -> Iterator[str]:
    """What a wrong writer could have done: rows that point out of their shard, or shards that are not in their order."""
    sizes = np.array([shard.size for shard in split.shards], dtype=np.int64)
    counts = np.zeros(len(sizes), dtype=np.int64)
    for begin in range(0, len(index), ROWS):
        rows = index[begin : begin + ROWS]
        shard, offset, length = rows["shard"], rows["offset"], rows["length"]
        wrong = (shard < 0) | (shard >= len(sizes)) | (offset < HEADER) | (length < 0)
        if not wrong.any():
            wrong = (length > sizes[shard]) | (offset > sizes[shard] - length)
        if wrong.any():
            yield f"row {begin + int(wrong.argmax())} points out of its shard"
            return
        counts += np.bincount(shard, minlength=len(sizes))
    if counts.tolist() != [shard.pictures for shard in split.shards]:
        yield "the pictures of each shard are not as many as the manifest says"


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
