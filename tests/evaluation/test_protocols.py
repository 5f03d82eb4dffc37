"""The protocols against plain loops over all pairs, and the same on 1 to 4 ranks."""

from __future__ import annotations

import statistics
from typing import Any

import oracle
import pytest
import torch
from pool import Pool

from vmreid.distributed import rank, world_size
from vmreid.errors import UserError
from vmreid.evaluation.distances import METRICS, Metric
from vmreid.evaluation.features import Features
from vmreid.evaluation.protocols import DRAWS, draw, scores_by
from vmreid.evaluation.ranking import rank_queries
from vmreid.recipes.schema import Protocol


def sides(identities: int = 9, tie: bool = False) -> tuple[Features, Features]:
    """Queries and gallery; some identities on one side only, junk, two cameras. ``tie``: nearly all distances tie."""
    generator = torch.Generator().manual_seed(3)
    centre = torch.randn(identities, 6, generator=generator)
    found = []
    for number, lowest in ((30, 0), (70, -1)):
        pids = torch.randint(lowest, identities, (number,), generator=generator)
        camids = torch.randint(0, 2, (number,), generator=generator)
        rows = 2 * centre[pids.clamp_min(0)] + torch.randn(number, 6, generator=generator)
        found.append(Features(rows.sign() if tie else rows, pids, camids))
    return found[0], found[1]


def scored(protocol: Protocol, metric: Metric, query: Features, gallery: Features, uneven: bool = False) -> Any:
    """On a rank: the gallery lies spread over the ranks, or all of it on the first."""
    index = torch.arange(0 if rank() else len(gallery)) if uneven else torch.arange(len(gallery))[rank() :: world_size()]
    given = (query, gallery[index], index, metric)
    try:
        found = scores_by(protocol, rank_queries(*given), *given)
        return repr(found), found
    except UserError as error:
        return str(error)


def lists(side: Features) -> dict[str, Any]:
    return {name: values.tolist() for name, values in vars(side).items()}


def drawn(query: Features, gallery: Features, number: int, metric: Metric) -> dict[str, Any]:
    """One draw's scores by the plain loop: cameras do not count."""
    every = [
        (f, p) for side in (query, gallery) for f, p in zip(side.features.tolist(), side.pids.tolist(), strict=True) if p != -1
    ]
    chosen = draw(torch.tensor([pid for _, pid in every]), number).tolist()
    parts: dict[str, dict[str, Any]] = {}
    for name, rows, camera in (("query", set(range(len(every))) - set(chosen), 0), ("gallery", set(chosen), 1)):
        items = [every[row] for row in sorted(rows)]
        parts[name] = {"features": [f for f, _ in items], "pids": [p for _, p in items], "camids": [camera] * len(items)}
    assert sorted(parts["gallery"]["pids"]) == sorted({pid for _, pid in every})
    return oracle.scores(oracle.positive_ranks(parts["query"], parts["gallery"], metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tie", [False, True])
def test_vehicleid_is_the_mean_of_draws(metric: Metric, tie: bool) -> None:
    query, gallery = sides(tie=tie)
    _, found = scored("vehicleid", metric, query, gallery)
    each = [drawn(query, gallery, number, metric) for number in range(DRAWS)]
    for key in ("mAP", "mINP"):
        assert found[key] == pytest.approx(statistics.fmean(one[key] for one in each), abs=1e-12)
        assert found["spread"][key] == pytest.approx(statistics.stdev(one[key] for one in each), abs=1e-12)
    assert found["cmc"] == pytest.approx([statistics.fmean(values) for values in zip(*(one["cmc"] for one in each), strict=True)])
    assert found["rank1"] == found["cmc"][0]
    kept = len(query) + int((gallery.pids != -1).sum())
    assert (found["gallery"], found["queries"], found["invalid_queries"]) == (9, kept - 9, 0)
    assert found["spread"]["mAP"] > 0


def accepted(query: Features, gallery: Features, metric: Metric) -> dict[str, Any]:
    """The open-set rates by all thresholds of all pairs."""
    q, g = lists(query), lists(gallery)
    right, wrong = [], []
    for f, pid, camid in zip(*q.values(), strict=True):
        for other, other_pid, other_camid in zip(*g.values(), strict=True):
            if other_pid == -1 or (other_pid, other_camid) == (pid, camid):
                continue
            (right if other_pid == pid else wrong).append(oracle.distance(f, other, metric))
    rates = {}
    for rate in (1e-4, 1e-3, 1e-2):
        best = 0.0
        for threshold in right:
            if sum(d <= threshold for d in wrong) <= int(rate * len(wrong)):
                best = max(best, sum(d <= threshold for d in right) / len(right))
        rates[f"{rate:g}"] = best
    return {"tpr_at_fpr": rates, "right_pairs": len(right), "wrong_pairs": len(wrong)}


@pytest.mark.parametrize("tie", [False, True])
def test_open_set_is_the_best_threshold_of_all(tie: bool) -> None:
    query, gallery = sides(tie=tie)
    _, found = scored("open_set", "euclidean", query, gallery)
    expected = accepted(query, gallery, "euclidean")
    assert found["open_set"] == expected
    if not tie:
        assert 0 < expected["tpr_at_fpr"]["0.001"] < expected["tpr_at_fpr"]["0.01"] < 1
    _, market = scored("market1501", "euclidean", query, gallery)
    assert {**market, "open_set": expected} == found


@pytest.mark.parametrize("protocol", ["vehicleid", "open_set"])
def test_protocols_have_the_same_bits_everywhere(ranks: Pool, protocol: Protocol) -> None:
    query, gallery = sides()
    one = scored(protocol, "cosine", query, gallery)
    for world in (2, 3, 4):
        for uneven in (False, True):
            assert ranks.run(world, scored, protocol, "cosine", query, gallery, uneven) == [one] * world


@pytest.mark.parametrize("protocol", ["msmt17", "veri776", "cuhk03np"])
def test_sets_with_the_rule_of_market1501(protocol: Protocol) -> None:
    assert scored(protocol, "cosine", *sides()) == scored("market1501", "cosine", *sides())


def test_what_a_protocol_cannot_use_is_one_line() -> None:
    query, gallery = sides(identities=1)
    assert "no pair of two identities" in scored("open_set", "cosine", query, gallery)
    alone = Features(query.features[:2], torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert "no valid query" in scored("vehicleid", "cosine", alone, gallery[:0])
