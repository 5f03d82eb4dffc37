"""Intervals and the paired test against plain loops, exact enumeration, and what they promise of repeated samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vmreid.evaluation import uncertainty
from vmreid.evaluation.uncertainty import RESAMPLES, SEED, intervals, paired


def sample(identities: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """1 to 5 queries of each identity, in no order; those of one identity score alike. Some are invalid."""
    random = np.random.default_rng(seed)
    pid = random.permutation(np.repeat(np.arange(identities) * 7, random.integers(1, 6, identities)))
    score = np.clip(random.uniform(0, 1, identities)[pid // 7] + random.normal(0, 0.05, len(pid)), 0, 1)
    score[random.uniform(size=len(pid)) < 0.1] = np.nan
    return pid, score


def test_intervals_are_those_of_a_loop_that_draws_identities_with_all_their_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncertainty, "RESAMPLES", 300)
    monkeypatch.setattr(uncertainty, "NUMBERS", 70 * 20)  # several pieces, the last one short
    pid, score = sample(20, 3)
    found = intervals(pid, {"a": score, "b": score**2})
    groups = [score[(pid == identity) & ~np.isnan(score)] for identity in np.unique(pid[~np.isnan(score)])]
    generator = np.random.Generator(np.random.PCG64(SEED))
    means = []
    for _ in range(300):
        drawn = [value for identity in generator.integers(len(groups), size=len(groups)) for value in groups[identity]]
        means.append((math.fsum(drawn) / len(drawn), math.fsum(value**2 for value in drawn) / len(drawn)))
    for number, name in enumerate("ab"):
        ordered = sorted(mean[number] for mean in means)
        for limit, share in zip(found[name], (0.025, 0.975), strict=True):
            below = int(share * 299)
            between = ordered[below] + (share * 299 - below) * (ordered[below + 1] - ordered[below])
            assert limit == pytest.approx(between, abs=1e-12)
    assert (found["identities"], found["resamples"], found["seed"], found["confidence"]) == (len(groups), 300, SEED, 0.95)


def test_queries_of_one_identity_do_not_count_as_independent() -> None:
    """Each query ten times over says nothing new, so the interval stays."""
    pid, score = sample(30, 1)
    once = intervals(pid, {"a": score})["a"]
    assert intervals(np.repeat(pid, 10), {"a": np.repeat(score, 10)})["a"] == pytest.approx(once, abs=1e-12)


def test_95_of_100_intervals_hold_the_true_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores whose mean over all identities is 0.5. 400 samples: 380 expected, the percentile method's a little fewer."""
    monkeypatch.setattr(uncertainty, "RESAMPLES", 500)
    held = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        score = np.repeat(random.uniform(0, 1, 40), 4) + random.normal(0, 0.1, 160)
        low, high = intervals(np.repeat(np.arange(40), 4), {"a": score})["a"]
        held += low <= 0.5 <= high
    assert 365 <= held <= 393  # binomial, 380 ± 3 x 4.4, and 1 % for the method


@pytest.mark.parametrize("identities", [0, 1])
def test_too_few_identities_give_no_interval(identities: int) -> None:
    pid, score = np.array([4, 4, 9]), np.array([0.25, 0.5, np.nan] if identities else [np.nan] * 3)
    found = intervals(pid, {"a": score})
    assert (found["a"], found["identities"]) == (None, identities)
    if identities:
        assert paired(pid, score, score / 2) == uncertainty.Paired(0.1875, None, None, 2, 1)


def test_p_is_the_share_of_all_sign_flips_over_identities_that_reach_as_far() -> None:
    pid, first = sample(11, 5)
    second = first + np.random.default_rng(9).normal(0.03, 0.1, len(pid))
    found = paired(pid, first, second)
    valid = ~np.isnan(first)
    sums = [math.fsum((first - second)[(pid == identity) & valid]) for identity in np.unique(pid[valid])]
    flips = [abs(math.fsum(sign * value for sign, value in zip(signs, sums, strict=True)))
             for signs in itertools.product((1, -1), repeat=len(sums))]  # fmt: skip
    exact = sum(value >= flips[0] - 1e-12 for value in flips) / len(flips)
    assert 0.02 < exact < 0.9
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / RESAMPLES))
    assert found.difference == pytest.approx(np.nanmean(first) - np.nanmean(second), abs=1e-12)
    assert (found.queries, found.identities) == (int(valid.sum()), len(sums))
    assert found.interval
    assert found.interval[0] < found.difference < found.interval[1]


def test_equal_models_do_not_differ_and_unlike_ones_do() -> None:
    pid, score = sample(60, 2)
    same = paired(pid, score, score.copy())
    assert (same.difference, same.interval, same.p) == (0, (0, 0), 1)
    better = paired(pid, score + 0.1, score)
    assert better.p == 1 / (RESAMPLES + 1)  # never 0: the observed one is one of the flips
    assert better.interval == pytest.approx((0.1, 0.1), abs=1e-9)
    other = paired(pid, score, score + 0.1)
    assert (other.difference, other.p) == (-better.difference, better.p)
