"""The metric benchmark: its contestants find the same mAP, its numbers hang together, and its refusals are one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call

from launcher import benchmark
from vmreid.benchmarks.metric_rows import fitted
from vmreid.benchmarks.synthetic_features import CAMERAS, PICTURES, synthetic_features

WORDS = ["--queries", "60", "--gallery", "2000", "500", "--dims", "16", "700", "--against", "argsort"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[dict[str, Any], str]:
    out, printed = tmp_path_factory.mktemp("benchmark") / "metric.json", io.StringIO()
    with contextlib.redirect_stdout(printed):
        benchmark.main(["metric", *WORDS, "--out", str(out)])
    return json.loads(out.read_text()), printed.getvalue()


def test_each_contestant_is_measured_in_each_case(small: tuple[dict[str, Any], str]) -> None:
    report, printed = small
    cases = [(60, gallery, dim) for dim in (16, 700) for gallery in (500, 2000)]
    found = [((row["queries"], row["gallery"], row["dim"]), row["what"]) for row in report["rows"]]
    assert found == list(itertools.product(cases, ("product", "vmreid", "argsort")))
    lines = [line.split()[:5] for line in printed.splitlines()]
    for (case, what), row in zip(found, report["rows"], strict=True):
        assert [*map(str, case), what, f"{row['median_s']:.2f}"] in lines
        assert row["median_s"] == statistics.median(row["seconds"])
        assert row["feature_bytes"] == 4 * row["dim"] * (60 + row["gallery"])
        assert row["peak_bytes"] > row["feature_bytes"]


def test_peers_find_the_same_map(small: tuple[dict[str, Any], str]) -> None:
    rows = small[0]["rows"]
    own, peer = ([row["mean_ap"] for row in rows if row["what"] == what] for what in ("vmreid", "argsort"))
    assert own == pytest.approx(peer, abs=1e-3)
    assert all(0.2 < value < 0.99 for value in own)
    assert all(row["mean_ap"] is None for row in rows if row["what"] == "product")


def test_what_follows_from_the_rows(small: tuple[dict[str, Any], str]) -> None:
    report, _ = small
    rows = {(row["gallery"], row["dim"], row["what"]): row for row in report["rows"]}
    seconds = {key: row["seconds"] for key, row in rows.items()}
    for each, other, clock in itertools.product(report["ratios"], ("product", "vmreid"), ("", "cpu_")):
        mine, beside = (rows[each["gallery"], each["dim"], what][f"{clock}seconds"] for what in (each["what"], other))
        expected = None if each["what"] == other else statistics.median(a / b for a, b in zip(mine, beside, strict=True))
        assert each[f"{clock}over_{other}"] == expected
    for each in report["growth"]:
        small_s, large_s = (statistics.median(seconds[gallery, each["dim"], "vmreid"]) for gallery in (500, 2000))
        assert each["time_exponent"] == pytest.approx(math.log(large_s / small_s) / math.log(4))
        beyond = large_s * (10**8 / 2000) ** each["time_exponent"]
        assert each["fitted_not_measured"]["seconds"] == pytest.approx(beyond)
    assert [each["dim"] for each in report["growth"]] == [16, 700]


def test_a_power_law_goes_through_its_points() -> None:
    assert fitted({10: 5.0, 100: 50.0, 1000: 500.0}, 10**6) == pytest.approx(5e5)


def test_features_have_identities_cameras_and_unit_length() -> None:
    query, gallery = synthetic_features(200, 2700, 32)
    assert torch.equal(gallery.features, synthetic_features(200, 2700, 32)[1].features)
    assert torch.allclose(gallery.features.norm(dim=1), torch.ones(2700))
    assert len(gallery.pids.unique()) == 2700 // PICTURES
    assert len(gallery.camids.unique()) == CAMERAS
    likeness_QG = query.features @ gallery.features.T
    same_QG = query.pids[:, None] == gallery.pids
    assert likeness_QG[same_QG].mean() > likeness_QG[~same_QG].mean() + 0.2
    assert likeness_QG[same_QG].min() < likeness_QG[~same_QG].max()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--against", "faiss"], "--against faiss: must be argsort or fast_reid=PATH"),
        (["--against", "fast_reid=nowhere"], "no compiled rank_cy in fastreid/evaluation/rank_cylib there"),
        (["--gallery", "0"], "'0': must be a whole number of at least 1"),
        (["--memory_gib", "-1"], "'-1': must be a number above 0"),
    ],
)
def test_refuses_in_one_line(tmp_path: Path, call: Call, words: list[str], line: str) -> None:
    status, said, complaint = call(benchmark.main, "metric", *words, "--out", tmp_path / "metric.json")
    assert (status, said) == (2, "")
    assert line in complaint
    assert not (tmp_path / "metric.json").exists()
