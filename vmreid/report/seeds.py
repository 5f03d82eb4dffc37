"""What seeds alone make of a mean's difference: pure functions of scores by name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import scipy.stats


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """One standard deviation for all groups, each around its own mean, and its degrees of freedom; (nan, 0) without any."""
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if not freedom:
        return math.nan, 0
    return math.sqrt(sum(statistics.variance(group) * (len(group) - 1) for group in several) / freedom), freedom


def half_interval(deviation: float, freedom: int, one: int, other: int) -> float:
    """Half the width of the 95 % interval of the difference of two means, over ``one`` and ``other`` seeds, by Student's t."""
    return float(scipy.stats.t.ppf(0.975, freedom)) * deviation * math.sqrt(1 / one + 1 / other)
