"""What each query scored: kept whole, and its means by camera, view and type."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vmreid.evaluation.features import Features
from vmreid.evaluation.protocol import QueryRanks, summarise
from vmreid.evaluation.query_scores import QueryScores

RANKS = QueryRanks([[1, 3], [2], [], [1], [4, 5, 6]], 9)
QUERY = Features(torch.zeros(5, 1), torch.tensor([7, 7, 8, 9, 9]), torch.tensor([3, 1, 1, 3, 1]))


def scores(**kinds: list[int]) -> QueryScores:
    return QueryScores.of(QUERY, RANKS, {name: np.array(values) for name, values in kinds.items()})


def test_a_file_holds_what_each_query_scored() -> None:
    content = scores(type=[4, 4, 4, 2, -1]).as_npz()
    assert content == scores(type=[4, 4, 4, 2, -1]).as_npz()
    read = QueryScores.from_npz(content)
    assert read.ap[[0, 1, 3, 4]].tolist() == pytest.approx([5 / 6, 1 / 2, 1, (1 / 4 + 2 / 5 + 3 / 6) / 3])
    assert math.isnan(read.ap[2])
    assert math.isnan(read.inp[2])
    assert read.inp[[0, 4]].tolist() == [2 / 3, 3 / 6]
    found = [values.tolist() for values in (read.pid, read.camid, read.first_rank, read.positives, read.view, read.type)]
    assert found == [[7, 7, 8, 9, 9], [3, 1, 1, 3, 1], [1, 2, 0, 1, 4], [2, 1, 0, 1, 3], [-1] * 5, [4, 4, 4, 2, -1]]


def test_means_of_each_camera_and_type_are_of_its_valid_queries() -> None:
    """Camera 1 has an invalid query; the set states no view, and a type for all queries but one."""
    found = scores(view=[-1] * 5, type=[4, 4, 4, 2, -1]).breakdown()
    assert found.keys() == {"camera", "type"}
    assert found["camera"].keys() == {"1", "3"}
    assert found["camera"]["3"] == {
        "queries": 2,
        "identities": 2,
        "mAP": pytest.approx(11 / 12),
        "mINP": pytest.approx(5 / 6),
        "rank1": 1,
    }
    assert (found["camera"]["1"]["queries"], found["camera"]["1"]["rank1"]) == (2, 0)
    assert {value: part["queries"] for value, part in found["type"].items()} == {"4": 2, "2": 1, "-1": 1}
    whole = summarise(RANKS)
    for part in found.values():
        for score in ("mAP", "mINP", "rank1"):
            assert sum(each[score] * each["queries"] for each in part.values()) / 4 == pytest.approx(whole[score])


def test_the_intervals_lie_around_the_means() -> None:
    whole, found = summarise(RANKS), scores().intervals()
    assert found["identities"] == 2  # identity 8 has no valid query
    for score in ("mAP", "mINP", "rank1"):
        assert found[score][0] <= whole[score] <= found[score][1]
    assert found["mAP"][0] < found["mAP"][1]
