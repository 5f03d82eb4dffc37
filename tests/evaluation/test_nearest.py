"""The nearest gallery items against a plain sort, on 1, 2 and 3 ranks, and which queries serve as examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pool import Pool

from vmreid.distributed import rank
from vmreid.evaluation.distances import METRICS, Metric
from vmreid.evaluation.features import Features
from vmreid.evaluation.nearest import Example, examples, nearest
from vmreid.evaluation.protocol import QueryRanks
from vmreid.evaluation.ranking import rank_queries

COUNT = 10


def signs(number: int, seed: int) -> Features:
    """Rows of four entries +1 or -1: distances are exact in any order of summation, and most of them tie."""
    random = np.random.default_rng(seed)
    rows = random.choice([-1.0, 1.0], (number, 4)).astype(np.float32)
    return Features(torch.from_numpy(rows), *(torch.from_numpy(random.integers(low, 4, number)) for low in (-1, 0)))


def by_sorting(query: Features, gallery: Features, metric: Metric) -> list[list[int]]:
    """The protocol's exclusions, then numpy's stable sort of all distances."""
    x_QF, x_GF = (side.features.double().numpy() for side in (query, gallery))
    difference_QGF = x_QF[:, None] - x_GF
    distance_QG = (difference_QGF**2).sum(axis=2) if metric == "euclidean" else 1 - x_QF @ x_GF.T / 4
    result = []
    for q in range(len(query)):
        same = (gallery.pids == query.pids[q]) & (gallery.camids == query.camids[q])
        order = np.argsort(distance_QG[q], kind="stable")
        result.append([int(g) for g in order if gallery.pids[g] != -1 and not same[g]][:COUNT])
    return result


def find(query: Features, gallery: Features, owner: list[int], metric: Metric) -> tuple[list[list[int]], list[Example]]:
    """On a rank of the pool: its gallery items are those whose owner it is, in no order."""
    index = (torch.tensor(owner) == rank()).nonzero().squeeze(1).flip(0)
    given = (query, gallery[index], index, metric)
    return nearest(*given, COUNT), examples(rank_queries(*given), *given)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("items", [5, 90])  # fewer than are asked for, and more
def test_equals_a_plain_sort_on_any_ranks(ranks: Pool, metric: Metric, items: int) -> None:
    query, gallery = signs(12, 1), signs(items, 2)
    expected = by_sorting(query, gallery, metric)
    assert (gallery.pids == -1).any()
    spread = (
        (1, [0] * items),
        (2, [g % 2 for g in range(items)]),
        (2, [1] * items),
        (3, [2 * (g % 3 > 0) for g in range(items)]),
    )
    for world, owner in spread:  # rank 0 or rank 1 has nothing twice
        results = ranks.run(world, find, query, gallery, owner, metric)
        assert [found for found, _ in results] == [expected] * world
        for _, shown in results:
            assert shown
            assert [example.nearest for example in shown] == [expected[example.row] for example in shown]


def test_distances_that_float32_cannot_tell_apart_are_ordered(ranks: Pool) -> None:
    rows = 1 + torch.arange(40, dtype=torch.float64).flip(0)[:, None] * 2**-30  # so are the squares, 1 + k * 2**-29
    gallery = Features(rows, torch.arange(40) + 5, torch.zeros(40, dtype=torch.int64))
    query = Features(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([5]), torch.tensor([1]))
    for found, _ in ranks.run(2, find, query, gallery, [g // 20 for g in range(40)], "euclidean"):
        assert found == [list(range(39, 29, -1))]


def chosen(first_ranks: list[int]) -> list[tuple[str, int]]:
    """Place and row of the examples of queries with one positive each; 0: invalid."""
    query = Features(torch.zeros(len(first_ranks), 1), *[torch.zeros(len(first_ranks), dtype=torch.int64)] * 2)
    gallery = Features(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([1]))
    shown = examples(QueryRanks([[r] if r else [] for r in first_ranks], 1), query, gallery, torch.tensor([0]), "euclidean")
    assert [(example.ap, example.first_rank) for example in shown] == [
        (1 / first_ranks[e.row], first_ranks[e.row]) for e in shown
    ]
    assert not any(math.isnan(example.ap) for example in shown)
    return [(example.place, example.row) for example in shown]


def test_the_best_the_median_and_the_worst_queries_are_shown() -> None:
    """From the best: rows 6, 7, 8 (rank 1, by row), 9, 10, 12, 13, 2, 1, 3, 5 (rank 9), 11, 4; row 0 is invalid."""
    found = chosen([0, 6, 5, 9, 20, 9, 1, 1, 1, 2, 2, 12, 3, 3])
    kinds = [("best", 1, 6), ("best", 2, 7), ("median", 6, 12), ("median", 7, 13), ("median", 8, 2)]
    kinds += [("worst", 11, 5), ("worst", 12, 11), ("worst", 13, 4)]
    assert found == [(f"{kind}, number {place} of 13", row) for kind, place, row in kinds]


@pytest.mark.parametrize(
    ("queries", "shown"), [(1, [0]), (4, [0, 1, 2, 3]), (6, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 3, 4, 5, 6, 7, 8])]
)
def test_of_few_queries_none_is_shown_twice(queries: int, shown: list[int]) -> None:
    assert [row for _, row in chosen([1] * queries)] == shown
