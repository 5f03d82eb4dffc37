"""``python -m shards.verify DIR``: every digest, every picture, every count; exit 1 and a list where something is wrong."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vmreid.command import Parser, run
from vmreid.data.manifest import Manifest, parse_manifest, read_index, sha256_of, size_faults
from vmreid.data.pictures import decode
from vmreid.errors import UserError
from vmreid.progress import Reporter


def main(arguments: Sequence[str]) -> int:
    """Print every fault found; 1 where there is any."""
    parser = Parser(prog="python -m shards.verify", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args(arguments).folder
    manifest = parse_manifest(folder)
    faults = list(find_faults(folder, manifest))
    for fault in faults:
        print(fault)
    pictures = sum(split.pictures for split in manifest.splits.values())
    print(f"{folder}: {pictures} pictures, {len(faults)} faults, digest {manifest.digest}")
    return 1 if faults else 0


def find_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    """One line for each file or picture that is not as the manifest says."""
    with Reporter("verifying shards", sum(len(split.shards) for split in manifest.splits.values())) as progress:
        for name, split in manifest.splits.items():
            yield from size_faults(folder, split)
            if not (folder / split.index).is_file():
                continue
            if sha256_of(folder / split.index) != split.index_sha256:
                yield f"{split.index}: bytes differ from the manifest's digest"
                continue
            index = read_index(folder, split)
            counts = (len(np.unique(index["pid"])), sorted(map(int, np.unique(index["camid"]))))
            if counts != (split.identities, split.cameras):
                yield f"{name}: index has {counts[0]} identities and cameras {counts[1]}, the manifest says otherwise"
            first = 0
            for number, shard in enumerate(split.shards):
                path = folder / shard.name
                if path.is_file():
                    if path.stat().st_size == shard.size and sha256_of(path) != shard.sha256:
                        yield f"{shard.name}: bytes differ from the manifest's digest"
                    yield from _picture_faults(path, index, number, first)
                first += shard.pictures
                progress.advance(shard.name)
            if first != split.pictures:
                yield f"{name}: shards hold {first} pictures, the manifest says {split.pictures}"


def _picture_faults(path: Path, index: np.ndarray, shard: int, first: int) -> Iterator[str]:
    rows = np.flatnonzero(index["shard"] == shard)
    seen = 0
    try:
        with tarfile.open(path) as tar:
            fields: dict[str, object] = {}
            for member in tar:
                key, _, kind = member.name.partition(".")
                content = tar.extractfile(member)
                data = content.read() if content else b""
                if kind == "json":
                    fields = json.loads(data)
                    row = index[int(key)]
                    if (fields["pid"], fields["camid"]) != (int(row["pid"]), int(row["camid"])):
                        yield f"{path.name} picture {key}: identity or camera differ from the index"
                    continue
                seen += 1
                row = index[int(key)]
                if (int(row["offset"]), int(row["length"])) != (member.offset_data, member.size):
                    yield f"{path.name} picture {key}: lies elsewhere than the index says"
                try:
                    decode(data, f"{path.name} picture {key}")
                except UserError as error:
                    yield str(error).partition(";")[0]
    except (tarfile.TarError, EOFError, ValueError, KeyError, IndexError) as error:
        yield f"{path.name}: not readable as a tar of pictures ({' '.join(str(error).split())})"
    if seen != len(rows):
        yield f"{path.name}: {seen} pictures, the index says {len(rows)} from row {first}"


if __name__ == "__main__":
    run(main)
