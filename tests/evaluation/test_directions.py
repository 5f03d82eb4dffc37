"""Both directions of an evaluation on ranks, and their mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from pool import Pool

from vmreid.distributed import rank, world_size
from vmreid.evaluation.baselines import chance
from vmreid.evaluation.directions import Direction, direction, mean
from vmreid.evaluation.extraction import Extracted
from vmreid.evaluation.features import Features
from vmreid.recipes.schema import Protocol


def side(number: int, seed: int, lowest_pid: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    pids, camids = (torch.randint(low, 5, (number,), generator=generator) for low in (lowest_pid, 0))
    return Features(torch.randn(number, 8, generator=generator), pids, camids)


QUERY, GALLERY = side(7, 1, 0), side(26, 2, -1)


def own_part(whole: Features, parts: int) -> dict[str, Extracted]:
    """Every ``parts``-th item of the model and of a floor; on 3 ranks in 2 parts, the last rank has none."""
    rows = torch.arange(len(whole))[rank() :: parts] if rank() < parts else torch.arange(0)
    return {
        "model": Extracted(whole[rows], rows),
        "floor": Extracted(Features(-whole.features.abs(), whole.pids, whole.camids)[rows], rows),
    }


def both(parts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    query, gallery = (own_part(whole, min(parts, world_size())) for whole in (QUERY, GALLERY))
    return direction(query, gallery, "cosine").metrics(), direction(gallery, query, "cosine").metrics()


def expected(query: Features, gallery: Features) -> tuple[dict[str, Any], dict[str, float]]:
    lists = [{name: values.tolist() for name, values in vars(each).items()} for each in (query, gallery)]
    counts = [
        [
            sum(pid == p and camid != c and p != -1 for p, c in zip(lists[1]["pids"], lists[1]["camids"], strict=True)),
            sum(p != -1 and (pid, camid) != (p, c) for p, c in zip(lists[1]["pids"], lists[1]["camids"], strict=True)),
        ]
        for pid, camid in zip(lists[0]["pids"], lists[0]["camids"], strict=True)
    ]
    return oracle.scores(oracle.positive_ranks(*lists, "cosine")), chance(*torch.tensor(counts).T)


def test_each_direction_equals_the_plain_loop_however_the_sides_are_spread(ranks: Pool) -> None:
    assert (GALLERY.pids == -1).any()
    results = [result for world in (1, 2, 3) for result in ranks.run(world, both, 2)]
    assert results == [results[0]] * 6
    for found, (wanted, floor) in zip(results[0], (expected(QUERY, GALLERY), expected(GALLERY, QUERY)), strict=True):
        assert [found["mAP"], found["mINP"]] == pytest.approx([wanted["mAP"], wanted["mINP"]], abs=1e-12)
        assert found["cmc"] == pytest.approx(wanted["cmc"])
        assert found["baselines"]["chance"] == {"mAP": floor["mAP"], "rank1": floor["rank1"]}
        assert found["baselines"]["floor"].keys() == {"mAP", "mINP", "rank1"}
    forward, reverse = results[0]
    assert (forward["queries"], forward["gallery"], reverse["queries"], reverse["gallery"]) == (7, 26, 26, 7)
    assert reverse["invalid_queries"] >= int((GALLERY.pids == -1).sum())


def without_cameras(protocol: Protocol) -> Direction:
    query, gallery = (own_part(replace(side, camids=torch.zeros_like(side.camids)), 1) for side in (QUERY, GALLERY))
    return direction(query, gallery, "cosine", protocol)


def test_drawn_galleries_need_no_cameras_and_give_no_query_a_score_of_its_own() -> None:
    found = without_cameras("vehicleid")
    metrics, galleries = found.metrics(), len(set(GALLERY.pids.tolist()) | set(QUERY.pids.tolist())) - 1
    assert metrics["gallery"] == galleries
    assert metrics["baselines"]["chance"]["rank1"] == pytest.approx(1 / galleries)
    assert metrics["baselines"]["chance"]["mAP"] == pytest.approx(sum(1 / rank for rank in range(1, galleries + 1)) / galleries)
    assert metrics["spread"]["mAP"] > 0
    assert not {"intervals", "breakdown"} & metrics.keys()
    assert found.precisions == {}


def test_the_mean_lies_half_way(ranks: Pool) -> None:
    forward, reverse = ranks.run(1, both, 1)[0]
    half_way = mean(forward, reverse)
    assert half_way.keys() == {"mAP", "mINP", "rank1", "rank5", "rank10", "baselines"}
    assert half_way["mAP"] == (forward["mAP"] + reverse["mAP"]) / 2 != forward["mAP"]
    for name, scores in half_way["baselines"].items():
        for key, value in scores.items():
            assert value == (forward["baselines"][name][key] + reverse["baselines"][name][key]) / 2
