"""Counts of pairs by distance against a plain loop, on 1, 2 and 3 ranks; precision over recall against its definition."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from pool import Pool

from vmreid.distributed import rank
from vmreid.evaluation import histogram
from vmreid.evaluation.distances import METRICS, Metric, exact_distances, prepare
from vmreid.evaluation.features import Features
from vmreid.evaluation.histogram import BINS, Histogram, distance_histogram
from vmreid.evaluation.precision_recall import RECALLS, precision_by_recall
from vmreid.evaluation.protocol import QueryRanks


def side(number: int, seed: int, lowest_pid: int, *, ties: bool) -> Features:
    """Rows of +1 and -1 have distances that lie on the bins' edges, where rounding would move them to another bin."""
    generator = torch.Generator().manual_seed(seed)
    pids, camids = (torch.randint(low, 4, (number,), generator=generator) for low in (lowest_pid, 0))
    rows = torch.randn(number, 5, generator=generator)
    return Features(rows.sign() if ties else rows, pids, camids)


def count(query: Features, gallery: Features, owner: list[int], metric: Metric, queries: int) -> Histogram:
    """On a rank of the pool: its gallery items are those whose owner it is; small tiles, so that there are several."""
    histogram.QUERIES, histogram.QUERY_TILE, histogram.GALLERY_TILE = queries, 4, 16
    part = gallery[(torch.tensor(owner) == rank()).nonzero().squeeze(1)]
    try:
        return distance_histogram(query, part, metric)
    finally:
        histogram.QUERIES, histogram.QUERY_TILE, histogram.GALLERY_TILE = 4096, 256, 4096


def by_loop(query: Features, gallery: Features, metric: Metric, width: float) -> list[list[int]]:
    """Positive and negative counts, pair by pair."""
    counts = [[0] * BINS, [0] * BINS]
    rows, items = prepare(query.features, metric), prepare(gallery.features, metric)
    for q in range(len(query)):
        for g in range(len(gallery)):
            same = bool(query.pids[q] == gallery.pids[g])
            if gallery.pids[g] == -1 or (same and query.camids[q] == gallery.camids[g]):
                continue
            distance = float(exact_distances(rows[q : q + 1], items[g : g + 1]))
            plain = oracle.distance(query.features[q].tolist(), gallery.features[g].tolist(), metric)
            assert distance == pytest.approx(plain, abs=1e-12)
            counts[0 if same else 1][min(BINS - 1, max(0, math.floor(distance / width)))] += 1
    return counts


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ties", [False, True])
def test_each_pair_is_counted_once_in_the_bin_of_its_exact_distance(ranks: Pool, metric: Metric, ties: bool) -> None:
    query, gallery = side(11, 1, 0, ties=ties), side(90, 2, -1, ties=ties)
    spread = ((1, [0] * 90), (2, [g % 2 for g in range(90)]), (3, [2 * (g % 3 > 0) for g in range(90)]))  # rank 1 of 3: none
    found = [each for world, owner in spread for each in ranks.run(world, count, query, gallery, owner, metric, 4096)]
    assert found == [found[0]] * 6
    assert [found[0].positive, found[0].negative] == by_loop(query, gallery, metric, found[0].width)
    longest = sum(float(each.features.double().norm(dim=1).max()) for each in (query, gallery))
    assert found[0].width * BINS == pytest.approx(2 if metric == "cosine" else longest**2)


def test_of_many_queries_some_are_counted_from_the_first_to_the_last() -> None:
    query, gallery = side(11, 1, 0, ties=False), side(40, 2, -1, ties=False)
    found = count(query, gallery, [0] * 40, "cosine", 5)
    assert (found.queries, found.all_queries) == (5, 11)
    chosen = query[torch.tensor([0, 2, 5, 8, 10])]
    assert [found.positive, found.negative] == by_loop(chosen, gallery, "cosine", found.width)


def test_features_of_zeros_have_a_histogram() -> None:
    zeros = Features(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([0, 0]))
    found = distance_histogram(zeros, Features(zeros.features, zeros.pids, torch.tensor([1, 1])), "euclidean")
    assert (found.positive[0], found.negative[0], sum(found.positive + found.negative)) == (2, 2, 4)


def test_precision_is_the_best_at_a_recall_or_beyond_and_its_mean_over_valid_queries() -> None:
    ranks = [[2, 3, 10], [], [1], [4, 5, 6, 7, 8, 9, 10], [1, 50]]
    wanted = []
    for recall in RECALLS:
        best = [
            max(j / r for j, r in enumerate(positives, 1) if j / len(positives) >= recall - 1e-9)
            for positives in ranks
            if positives
        ]
        wanted.append(sum(best) / len(best))
    assert precision_by_recall(QueryRanks(ranks, 60)) == pytest.approx(wanted, abs=1e-12)
    assert wanted[0] == pytest.approx((2 / 3 + 1 + 0.7 + 1) / 4)
    assert wanted[-1] == pytest.approx((0.3 + 1 + 0.7 + 0.04) / 4)
