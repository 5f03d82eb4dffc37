"""Sparse k-reciprocal re-ranking against the dense method, and the same bits on 1, 2 and 3 ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from dense_rerank import final_distances, ranks_by_sorting
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import Pool

from vmreid.benchmarks.rerank import synthetic_features
from vmreid.distributed import rank
from vmreid.errors import UserError
from vmreid.evaluation import jaccard, k_reciprocal, nearest_k, reorder
from vmreid.evaluation.distances import METRICS, Metric, exact_distances, prepare
from vmreid.evaluation.features import Features
from vmreid.evaluation.jaccard import blend, unit_share
from vmreid.evaluation.protocol import QueryRanks, summarise
from vmreid.evaluation.ranking import rank_queries
from vmreid.evaluation.reorder import Reranking
from vmreid.evaluation.rerank import rerank
from vmreid.evaluation.wide_screen import screen
from vmreid.recipes.schema import Rerank

pytestmark = pytest.mark.usefixtures("one_thread")
Sides = tuple[Features, Features]
PAPER = Rerank()
SETTINGS = [PAPER, Rerank(k1=5, k2=1, lambda_value=0), Rerank(k1=1, k2=1), Rerank(k1=7, k2=7, lambda_value=1)]
LARGE = Rerank(k1=149, k2=40)  # of 150 rows: each is near to each


def sides(rows: torch.Tensor, queries: int, seed: int, identities: int) -> Sides:
    """Rows as queries and gallery with drawn cameras; the row's number gives its identity. A ninth of the gallery is junk."""
    generator = torch.Generator().manual_seed(seed)
    pids, camids = torch.arange(len(rows)) % identities, torch.randint(4, (len(rows),), generator=generator)
    pids[queries::9] = -1
    both = Features(rows, pids, camids)
    return both[:queries], both[queries:]


def clusters(seed: int = 0, rows: int = 150, noise: float = 0.8) -> Sides:
    """Identities that overlap, off the origin: no two distances are equal."""
    generator = torch.Generator().manual_seed(seed)
    centre_PF = torch.randn(10, 12, generator=generator)
    drawn = centre_PF[torch.arange(rows) % 10] + noise * torch.randn(rows, 12, generator=generator) + 2
    return sides(drawn, 20, seed, 10)


def ties(seed: int = 0) -> Sides:
    """Four entries +1 or -1 at drawn places: copies of rows, and few different distances, exact under both metrics."""
    random = np.random.default_rng(seed)
    rows = np.zeros((150, 5), dtype=np.float32)
    for row in rows:
        row[random.permutation(5)[:4]] = random.choice([-1.0, 1.0], 4)
    return sides(torch.from_numpy(rows), 20, seed, 10)


CASES = {"clusters": clusters(), "ties": ties(), "one row again and again": sides(torch.ones(60, 3), 8, 0, 5)}


def distances(query: Features, gallery: Features, metric: Metric, values: Rerank) -> np.ndarray[Any, Any]:
    """Re-ranked distances [Q, G], NaN where the item is junk."""
    made = rerank(query, gallery, torch.arange(len(gallery)), metric, values)
    overlap_QG = torch.zeros(len(query), len(made.gallery.pids), dtype=torch.int64)
    q, item, overlap = made.inverted.overlaps(made.vectors.summed(made.near_NK[: len(query)]), len(query))
    overlap_QG[q, item] = overlap
    q, g = torch.cartesian_prod(torch.arange(len(query)), torch.arange(len(made.gallery.pids))).unbind(1)
    share = unit_share(exact_distances(made.query.rows[q], made.gallery.rows[g]), made.farthest_N[q])
    final = blend(share, overlap_QG.view(-1), made.near_NK.shape[1], values.lambda_value)
    result = torch.full((len(query), len(gallery)), torch.nan, dtype=torch.float64)
    result[:, made.gallery.index] = final.view(len(query), -1)
    assert (result.isnan() == (gallery.pids == -1)).all()
    return result.numpy()


def dense(query: Features, gallery: Features, metric: Metric, values: Rerank) -> np.ndarray[Any, Any]:
    return final_distances(query.features.numpy(), gallery.features.numpy(), metric, values.k1, values.k2, values.lambda_value)


def reranked(query: Features, gallery: Features, owner: list[int], metric: Metric, values: Rerank) -> QueryRanks:
    """On a rank of the pool: its gallery items are those whose owner it is, in no order."""
    index = (torch.tensor(owner) == rank()).nonzero().squeeze(1).flip(0)
    given = (query, gallery[index], index, metric)
    return rank_queries(*given, reranking=rerank(*given, values))


def bits(reranking: Reranking) -> list[list[float]]:
    """All that ranks and devices must agree on."""
    vectors = reranking.vectors
    return [values.tolist() for values in (vectors.first, vectors.column, vectors.value, reranking.near_NK, reranking.farthest_N)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("values", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["clusters", "ties"])
def test_equals_the_dense_method(name: str, values: Rerank, metric: Metric) -> None:
    query, gallery = CASES[name]
    found, wanted = distances(query, gallery, metric, values), dense(query, gallery, metric, values)
    assert np.nanmax(np.abs(found - wanted)) < 1e-10
    ranks = reranked(query, gallery, [0] * len(gallery), metric, values)
    assert ranks.ranks == ranks_by_sorting(wanted, query, gallery, metric)
    expected = oracle.scores(ranks_by_sorting(wanted, query, gallery, metric))
    assert summarise(ranks)["mAP"] == pytest.approx(expected["mAP"], abs=1e-12)


def test_changes_the_order() -> None:
    """Else the tests above would hold of nothing."""
    query, gallery = CASES["clusters"]
    plain = summarise(rank_queries(query, gallery, torch.arange(len(gallery)), "cosine"))["mAP"]
    better = summarise(reranked(query, gallery, [0] * len(gallery), "cosine", PAPER))["mAP"]
    assert better > plain + 0.05


@settings(max_examples=60, deadline=None)
@given(data=st.data(), metric=st.sampled_from(METRICS))
def test_equals_the_dense_method_on_drawn_sets(data: st.DataObject, metric: Metric) -> None:
    """Few rows, most of them at equal distances; k1 up to one less than there are."""
    number = data.draw(st.integers(4, 16))
    chosen = data.draw(st.lists(st.integers(0, 149), min_size=number, max_size=number))
    query, gallery = sides(torch.cat([side.features for side in CASES["ties"]])[chosen], 2, number, 2)
    k1 = data.draw(st.integers(1, number - 1))
    values = Rerank(k1=k1, k2=data.draw(st.integers(1, k1)), lambda_value=data.draw(st.sampled_from([0.0, 0.3, 1.0])))
    rows = torch.cat([query.features, gallery.features])
    if (rows == rows[0]).all():
        return  # no distance to divide by: the test below
    assert np.nanmax(np.abs(distances(query, gallery, metric, values) - dense(query, gallery, metric, values))) < 1e-10


@pytest.mark.parametrize("metric", METRICS)
def test_of_equal_rows_all_are_ranked_by_index(metric: Metric) -> None:
    """Copies of lower number fill the lists of the others, whose sets are empty; the farthest distance is 0."""
    query, gallery = CASES["one row again and again"]
    ranks = reranked(query, gallery, [0] * len(gallery), metric, PAPER)
    first = distances(query, gallery, metric, PAPER)
    assert ranks.ranks == ranks_by_sorting(first, query, gallery, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["clusters", "ties"])
def test_the_same_on_any_ranks(ranks: Pool, name: str, metric: Metric) -> None:
    query, gallery = CASES[name]
    items = range(len(gallery))
    one = reranked(query, gallery, [0] * len(gallery), metric, PAPER)
    spread = ((2, [g % 2 for g in items]), (2, [1 for g in items]), (3, [2 * (g % 3 > 0) for g in items]))
    for world, owner in spread:  # rank 0 or rank 1 has nothing twice
        assert ranks.run(world, reranked, query, gallery, owner, metric, PAPER) == [one] * world


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_tiles_and_screen_do_not_matter(monkeypatch: pytest.MonkeyPatch, name: str, metric: Metric) -> None:
    """Small odd tiles and slices, and a screen that is wrong by half of what its bound allows."""
    query, gallery = CASES[name]
    expected = reranked(query, gallery, [0] * len(gallery), metric, PAPER)
    vectors = bits(rerank(query, gallery, torch.arange(len(gallery)), metric, PAPER))
    generator = torch.Generator().manual_seed(6)

    def noisy(*rows: Any) -> Any:
        d_RC, bound_R = screen(*rows)
        bound_R = bound_R + 0.01  # so that many pairs are in doubt
        return d_RC + (torch.rand(d_RC.shape, generator=generator) - 0.5) * bound_R.unsqueeze(1), bound_R

    monkeypatch.setattr(nearest_k, "screen", noisy)
    monkeypatch.setattr(nearest_k, "ROWS", 11)
    monkeypatch.setattr(nearest_k, "COLUMNS", 17)
    monkeypatch.setattr(k_reciprocal, "ROWS", 7)
    monkeypatch.setattr(jaccard, "ENTRIES", 50)
    monkeypatch.setattr(jaccard, "WIDTH", 13)
    monkeypatch.setattr(reorder, "ENTRIES", 50)
    assert bits(rerank(query, gallery, torch.arange(len(gallery)), metric, PAPER)) == vectors
    assert reranked(query, gallery, [0] * len(gallery), metric, PAPER) == expected


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0.0, 300.0, 1e6])
def test_the_screen_is_within_half_of_its_bound(metric: Metric, offset: float) -> None:
    generator = torch.Generator().manual_seed(7)
    rows, columns = (prepare(offset + torch.randn(n, 384, generator=generator), metric) for n in (20, 300))
    d_RC, bound_R = screen(rows, columns)
    r, c = torch.cartesian_prod(torch.arange(20), torch.arange(300)).unbind(1)
    exact_RC = exact_distances(rows[r], columns[c]).view(20, 300)
    assert ((d_RC - exact_RC).abs() <= bound_R.unsqueeze(1) / 2).all()
    assert (bound_R < 1e-9 * (1 + 384 * offset**2)).all()  # and so it seldom leaves a doubt


def test_each_row_is_near_to_each() -> None:
    query, gallery = CASES["clusters"]
    assert np.nanmax(np.abs(distances(query, gallery, "cosine", LARGE) - dense(query, gallery, "cosine", LARGE))) < 1e-10


def test_float64_features_are_not_rounded() -> None:
    """Beside queries in float32, a gallery whose rows are equal once they are rounded."""
    query, gallery = clusters(rows=40)
    close = Features(1 + 2**-30 * gallery.features.double(), gallery.pids, gallery.camids)
    values = Rerank(k1=5, k2=2)
    assert np.nanmax(np.abs(distances(query, close, "euclidean", values) - dense(query, close, "euclidean", values))) < 1e-10


@pytest.mark.slow
def test_a_tenth_of_msmt17_has_the_scores_of_the_dense_method() -> None:
    query, gallery = synthetic_features(0.1)
    wanted = oracle.scores(ranks_by_sorting(dense(query, gallery, "cosine", PAPER), query, gallery, "cosine"))
    found = summarise(reranked(query, gallery, [0] * len(gallery), "cosine", PAPER))
    assert [found[key] for key in ("mAP", "mINP")] == pytest.approx([wanted[key] for key in ("mAP", "mINP")], abs=1e-6)
    assert found["cmc"] == wanted["cmc"]


def refused(k1: int) -> str:
    """On a rank of the pool; the last one has the gallery."""
    query, gallery = clusters()
    index = torch.arange(len(gallery) if rank() == 2 else 0)
    try:
        rerank(query, gallery[index], index, "cosine", Rerank(k1=k1))
    except UserError as error:
        return str(error)
    return ""


def test_more_neighbours_than_rows_are_refused_on_all_ranks(ranks: Pool) -> None:
    line = "re-ranking with k1 = 150 needs more than 150 queries and gallery items, here are 150; give a smaller k1"
    assert ranks.run(3, refused, 150) == [line] * 3


def test_an_estimate_comes_before_the_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    query, gallery = CASES["clusters"]
    monkeypatch.setattr(nearest_k, "ROWS", 10)
    rerank(query, gallery, torch.arange(len(gallery)), "cosine", PAPER)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("re-ranking 150 rows with k1 = 20: about 0m")
    assert said[0].endswith("GiB of memory a rank")
    assert said[-1] == "re-ranking, tile 15/15"


def test_exp_is_exp() -> None:
    x = -torch.linspace(0, 1, 10001, dtype=torch.float64)
    assert (jaccard._exp(x) - x.exp()).abs().max() < 1e-15


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_gives_the_same_bits(name: str, metric: Metric) -> None:
    query, gallery = CASES[name]
    sides, gpu = (query, gallery, torch.arange(len(gallery)), metric), torch.device("cuda")
    on_cpu, on_gpu = rerank(*sides, PAPER), rerank(*sides, PAPER, gpu)
    assert bits(on_gpu) == bits(on_cpu)
    assert rank_queries(*sides, gpu, reranking=on_gpu) == rank_queries(*sides, reranking=on_cpu)
