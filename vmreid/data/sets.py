"""The sets that a recipe names, opened and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmreid.data.folder import URL, ShardFolder, cache_folder, weighted_folders
from vmreid.data.manifest import Manifest, parse_manifest, read_index, read_manifest, require_splits
from vmreid.data.ranges import ShardRanges
from vmreid.recipes.schema import Data


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards, what its manifest says, and its weight in training."""

    folder: ShardFolder
    manifest: Manifest
    weight: float

    def train_index(self) -> np.ndarray:
        """The training split's index, memory-mapped. Raises UserError."""
        return read_index(self.folder, self.manifest.splits["train"])

    def train_ranges(self, index: np.ndarray) -> ShardRanges:
        """The training split's pictures."""
        return ShardRanges(self.folder, self.manifest.splits["train"], index)

    def description(self) -> str:
        """One line for people."""
        split = self.manifest.splits["train"]
        weight = "" if self.weight == 1 else f", weight {self.weight:g}"
        return f"data {self.folder}: {split.identities} identities, {split.pictures} pictures{weight}"


def training_sets(data: Data) -> tuple[ShardSet, ...]:
    """The sets to train on. Raises UserError for what is missing; shards may be, where unreadable ones are skipped."""
    read = parse_manifest if data.skip_unreadable else read_manifest
    sets = tuple(ShardSet(folder, read(folder), weight) for folder, weight in weighted_folders(data))
    for each in sets:
        require_splits(each.manifest, each.folder, ("train",))
    return sets


def evaluation_set(data: Data) -> ShardSet:
    """The set to evaluate on: the first that ``data.shards`` names. Raises UserError."""
    folder, weight = weighted_folders(data)[0]
    manifest = read_manifest(folder)
    require_splits(manifest, folder, ("query", "gallery"))
    return ShardSet(folder, manifest, weight)


def digest_of_sets(sets: Sequence[ShardSet]) -> str:
    """One set's own digest; of several, SHA-256 (hex) over their digests and weights in their order."""
    if len(sets) == 1:
        return sets[0].manifest.digest
    return hashlib.sha256(json.dumps([(each.manifest.digest, each.weight) for each in sets]).encode()).hexdigest()


def with_whole_paths(data: Data) -> Data:
    """The section as a run keeps it: local paths readable from any current folder."""
    shards = data.shards
    if isinstance(shards, str):
        shards = _whole(shards)
    elif shards:
        shards = tuple(each.model_copy(update={"shards": _whole(each.shards)}) for each in shards)
    cache = str(cache_folder(data).resolve()) if data.cache_dir else None
    return data.model_copy(update={"shards": shards, "cache_dir": cache})


def _whole(place: str) -> str:
    return place if URL.match(place) else str(Path(place).resolve())
