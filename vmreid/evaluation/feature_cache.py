"""Features kept on disk, a file a shard: another metric, protocol or world size needs no further pass over the pictures.

Files are written whole or not at all, so what an interrupted pass leaves is right, and any number of ranks shares them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from vmreid.data.manifest import Shard, Split
from vmreid.errors import UserError
from vmreid.evaluation.extraction import KINDS, Extracted, in_order
from vmreid.evaluation.features import Features
from vmreid.run_folder import write_atomically

IDS = ("rows", "pids", "camids", *KINDS)


class FeatureCache:
    """The files of one set of conditions: ``facts`` must hold all that a feature depends on, the code included."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def missing(self, shards: Iterable[Shard]) -> list[Shard]:
        """Those of ``shards`` whose features are to be taken yet."""
        return [shard for shard in shards if not self._file(shard).is_file()]

    def write(self, split: Split, shards: Sequence[Shard], parts: Mapping[str, Extracted]) -> None:
        """Keep the features of ``shards``, which by each function's name ``parts`` holds in index order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        any_part = next(iter(parts.values()))
        ids = {"rows": any_part.rows, "pids": any_part.features.pids, "camids": any_part.features.camids, **any_part.kinds}
        first = 0
        for shard in split.shards:
            begin, end = torch.searchsorted(any_part.rows, torch.tensor([first, first + shard.pictures])).tolist()
            first += shard.pictures
            if shard in shards:
                features = {f"of {name}": part.features.features for name, part in parts.items()}
                own = {name: values[begin:end].clone() for name, values in (ids | features).items()}
                write_atomically(self._file(shard), safetensors.torch.save(own))

    def read(self, shards: Sequence[Shard], functions: Iterable[str]) -> dict[str, Extracted]:
        """What was kept of ``shards``, by function, in index order. Raises UserError for a file that is not readable."""
        if not shards:
            none = torch.zeros(0, dtype=torch.int64)
            return {
                name: Extracted(Features(torch.zeros(0, 0), none, none), none, dict.fromkeys(KINDS, none)) for name in functions
            }
        files = [self._loaded(shard) for shard in shards]
        whole = {name: torch.cat([file[name] for file in files]) for name in IDS}
        order = whole["rows"].argsort()
        rows, pids, camids, *kinds = (whole[name][order] for name in IDS)
        result = {}
        for name in functions:
            feature_NF = in_order([file.pop(f"of {name}") for file in files], order)
            result[name] = Extracted(Features(feature_NF, pids, camids), rows, dict(zip(KINDS, kinds, strict=True)))
        return result

    def _file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.safetensors"

    def _loaded(self, shard: Shard) -> dict[str, torch.Tensor]:
        path = self._file(shard)
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise UserError(f"{path}: not readable as features ({error}); remove the folder, and they are taken again") from None
