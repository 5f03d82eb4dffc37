"""Whether two runs differ: tested query by query, and only between runs that were evaluated under one protocol."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmreid.errors import UserError
from vmreid.evaluation.query_scores import BROKEN, QueryScores
from vmreid.evaluation.uncertainty import Paired, paired
from vmreid.report.protocols import Protocol
from vmreid.run_folder import RunFolder


@dataclass(frozen=True)
class Pair:
    """Two runs of one protocol, and how far the first one's mAP lies above the second's."""

    first: str
    second: str
    protocol: int
    mAP: Paired


def pairs_of(
    folders: Mapping[str, RunFolder], metrics: Mapping[str, Mapping[str, Any]], protocols: Sequence[Protocol]
) -> list[Pair]:
    """All pairs within each protocol; runs without what each query scored (evaluated by an older vmreid) are left out.

    Raises UserError where a run's file of that is not the one that its ledger names.
    """
    scores = {
        name: _queries(folder, metrics[name]["protocol"]["per_query"]["sha256"])
        for name, folder in folders.items()
        if "per_query" in metrics[name]["protocol"]
    }
    return [
        Pair(first, second, protocol.number, _compared(scores[first], scores[second]))
        for protocol in protocols
        for first, second in itertools.combinations([name for name in protocol.runs if name in scores], 2)
    ]


def _compared(first: QueryScores, second: QueryScores) -> Paired:
    assert np.array_equal(first.pid, second.pid), "one protocol has one digest of the data, and so the same queries"
    return paired(first.pid, first.ap, second.ap)


def _queries(folder: RunFolder, sha256: str) -> QueryScores:
    path = folder.queries_file
    again = f"evaluate the run again with python -m launcher.evaluate --run {folder.path}"
    if not path.is_file():
        raise UserError(f"{path}: missing, although metrics.json names it; {again}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: is of another evaluation than metrics.json, or changed; {again}")
    try:
        return QueryScores.from_npz(content)
    except BROKEN as error:
        raise UserError(f"{path}: not readable as what each query scored ({' '.join(str(error).split())}); {again}") from None
