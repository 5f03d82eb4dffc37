"""The re-ID metric as its protocol reads: sort, drop, loop. Slow and plain, in Python's own numbers."""

from __future__ import annotations

import math
from typing import Any


def distance(q: list[float], g: list[float], metric: str) -> float:
    """Squared Euclidean distance, or 1 - cosine."""
    if metric == "euclidean":
        return math.fsum((a - b) ** 2 for a, b in zip(q, g, strict=True))
    length_q, length_g = (math.sqrt(math.fsum(a * a for a in x)) for x in (q, g))
    return 1 - math.fsum(a / length_q * (b / length_g) for a, b in zip(q, g, strict=True))


def positive_ranks(query: dict[str, Any], gallery: dict[str, Any], metric: str) -> list[list[int]]:
    """Ranks of each query's positives; a side holds lists ``features``, ``pids`` and ``camids``."""
    result = []
    for q, pid, camid in zip(query["features"], query["pids"], query["camids"], strict=True):
        found = []
        for index, g in enumerate(gallery["features"]):
            if gallery["pids"][index] == -1:
                continue
            if gallery["pids"][index] == pid and gallery["camids"][index] == camid:
                continue
            found.append((distance(q, g, metric), index))
        found.sort()
        result.append([rank for rank, (_, index) in enumerate(found, 1) if gallery["pids"][index] == pid])
    return result


def scores(all_ranks: list[list[int]]) -> dict[str, Any]:
    """mAP, mINP and CMC over the queries that have positives."""
    aps, inps, cmc = [], [], [0] * 50
    for ranks in all_ranks:
        if not ranks:
            continue
        precision = 0.0
        for j, rank in enumerate(ranks, 1):
            precision += j / rank
        aps.append(precision / len(ranks))
        inps.append(len(ranks) / ranks[-1])
        for r in range(1, 51):
            if ranks[0] <= r:
                cmc[r - 1] += 1
    valid = len(aps)
    return {"mAP": sum(aps) / valid, "mINP": sum(inps) / valid, "cmc": [hits / valid for hits in cmc]}
