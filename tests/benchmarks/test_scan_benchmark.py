"""The scan benchmark: its floors are the sizes of the tensors, its numbers hang together, and its scans compute the same."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher import benchmark
from vmreid.benchmarks import scan
from vmreid.benchmarks.floors import Limits, Shape
from vmreid.timing import fitted_exponent
from vmreid.versions import commit

SHAPE = {"batch": 2, "channels": 4, "height": 3, "width": 2, "states": 2}
WORDS = ["--shapes", "2,4,3,2,2", "--tokens", "9", "33", "--d_state", "3", "--against", "reference"]
PASSES = ("forward", "training")

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(out: Path, *words: str) -> tuple[dict[str, Any], str]:
    """Run the command: its file and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        benchmark.main(["scan", *words, "--out", str(out)])
    return json.loads(out.read_text()), printed.getvalue()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[dict[str, Any], str]:
    if torch.cuda.is_available():
        pytest.skip("of a CPU's own scan and floors")
    return measured(tmp_path_factory.mktemp("benchmark") / "scan.json", *WORDS)


def test_each_scan_is_measured_at_each_shape_and_number_of_tokens(small):
    report, printed = small
    cases = [(SHAPE, None)]
    for tokens, height, width in ((9, 4, 2), (33, 8, 4)):
        cases.append(({"batch": 1, "channels": 384, "height": height, "width": width, "states": 3}, tokens))
    rows = report["rows"]
    assert [(row["shape"], row["tokens"]) for row in rows] == [case for case in cases for _ in range(2)]
    assert [row["scan"] for row in rows] == ["torch", "reference"] * 3
    lines = [line.split()[:3] for line in printed.splitlines()]
    for row in rows:
        name = ",".join(map(str, row["shape"].values()))
        assert [name, row["scan"], f"{row['forward']['median_ms']:.3f}"] in lines


def test_the_floor_is_what_must_move_and_must_be_taken(small):
    report, _ = small
    per_s = report["setting"]["limits"]["bytes_per_s"]
    assert report["setting"]["limits"]["exponentials_per_s"] is None
    tokens, inputs, output = 2 * 3 * 2, 4 + 4 * 4 + 2 * 4 * 2, 4  # x, four of delta, four of B and of C; y
    sizes = (4 * tokens * (inputs + output), 4 * tokens * (inputs + output + 2 * inputs + output))
    exponentials = tokens * 4 * 4 * (2 + 2)
    for row in report["rows"][:2]:
        for one, size, taken in zip((row[name] for name in PASSES), sizes, (exponentials, 3 * exponentials), strict=True):
            floor = one["floor"]
            assert (floor["bytes"], floor["exponentials"], floor["bound_by"]) == (size, taken, "bytes")
            assert floor["ms"] == pytest.approx(1e3 * size / per_s)
            assert one["share"] == pytest.approx(floor["ms"] / one["median_ms"])


def test_the_slower_of_both_is_the_floor():
    shape = Shape(batch=64, channels=192, height=64, width=32, states=16)
    forward, training = Limits(bytes_per_s=4.2e12, exponentials_per_s=4.2e12).floors(shape, element=2)
    assert (forward.bound_by, training.bound_by) == ("exponentials", "exponentials")
    assert forward.ms == pytest.approx(1e3 * 64 * 64 * 32 * 192 * 4 * 18 / 4.2e12)
    assert training.ms == pytest.approx(3 * forward.ms)


def test_the_figures_hang_together(small):
    for row in small[0]["rows"]:
        assert row["outcome"] == "measured"
        assert row["peak_bytes"] is None
        for one in (row[name] for name in PASSES):
            assert one["rounds"] >= 5
            assert 0 < one["min_ms"] <= one["median_ms"] <= one["max_ms"]


def test_the_scans_compute_the_same(small):
    for own, peer in zip(small[0]["rows"][::2], small[0]["rows"][1::2], strict=True):
        assert own["difference"] is None
        assert peer["difference"] < 1e-5


def test_ratios_and_growth_follow_from_the_rows(small):
    report = small[0]
    own, peers = report["rows"][::2], report["rows"][1::2]
    assert [(one["shape"], one["tokens"]) for one in report["ratios"]] == [(row["shape"], row["tokens"]) for row in own]
    for one, ours, theirs in zip(report["ratios"], own, peers, strict=True):
        assert one["peer"] == "reference"
        assert [one[name] for name in PASSES] == [ours[name]["median_ms"] / theirs[name]["median_ms"] for name in PASSES]
    assert [one["scan"] for one in report["growth"]] == ["torch", "reference"]
    for one, rows in zip(report["growth"], (own[1:], peers[1:]), strict=True):
        for name in PASSES:
            medians = {row["tokens"]: row[name]["median_ms"] for row in rows}
            assert one[f"{name}_exponent"] == pytest.approx(fitted_exponent(medians))
        assert one["memory_exponent"] is None


def test_the_setting_says_what_the_figures_hold_for(small):
    setting = small[0]["setting"]
    assert " ".join(WORDS) in setting["command"]
    assert (setting["device"], setting["dtype"], setting["backend"]) == ("CPU, 1 threads", "float32", "torch")
    assert setting["reason"].startswith("torch")
    assert setting["peers"] == {"reference": "reference: asked for by name"}
    assert setting["versions"]["commit"] == commit()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peer's rounding would differ")
def test_a_scan_that_does_what_another_does_not_is_seen_and_out_of_memory_is_said(monkeypatch, tmp_path):
    """The peer lets half of y go. At 9 tokens it has memory at first only; at 19 this project's has none."""
    ss2d, calls_at_9 = scan.ss2d, itertools.count()

    def other(*inputs: torch.Tensor, backend: str) -> torch.Tensor:
        y_BHWD = ss2d(*inputs, backend=backend)
        height = inputs[0].shape[1]
        if (backend, height) == ("torch", 6) or ((backend, height) == ("reference", 4) and next(calls_at_9) == 20):
            raise torch.OutOfMemoryError
        return y_BHWD / 2 if backend == "reference" else y_BHWD

    monkeypatch.setattr(scan, "ss2d", other)
    words = ["--shapes", "1,4,1,1,1", "--tokens", "3", "9", "19", "--d_state", "1", "--against", "reference"]
    report, printed = measured(tmp_path / "it.json", *words)
    rows = report["rows"]
    assert [row["outcome"] for row in rows] == ["measured"] * 5 + ["out of memory"] * 2 + ["measured"]
    assert [row["difference"] for row in rows[1:4:2]] == pytest.approx([0.5, 0.5])
    assert rows[7]["difference"] is None
    for row in rows[5:7]:
        assert [row[key] for key in ("forward", "training", "peak_bytes", "difference")] == [None] * 4
    assert len(report["ratios"]) == 2
    assert [one["training_exponent"] for one in report["growth"]] == [
        pytest.approx(fitted_exponent({row["tokens"]: row["training"]["median_ms"] for row in measured_rows}))
        for measured_rows in (rows[2:6:2], rows[3::4])
    ]
    for name in (["1,384,4,2,1", "reference"], ["1,384,6,3,1", "torch"]):
        assert [*name, "out", "of", "memory"] in [line.split() for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("words", "value", "way_out"),
    [
        (["--shapes", "2,4,3,2"], "'2,4,3,2'", "five positive whole numbers"),
        (["--shapes", "2,4,3,0,2"], "'2,4,3,0,2'", "five positive whole numbers"),
        (["--tokens", "129", "130"], "--tokens 130", "the nearest is 129"),
        (["--graphs"], "--graphs", "need a GPU"),
        (["--d_state", "0"], "--d_state 0", "at least 1"),
        (["--against", "mamba_ssn"], "'mamba_ssn'", "did you mean 'mamba_ssm'?"),
        (["--against", "auto"], "--against auto", "name another"),
        (
            ["--against", "reference", "--against", "vmamba=nowhere"],
            "vmamba=nowhere",
            "a checkout of github.com/MzeroMiko/VMamba",
        ),
        (["--out", "missing/it.json"], "missing", "make it first"),
    ],
)
def test_wrong_words_are_one_line(call, monkeypatch, tmp_path, words, value, way_out):
    monkeypatch.chdir(tmp_path)
    status, printed, line = call(benchmark.main, "scan", "--out", "it.json", *words)
    assert (status, printed) == (2, "")
    assert line.startswith("error: ")
    assert value in line
    assert way_out in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would run")
def test_vmambas_own_code_is_refused_without_cuda(call, tmp_path):
    models = tmp_path / "VMamba/classification/models"
    models.mkdir(parents=True)
    for name in ("csm_triton", "csms6s", "vmamba"):
        (models / f"{name}.py").write_text("raise AssertionError('imported')")
    peer = f"vmamba={tmp_path / 'VMamba'}"
    status, _, line = call(benchmark.main, "scan", "--out", tmp_path / "it.json", "--against", peer)
    assert (status, line) == (
        2,
        f"error: --against {peer}: VMamba's cross scan runs on CUDA only, and the device is cpu; leave it out",
    )


@pytest.mark.gpu
def test_on_a_gpu_memory_and_floors_are_those_of_bf16(tmp_path):
    words = ["--shapes", "8,96,16,8,1", "--tokens", "33", "129", "--d_state", "1", "--against", "torch"]
    report, _ = measured(tmp_path / "it.json", *words)
    assert report["setting"]["dtype"] == "bfloat16"
    assert report["setting"]["limits"]["bytes_per_s"] > 1e11
    own, peer = report["rows"][:2]
    tensors = 2 * 8 * 128 * (2 * (5 * 96 + 8) + 96)  # inputs, their gradients, dy
    for row in (own, peer):
        assert row["peak_bytes"] > tensors
        for name in PASSES:
            assert 0 < row[name]["share"] < 1
    assert own["peak_bytes"] < peer["peak_bytes"]
    assert peer["difference"] < 2e-2
    assert all(one["memory_exponent"] > 0 for one in report["growth"])
