"""What each query scored: kept beside the means, so that models can be compared query by query."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vmreid.data.manifest import UNKNOWN
from vmreid.evaluation.features import Features
from vmreid.evaluation.protocol import QueryRanks
from vmreid.evaluation.uncertainty import intervals


@dataclass(frozen=True)
class QueryScores:
    """One value a query [Q], in index order: ids, the set's own numbers for view and type (``UNKNOWN`` where it has none),
    AP and INP (NaN where invalid), rank of the first positive (0 where invalid), number of positives."""

    pid: NDArray[np.int64]
    camid: NDArray[np.int64]
    view: NDArray[np.int64]
    type: NDArray[np.int64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    first_rank: NDArray[np.int64]
    positives: NDArray[np.int64]

    @classmethod
    def of(cls, query: Features, ranks: QueryRanks, kinds: Mapping[str, NDArray[np.int64]]) -> Self:
        """Of ranked queries; ``kinds``: ``view`` and ``type`` where they are known."""
        pid, camid = (ids.cpu().numpy() for ids in (query.pids, query.camids))
        unknown = np.full(len(pid), UNKNOWN)
        return cls(
            pid, camid, kinds.get("view", unknown), kinds.get("type", unknown),
            np.array(ranks.ap), np.array(ranks.inp), np.array(ranks.first_rank), np.array([len(found) for found in ranks.ranks]),
        )  # fmt: skip

    def as_npz(self) -> bytes:
        """A file that numpy reads; the same bytes for the same scores."""
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **vars(self))
        return file.getvalue()

    @classmethod
    def from_npz(cls, content: bytes) -> Self:
        """What ``as_npz`` wrote. Raises ValueError, KeyError or zipfile.BadZipFile for anything else."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls.__annotations__})

    def intervals(self) -> dict[str, Any]:
        """``uncertainty.intervals`` of mAP, mINP and Rank-1."""
        first = np.where(self.first_rank > 0, self.first_rank == 1, np.nan)
        return intervals(self.pid, {"mAP": self.ap, "mINP": self.inp, "rank1": first})

    def breakdown(self) -> dict[str, dict[str, dict[str, float]]]:
        """Means over the valid queries of each camera, and of each view and type where the set states them."""
        parts = {"camera": self.camid, "view": self.view, "type": self.type}
        return {name: self._means(of) for name, of in parts.items() if name == "camera" or (of != UNKNOWN).any()}

    def _means(self, part: NDArray[np.int64]) -> dict[str, dict[str, float]]:
        valid = self.first_rank > 0
        return {
            str(value): {
                "queries": int(rows.sum()),
                "identities": len(np.unique(self.pid[rows])),
                "mAP": float(self.ap[rows].mean()),
                "mINP": float(self.inp[rows].mean()),
                "rank1": float((self.first_rank[rows] == 1).mean()),
            }
            for value in np.unique(part[valid])
            for rows in [valid & (part == value)]
        }


BROKEN = (ValueError, KeyError, zipfile.BadZipFile)  # what reading another file may raise
