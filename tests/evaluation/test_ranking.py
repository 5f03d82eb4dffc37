"""The exact metric against a plain loop, and the same bits on 1, 2 and 3 ranks."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pool import Pool

from vmreid.distributed import rank
from vmreid.errors import UserError
from vmreid.evaluation import ranking
from vmreid.evaluation.distances import METRICS, Metric, exact_distances, prepare, screen_distances
from vmreid.evaluation.protocol import summarise
from vmreid.evaluation.ranking import Features, rank_queries

Sides = tuple[Features, Features]


def features(rows: Any, pids: Any, camids: Any, dtype: torch.dtype = torch.float32) -> Features:
    ids = (torch.as_tensor(values, dtype=torch.int64).reshape(-1) for values in (pids, camids))
    return Features(torch.as_tensor(rows, dtype=dtype), *ids)


def as_lists(side: Features) -> dict[str, Any]:
    return {"features": side.features.tolist(), "pids": side.pids.tolist(), "camids": side.camids.tolist()}


def rank_here(query: Features, gallery: Features, metric: Metric) -> list[list[int]]:
    return rank_queries(query, gallery, torch.arange(len(gallery)), metric).ranks


def rank_parts(query: Features, gallery: Features, owner: list[int], metric: Metric, threads: int = 1) -> Any:
    """On a rank of the pool: its gallery items are those whose owner it is."""
    torch.set_num_threads(threads)
    index = (torch.tensor(owner, dtype=torch.int64) == rank()).nonzero().squeeze(1)
    try:
        ranks = rank_queries(query, gallery[index], index, metric)
        return ranks, repr(summarise(ranks)), repr((ranks.ap, ranks.inp, ranks.first_rank))
    except UserError as error:
        return str(error)
    finally:
        torch.set_num_threads(1)


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[Features, Features, list[int]]:
    """Rows with four entries of one size: their lengths are powers of two, so nearly all distances tie exactly."""

    def side(least: int, most: int) -> Features:
        number = draw(st.integers(least, most))
        rows = []
        for _ in range(number):
            row, size = [0.0] * 5, draw(st.sampled_from([0.5, 1.0, 2.0]))
            zero = draw(st.integers(0, 4))
            for column in range(5):
                row[column] = 0.0 if column == zero else size * draw(st.sampled_from([-1, 1]))
            rows.append(row)
        ids = st.lists(st.integers(-1, 2), min_size=number, max_size=number)
        return features(torch.tensor(rows).reshape(number, 5), draw(ids), draw(ids))

    query, gallery = side(1, 5), side(0, 14)
    owner = draw(st.lists(st.integers(0, 2), min_size=len(gallery), max_size=len(gallery)))
    return query, gallery, owner


@settings(max_examples=200, deadline=None)
@given(case=small_cases(), metric=st.sampled_from(METRICS))
def test_equals_the_plain_loop(case: tuple[Features, Features, list[int]], metric: Metric) -> None:
    query, gallery, _ = case
    ranks = rank_queries(query, gallery, torch.arange(len(gallery)), metric)
    expected = oracle.positive_ranks(as_lists(query), as_lists(gallery), metric)
    assert ranks.ranks == expected
    if not any(expected):
        with pytest.raises(UserError, match="no valid query"):
            summarise(ranks)
        return
    found, wanted = summarise(ranks), oracle.scores(expected)
    assert [found["mAP"], found["mINP"]] == pytest.approx([wanted["mAP"], wanted["mINP"]], abs=1e-14)
    assert found["cmc"] == wanted["cmc"]
    assert (found["queries"], found["gallery"]) == (len(query), len(gallery))
    assert found["invalid_queries"] == sum(not positives for positives in expected)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=small_cases(), metric=st.sampled_from(METRICS), world=st.sampled_from([2, 3]))
def test_equals_the_plain_loop_on_ranks(
    ranks: Pool, case: tuple[Features, Features, list[int]], metric: Metric, world: int
) -> None:
    query, gallery, owner = case
    expected = oracle.positive_ranks(as_lists(query), as_lists(gallery), metric)
    for result in ranks.run(world, rank_parts, query, gallery, [o % world for o in owner], metric):
        if any(expected):
            assert result[0].ranks == expected
        else:
            assert "no valid query" in result


def near_ties() -> Sides:
    """Features far from zero; each gallery row also as exact copies, and with its columns in another order.

    A query whose columns are all equal has one exact distance to all orders of a row, but rounding tells them apart,
    and each formula, shape and summation order in its own way.
    """
    generator = torch.Generator().manual_seed(5)
    base = 300 + torch.randn(120, 96, generator=generator)
    shuffled = [row[torch.randperm(96, generator=generator)] for row in base for _ in range(4)]
    rows = torch.cat([base, base, torch.stack(shuffled), base])
    rows = rows[torch.randperm(len(rows), generator=generator)]
    flat = torch.full((6, 96), 300.0) + torch.randn(6, 1, generator=generator)
    query_rows = torch.cat([flat, base[:20]])
    pids, camids = (torch.randint(0, high, (len(rows),), generator=generator) for high in (30, 4))
    query_pids = torch.arange(len(query_rows)) % 30
    return features(query_rows, query_pids, query_pids % 4), features(rows, pids, camids)


def brute_force(query: Features, gallery: Features, metric: Metric) -> list[list[int]]:
    """The protocol over distances of single pairs."""
    q_rows, g_rows = prepare(query.features, metric), prepare(gallery.features, metric)
    result = []
    for q in range(len(query)):
        single = [float(exact_distances(q_rows[q : q + 1], g_rows[g : g + 1])) for g in range(len(gallery))]
        same = gallery.pids == query.pids[q]
        kept = [g for g in range(len(gallery)) if not (same[g] and gallery.camids[g] == query.camids[q])]
        kept.sort(key=lambda g: (single[g], g))
        result.append([r for r, g in enumerate(kept, 1) if same[g]])
    return result


@pytest.mark.parametrize("metric", METRICS)
def test_near_ties_have_the_same_bits_everywhere(ranks: Pool, metric: Metric) -> None:
    query, gallery = near_ties()
    one = rank_parts(query, gallery, [0] * len(gallery), metric)
    assert one[0].ranks == brute_force(query, gallery, metric)
    assert rank_parts(query, gallery, [0] * len(gallery), metric, threads=2) == one
    spread = [[g % 2 for g in range(len(gallery))], [1] * len(gallery), [2 * (g > 333) for g in range(len(gallery))]]
    for world, owner in ((2, spread[0]), (2, spread[1]), (3, spread[2])):  # rank 0 or rank 1 has nothing twice
        assert ranks.run(world, rank_parts, query, gallery, owner, metric) == [one] * world


@pytest.mark.parametrize("metric", METRICS)
def test_tiles_and_screen_do_not_matter(monkeypatch: pytest.MonkeyPatch, metric: Metric) -> None:
    """Small odd tiles, and a screen that is wrong by half of what its bound allows."""
    query, gallery = near_ties()
    expected = rank_here(query, gallery, metric)
    generator = torch.Generator().manual_seed(6)

    def noisy(*rows: Any) -> Any:
        d_QG, bound_Q = screen_distances(*rows)
        return d_QG + (torch.rand(d_QG.shape, generator=generator) - 0.5) * bound_Q.unsqueeze(1), bound_Q

    monkeypatch.setattr(ranking, "screen_distances", noisy)
    monkeypatch.setattr(ranking, "QUERY_TILE", 7)
    monkeypatch.setattr(ranking, "GALLERY_TILE", 13)
    monkeypatch.setattr(ranking, "PAIR_NUMBERS", 500)
    assert rank_here(query, gallery, metric) == expected


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0.0, 300.0, 1e6])
def test_screen_is_within_half_of_its_bound(metric: Metric, offset: float) -> None:
    generator = torch.Generator().manual_seed(7)
    query, gallery = (prepare(offset + torch.randn(n, 384, generator=generator), metric) for n in (20, 300))
    d_QG, bound_Q = screen_distances(query, gallery)
    for q in range(20):
        exact_G = exact_distances(query[torch.full((300,), q)], gallery)
        assert ((d_QG[q] - exact_G).abs() <= bound_Q[q] / 2).all()
    assert (bound_Q < 1e-9 * (1 + 384 * offset**2)).all()  # and so it seldom leaves a doubt


def test_by_hand() -> None:
    """In order: 0 junk, 1 negative, 2 same camera (gone), 3 negative and 4 positive at one distance, 5 positive."""
    query = features([[0.0], [0.0]], [7, 8], [1, 1])
    gallery = features([[0.0], [1.0], [1.5], [-2.0], [2.0], [3.0]], [-1, 5, 7, 5, 7, 7], [2, 2, 1, 2, 2, 3])
    ranks = rank_queries(query, gallery, torch.arange(6), "euclidean")
    assert ranks.ranks == [[3, 4], []]
    assert ranks.first_rank == [3, 0]
    summary = summarise(ranks)
    assert summary["mAP"] == (1 / 3 + 2 / 4) / 2
    assert summary["mINP"] == 2 / 4
    assert summary["cmc"] == [0.0, 0.0] + [1.0] * 48
    assert (summary["rank1"], summary["rank5"], summary["rank10"]) == (0.0, 1.0, 1.0)
    assert (summary["queries"], summary["invalid_queries"], summary["gallery"]) == (2, 1, 6)


def test_ids_keep_all_their_bits() -> None:
    query = features([[0.0]], [2**62 + 1], [2**60 + 1])
    gallery = features([[1.0], [2.0], [3.0]], [2**62, 2**62 + 1, 2**62 + 1], [0, 2**60 + 1, 2**60])
    assert rank_here(query, gallery, "euclidean") == [[2]]


def test_float64_features_are_not_rounded() -> None:
    near, nearer = 1 + 2**-40, 1 + 2**-41
    query = features([[1.0]], [1], [0], torch.float64)
    gallery = features([[near], [nearer]], [2, 1], [1, 1], torch.float64)
    assert rank_here(query, gallery, "euclidean") == [[1]]


def refused(case: str) -> str:
    """On a rank of the pool: only the last rank's part is wrong."""
    query, gallery = near_ties()
    index = torch.arange(len(gallery))[rank() :: 3]
    part = gallery[index]
    metric: Metric = "euclidean"
    if rank() == 2 and case == "not finite":
        part.features[4, 3] = torch.nan
    elif rank() == 2 and case == "zero":
        part.features[4], metric = 0, "cosine"
    elif rank() == 2 and case == "width":
        part = Features(part.features[:, :5], part.pids, part.camids)
    elif rank() == 2 and case == "ids":
        part = Features(part.features, part.pids.float(), part.camids)
    try:
        rank_queries(query, part, index, metric)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("not finite", "non-finite feature in gallery row 14;"),
        ("zero", "all-zero gallery row 14 has no cosine"),
        ("width", "query features have 96 columns, gallery features 5"),
        ("ids", "gallery pids are torch.float32"),
    ],
)
def test_all_ranks_refuse_what_one_rank_finds(ranks: Pool, case: str, line: str) -> None:
    lines = ranks.run(3, refused, case)
    assert len(set(lines)) == 1
    assert line in lines[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_a_query_that_is_not_finite(value: float) -> None:
    query = features([[0.0, 1.0], [value, 1.0]], [1, 1], [0, 0])
    with pytest.raises(UserError, match="non-finite feature in query row 1"):
        rank_here(query, features([[0.0, 1.0]], [1], [1]), "euclidean")
