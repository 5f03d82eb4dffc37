"""Which picture goes into which shard, decided before the first is read, so that any process may write any shard."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from shards.sources import Picture, Splits
from vmreid.data.manifest import FORMAT_VERSION

PICTURES_PER_SHARD = 4096
SHARDS_WANTED = 16  # small sets still give every rank and worker a shard

SourceFacts = dict[str, str | int | float | None]  # what the manifest says of a set's origin


@dataclass(frozen=True)
class PlannedShard:
    """The pictures of a shard, in order; ``first`` is the index row of the first, ``number`` the shard's within its split."""

    split: str
    number: int
    first: int
    pictures: list[Picture]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True)
class Plan:
    """All shards of all splits; ``digest`` covers the source and every picture's facts, not its bytes."""

    source: SourceFacts
    splits: dict[str, list[PlannedShard]]
    digest: str

    @property
    def shards(self) -> list[PlannedShard]:
        """In the order of their pictures."""
        return [shard for shards in self.splits.values() for shard in shards]


def make_plan(splits: Splits, source: SourceFacts) -> Plan:
    """Cut the pictures, sorted by identity, into shards. A source's order holds within an identity."""
    planned = {name: list(_cut(name, sorted(pictures, key=lambda picture: picture.pid))) for name, pictures in splits.items()}
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, source], sort_keys=True).encode())
    for shards in planned.values():
        for shard in shards:
            digest.update(f"\n{shard.name}".encode())
            for picture in shard.pictures:
                digest.update(f"\n{json.dumps(picture.facts())}".encode())
    return Plan(source, planned, digest.hexdigest())


def _cut(split: str, pictures: list[Picture]) -> Iterator[PlannedShard]:
    """At identity borders, so that an identity is one byte range."""
    size = min(PICTURES_PER_SHARD, math.ceil(len(pictures) / SHARDS_WANTED))
    number = first = end = 0
    for _, group in groupby(pictures, key=lambda picture: picture.pid):
        end += sum(1 for _ in group)
        if end - first >= size or end == len(pictures):
            yield PlannedShard(split, number, first, pictures[first:end])
            number, first = number + 1, end
