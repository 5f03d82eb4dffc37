"""How far a mean over queries may be off, and whether two models differ on the same queries.

Pictures of one identity resemble each other, so identities are the sample and not queries: whole identities are drawn, or
have their sign flipped, with all their queries. Cluster bootstrap and sign-flip test: Davison & Hinkley, Bootstrap Methods
and their Application, 1997, sections 3.8 and 4.3; percentile intervals: Efron & Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13. Sums in a fixed order and one seed: the same bits wherever the same scores are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0
NUMBERS = 1 << 20  # draws at once: 8 MiB
ROUNDING = 1e-12  # sums that differ by less are the same sum in another order


def intervals(pid_Q: NDArray[np.int64], scores: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """``[low, high]`` of the mean of each of ``scores`` [Q] over the queries, and how it was found.

    Invalid queries, whose score is NaN, count in none. None in place of an interval where there are fewer than two
    identities, which say nothing about others.
    """
    total_CK = _totals(pid_Q, np.stack(list(scores.values()), axis=1))
    found: dict[str, Any] = {
        "confidence": CONFIDENCE,
        "method": "percentile bootstrap over query identities",
        "resamples": RESAMPLES,
        "seed": SEED,
        "identities": len(total_CK),
    }
    limits_K2 = _percentiles(total_CK).tolist() if len(total_CK) > 1 else [None] * len(scores)
    return found | dict(zip(scores, limits_K2, strict=True))


@dataclass(frozen=True)
class Paired:
    """Mean over the queries of one score less another, its interval, and the chance ``p`` of a mean at least as far from 0
    if in each identity the two could change places. None where there are fewer than two identities."""

    difference: float
    interval: tuple[float, float] | None
    p: float | None
    queries: int
    identities: int


def paired(pid_Q: NDArray[np.int64], first_Q: NDArray[np.float64], second_Q: NDArray[np.float64]) -> Paired:
    """Compare two models by their scores of the same queries; NaN where invalid, in both."""
    total_C2 = _totals(pid_Q, (first_Q - second_Q)[:, None])
    sum_C, queries = total_C2[:, 0], int(total_C2[:, 1].sum())
    difference = float(sum_C.sum()) / queries
    if len(total_C2) < 2:
        return Paired(difference, None, None, queries, len(total_C2))
    low, high = _percentiles(total_C2)[0].tolist()
    least = abs(sum_C.sum()) - ROUNDING * np.abs(sum_C).sum()
    as_far = sum(
        int((np.abs(np.where(drawn_RC, sum_C, -sum_C).sum(axis=1)) >= least).sum()) for drawn_RC in _draws(2, len(sum_C))
    )
    return Paired(difference, (low, high), (as_far + 1) / (RESAMPLES + 1), queries, len(total_C2))


def _totals(pid_Q: NDArray[np.int64], score_QK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over each identity's valid queries [C, K + 1]; the last column counts them."""
    valid_Q = ~np.isnan(score_QK).any(axis=1)
    _, identity_Q = np.unique(pid_Q[valid_Q], return_inverse=True)
    columns = [np.bincount(identity_Q, weights=score_Q) for score_Q in score_QK[valid_Q].T]
    return np.stack([*columns, np.bincount(identity_Q).astype(np.float64)], axis=1)


def _percentiles(total_CK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Limits [K - 1, 2] of the means over queries when identities are drawn with replacement."""
    sums_RK = np.concatenate([total_CK[drawn_RC].sum(axis=1) for drawn_RC in _draws(len(total_CK), len(total_CK))])
    tail = (1 - CONFIDENCE) / 2
    limits_2K: NDArray[np.float64] = np.quantile(sums_RK[:, :-1] / sums_RK[:, -1:], [tail, 1 - tail], axis=0)
    return limits_2K.T


def _draws(values: int, identities: int) -> Iterator[NDArray[np.int64]]:
    """``RESAMPLES`` rows of one number below ``values`` for each identity [R, C], a few rows at a time."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    rows = max(1, NUMBERS // identities)
    for begin in range(0, RESAMPLES, rows):
        yield generator.integers(values, size=(min(rows, RESAMPLES - begin), identities))
