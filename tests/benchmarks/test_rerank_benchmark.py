"""The re-ranking benchmark: its file, and one line for what is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from launcher import benchmark
from vmreid.benchmarks.rerank import METRIC, synthetic_features
from vmreid.evaluation.protocol import summarise
from vmreid.evaluation.ranking import rank_queries
from vmreid.evaluation.rerank import rerank
from vmreid.recipes.schema import Rerank

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("words", "settings"), [((), Rerank()), (("--rerank", "8,1,0.5"), Rerank(k1=8, k2=1, lambda_value=0.5))])
def test_the_file_holds_times_and_scores(call, tmp_path, words, settings) -> None:
    out = tmp_path / "it.json"
    status, printed, _ = call(benchmark.main, "rerank", "--share", "0.005", "--out", out, *words)
    assert status == 0
    report = json.loads(out.read_text())
    setting = report["setting"]
    assert (setting["queries"], setting["gallery"], setting["rerank"]) == (58, 411, settings.protocol())
    query, gallery = synthetic_features(0.005)
    sides = (query, gallery, torch.arange(len(gallery)), METRIC)
    for name, reranking in (("plain", None), ("reranked", rerank(*sides, settings))):
        scores = summarise(rank_queries(*sides, reranking=reranking))
        assert report[name] == {key: scores[key] for key in ("mAP", "rank1", "mINP")}
        assert f"{scores['mAP']:.4f}" in printed
    assert report["plain"]["mAP"] < report["reranked"]["mAP"] < 0.99
    assert min(report[key] for key in ("plain_s", "rerank_s", "ranking_s", "peak_bytes")) > 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--share", "0"), "--share: '0': must be a number above 0"),
        (("--share", "0.0001"), "needs more than 20 queries and gallery items, here are 10"),
        (("--rerank", "0,0,0"), "'0,0,0': must be K1,K2,LAMBDA"),
    ],
)
def test_wrong_values_are_one_line(call, tmp_path, words, line) -> None:
    status, printed, said = call(benchmark.main, "rerank", "--out", tmp_path / "it.json", *words)
    assert (status, printed) == (2, "")
    assert line in said
