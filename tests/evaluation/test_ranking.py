"""The exact metric against a plain loop, and the same bits on 1 to 4 ranks."""

from __future__ import annotations

import math
from typing import Any

import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metric_inputs import Sides, features, near_ties, torch_threads
from pool import Pool

from vmreid.distributed import rank
from vmreid.errors import UserError
from vmreid.evaluation import counting, distances, tiles
from vmreid.evaluation.distances import METRICS, Metric, exact_distances, ordered_sum, pair_distances, prepare
from vmreid.evaluation.features import Features
from vmreid.evaluation.protocol import summarise
from vmreid.evaluation.ranking import rank_queries
from vmreid.evaluation.screen import Frame, bound, products, screened


def as_lists(side: Features) -> dict[str, Any]:
    return {"features": side.features.tolist(), "pids": side.pids.tolist(), "camids": side.camids.tolist()}


def rank_here(query: Features, gallery: Features, metric: Metric) -> list[list[int]]:
    return rank_queries(query, gallery, torch.arange(len(gallery)), metric).ranks


def rank_parts(query: Features, gallery: Features, owner: list[int], metric: Metric, threads: int = 1, gib: float = 1) -> Any:
    """On a rank of the pool: its gallery items are those whose owner it is."""
    index = (torch.tensor(owner, dtype=torch.int64) == rank()).nonzero().squeeze(1)
    try:
        with torch_threads(threads):
            ranks = rank_queries(query, gallery[index], index, metric, memory_gib=gib)
        return ranks, repr(summarise(ranks)), repr((ranks.ap, ranks.inp, ranks.first_rank))
    except UserError as error:
        return str(error)


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[Features, Features, list[int], Metric]:
    """Rows with four entries of one size: their lengths are powers of two, so nearly all distances tie exactly. They lie
    around zero or, under ``euclidean``, far from it, and are tiny or huge; sometimes there is one camera."""
    metric: Metric = draw(st.sampled_from(METRICS))
    scale = draw(st.sampled_from([2.0**-120, 2.0**-20, 1.0, 2.0**60, 2.0**100]))
    offset = draw(st.sampled_from([0.0, 4096.0, 2.0**20])) if metric == "euclidean" else 0.0
    cameras = draw(st.sampled_from([-1, 2]))

    def side(least: int, most: int) -> Features:
        number = draw(st.integers(least, most))
        rows = []
        for _ in range(number):
            row, size = [0.0] * 5, draw(st.sampled_from([0.5, 1.0, 2.0]))
            zero = draw(st.integers(0, 4))
            for column in range(5):
                row[column] = 0.0 if column == zero else size * draw(st.sampled_from([-1, 1]))
            rows.append(row)
        pids, camids = (draw(st.lists(st.integers(-1, highest), min_size=number, max_size=number)) for highest in (2, cameras))
        return features((torch.tensor(rows).reshape(number, 5) + offset) * scale, pids, camids)

    query, gallery = side(1, 5), side(0, 14)
    owner = draw(st.lists(st.integers(0, 3), min_size=len(gallery), max_size=len(gallery)))
    return query, gallery, owner, metric


@settings(max_examples=200, deadline=None)
@given(case=small_cases())
def test_equals_the_plain_loop(case: tuple[Features, Features, list[int], Metric]) -> None:
    query, gallery, _, metric = case
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
@given(case=small_cases(), world=st.sampled_from([2, 3, 4]))
def test_equals_the_plain_loop_on_ranks(ranks: Pool, case: tuple[Features, Features, list[int], Metric], world: int) -> None:
    query, gallery, owner, metric = case
    expected = oracle.positive_ranks(as_lists(query), as_lists(gallery), metric)
    for result in ranks.run(world, rank_parts, query, gallery, [o % world for o in owner], metric):
        if any(expected):
            assert result[0].ranks == expected
        else:
            assert "no valid query" in result


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
@pytest.mark.parametrize("most", [1, 1000])
def test_tiles_and_screen_do_not_matter(monkeypatch: pytest.MonkeyPatch, metric: Metric, most: int) -> None:
    """Small odd tiles, several blocks of queries, and a screen that is wrong by as much as its bound allows.

    A row with more doubts than one in ``most`` of the tile is screened again.
    """
    query, gallery = near_ties()
    expected = rank_here(query, gallery, metric)
    generator, looks = torch.Generator().manual_seed(6), []

    def noisy(queries: Any, items: Any, place_QG: torch.Tensor) -> torch.Tensor:
        looks.append(tuple(place_QG.shape))
        noise_QG = 1.98 * torch.rand(place_QG.shape, generator=generator) - 0.99
        narrow_Q = bound(queries, items, Frame(0, torch.zeros(96), torch.float32), metric)
        return products(queries, items, place_QG).add_((noise_QG * narrow_Q.unsqueeze(1)).to(place_QG.dtype))

    def twice(*given: Any) -> torch.Tensor:
        return 2 * bound(*given)

    monkeypatch.setattr(counting, "products", noisy)
    monkeypatch.setattr(counting, "bound", twice)
    monkeypatch.setattr(counting, "DOUBTS", most)
    monkeypatch.setattr(tiles, "QUERY_ROWS", 7)
    monkeypatch.setattr(tiles, "LOOK_NUMBERS", 60)
    monkeypatch.setattr(distances, "PAIR_NUMBERS", {"cpu": 5000})
    with torch_threads(1):  # of several each would have smaller tiles
        ranks = rank_queries(query, gallery, torch.arange(len(gallery)), metric, memory_gib=3e-4)
    assert ranks.ranks == expected
    assert max(looks) == (7, 26)
    assert len(looks) > 4 * len(gallery) / 26


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("width", [1, 2, 3, 97, 384])
def test_compiled_distances_are_those_of_tensors(metric: Metric, width: int) -> None:
    generator = torch.Generator().manual_seed(9)
    query, gallery = (
        prepare(3 + torch.randn(50, 2 * width, generator=generator, dtype=dtype)[:, ::2], metric)
        for dtype in (torch.float32, torch.float64)
    )
    q, g = (torch.randint(0, 50, (400,), generator=generator) for _ in range(2))
    for one, other in ((query, gallery), (gallery, query), (query, query)):
        assert torch.equal(pair_distances(one, other, q, g, torch.device("cpu")), exact_distances(one[q], other[g]))


def hostile(kind: str) -> Sides:
    """Features whose float32 products tell nothing or are no numbers."""
    generator = torch.Generator().manual_seed(8)
    identity = torch.randn(12, 40, generator=generator)
    pids, camids = (torch.randint(0, high, (260,), generator=generator) for high in (12, 3))
    rows = identity[pids] + torch.randn(260, 40, generator=generator)
    dtype = torch.float32
    if kind == "one row far away":
        rows[-1] *= 1e18
    elif kind == "offset":
        rows += 1e6
    elif kind == "offset that float32 hardly holds":
        rows += 3e6
    elif kind == "all equal":
        rows[:] = rows[0]
    elif kind == "near float64's ends":
        rows, dtype = rows.double() * 1e150, torch.float64
    elif kind == "float64 beyond float32":
        rows, dtype = 1 + rows.double() * 1e-12, torch.float64
    else:
        rows *= float(kind)
    return tuple(features(rows[part], pids[part], camids[part], dtype) for part in (slice(20), slice(20, 260)))  # type: ignore[return-value]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "kind",
    [
        *("one row far away", "offset", "offset that float32 hardly holds", "all equal", "near float64's ends"),
        *("float64 beyond float32", "1e-44", "1e-40", "1e-19", "1e-6", "1e18", "1e37"),
    ],
)
def test_equals_single_pairs_where_float32_fails(ranks: Pool, metric: Metric, kind: str) -> None:
    query, gallery = hostile(kind)
    given = query.features.clone(), gallery.features.clone()
    expected = brute_force(query, gallery, metric)
    assert rank_here(query, gallery, metric) == expected
    assert torch.equal(query.features, given[0])
    assert torch.equal(gallery.features, given[1])
    spread = [g % 2 for g in range(len(gallery))]
    assert [found[0].ranks for found in ranks.run(2, rank_parts, query, gallery, spread, metric, 1, 1e-3)] == [expected] * 2


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 384, 1100])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (300, 1), (1e6, 1), (0, 1e-30), (0, 1e-44), (10, 1e30)])
def test_screen_is_within_its_bound(metric: Metric, dtype: torch.dtype, width: int, offset: float, scale: float) -> None:
    """And the bound leaves few doubts: it is small beside the distances."""
    generator = torch.Generator().manual_seed(7)
    query, gallery = (prepare((offset + torch.randn(n, width, generator=generator)) * scale, metric) for n in (20, 300))
    frame = Frame.of(query, gallery, torch.device("cpu"))
    own, other = (screened(rows, frame, dtype) for rows in (query, gallery))
    found_QG = products(own, other, torch.empty(20, 300, dtype=dtype)).double() + other.squared_N / 2
    bound_Q = bound(own, other, frame, metric)
    for q in range(20):
        exact_G = exact_distances(query[torch.full((300,), q)], gallery)
        wanted_G = (frame.distances(exact_G, metric) - own.squared_N[q]) / 2
        assert ((found_QG[q] - wanted_G).abs() <= bound_Q[q]).all()
    lost = scale == 1e-44 or (metric == "cosine" and offset == 1e6)  # even float64 keeps few digits of these
    if not lost:
        assert (bound_Q < (1e-3 if dtype == torch.float32 else 1e-5) * frame.distances(exact_G, metric).mean()).all()


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "kind", ["near ties", "one row far away", "offset", "all equal", "float64 beyond float32", "1e-40", "1", "1e18"]
)
def test_a_gpu_gives_the_same_ranks(metric: Metric, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = near_ties() if kind == "near ties" else hostile(kind)
    expected, index = rank_here(query, gallery, metric), torch.arange(len(gallery))
    sides = query, gallery, index, metric, torch.device("cuda")
    for gib in (1, 1e-3):
        assert rank_queries(*sides, gib).ranks == expected
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))  # features that do not fit: tiles travel
    assert rank_queries(*sides, 1e-3).ranks == expected


def test_autocast_and_tf32_do_not_reach_the_screen() -> None:
    query, gallery = hostile("1")
    expected = rank_here(query, gallery, "euclidean")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert rank_here(query, gallery, "euclidean") == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_ties_by_the_thousand_take_no_more_memory() -> None:
    """Every item at one distance from every query, under ids of their own and of others."""
    pids = torch.arange(6000) % 3
    gallery = Features(torch.ones(6000, 4), pids, torch.ones_like(pids))
    query = Features(torch.ones(3, 4), torch.arange(3), torch.zeros(3, dtype=torch.int64))
    found = rank_queries(query, gallery, torch.arange(6000), "euclidean", memory_gib=0.01)
    assert found.ranks == [list(range(first, 6001, 3)) for first in (1, 2, 3)]


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


def test_a_square_too_short_for_a_cosine_is_refused() -> None:
    query = features([[1.0, 0.0]], [1], [0], torch.float64)
    gallery = features([[1e-141, 1e-150]], [1], [1], torch.float64)
    with pytest.raises(UserError, match="gallery row 0 is shorter than 1e-140"):
        rank_here(query, gallery, "cosine")


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


def test_lengths_are_rounded_as_ieee_754_asks() -> None:
    features_NF = torch.randn(5000, 37, generator=torch.Generator().manual_seed(0))
    squares_NF = features_NF.double().square()
    assert prepare(features_NF, "cosine").length_N.tolist() == [math.sqrt(value) for value in ordered_sum(squares_NF).tolist()]
