"""Precision over recall, from the ranks of the positives."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from vmreid.evaluation.protocol import QueryRanks

STEPS = 100
RECALLS = [step / STEPS for step in range(STEPS + 1)]


def precision_by_recall(ranks: QueryRanks) -> list[float]:
    """Interpolated precision at each of ``RECALLS``, mean over the valid queries, of which there must be one.

    Of a query: the highest precision at this recall or a higher one (Manning, Raghavan & Schütze, Introduction to
    Information Retrieval, 2008, section 8.4). The precision at the j-th of m positives is j / rank_j, its recall j / m.
    """
    by_number: dict[int, list[list[int]]] = defaultdict(list)
    for positives in ranks.ranks:
        if positives:
            by_number[len(positives)].append(positives)
    total, valid = np.zeros(STEPS + 1), 0
    for m, few in sorted(by_number.items()):
        precision_QM = np.arange(1, m + 1) / np.array(few)
        best_QM = np.maximum.accumulate(precision_QM[:, ::-1], axis=1)[:, ::-1]
        needed = [max(1, -(-step * m // STEPS)) for step in range(STEPS + 1)]  # positives that make up each recall
        total += best_QM[:, np.array(needed) - 1].sum(axis=0)
        valid += len(few)
    mean: list[float] = (total / valid).tolist()
    return mean
