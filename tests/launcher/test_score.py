"""``launcher.score``: its file, its refusals, and the same result on several ranks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pool import Pool
from torch.distributed import distributed_c10d

from launcher import score
from vmreid.command import run
from vmreid.distributed import free_port, rank, sum_over_ranks
from vmreid.errors import UserError
from vmreid.versions import commit

ROOT = Path(__file__).parents[2]
METRICS = {"euclidean": "sqeuclidean", "cosine": "cosine"}
CASES = (
    "01_normal",
    "02_heavy_ties",
    "03_duplicates",
    "04_junk",
    "05_all_same_camera",
    "06_one_query",
    "07_small_gallery",
    "08_nan_feature",
    "09_many_cameras",
    "10_absent_ids",
    "11_big",
    "12_large_offset",
)


def small_case(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """A few queries and gallery items of six identities and three cameras."""
    random = np.random.default_rng(seed)
    case: dict[str, np.ndarray[Any, Any]] = {}
    for side, number in (("query", 7), ("gallery", 40)):
        case[f"{side}_features"] = random.standard_normal((number, 5)).astype(np.float16)
        case[f"{side}_pids"] = random.integers(-1, 6, number)
        case[f"{side}_camids"] = random.integers(0, 3, number)
    return case


def write(folder: Path, case: dict[str, Any]) -> Path:
    path = folder / "features.npz"
    np.savez(path, **case)
    return path


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    """Run the command in this process: status, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["score.py", *map(str, words)])
    with pytest.raises(SystemExit) as ending:
        run(score.main)
    output = capsys.readouterr()
    code = ending.value.code
    assert isinstance(code, int)
    return code, output.out, output.err


def fail_on_rank_1() -> None:
    """On a rank of the pool: the others wait for what never comes."""
    if rank() == 1:
        raise ValueError("only rank 1")
    sum_over_ranks(torch.zeros(1))


def test_the_pool_raises_the_first_cause(ranks: Pool) -> None:
    with pytest.raises(ValueError, match="only rank 1"):
        ranks.run(3, fail_on_rank_1)
    assert ranks.run(2, rank) == [0, 1]


def leave_a_group_that_failed_to_form() -> None:
    """On a rank of the pool: what is left where another rank has ended while this one was still joining."""
    distributed_c10d.destroy_process_group()
    distributed_c10d._world.group_count += 1


def test_the_pool_goes_on_after_a_group_that_failed_to_form(ranks: Pool) -> None:
    ranks.run(1, leave_a_group_that_failed_to_form)
    assert ranks.run(2, rank) == [0, 1]


def score_on_ranks(words: Sequence[str]) -> str:
    """On a rank of the pool."""
    try:
        score.main(words)
    except UserError as error:
        return str(error)
    return ""


def test_writes_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    features, out = write(tmp_path, small_case()), tmp_path / "scores.json"
    status, said, complaint = call(monkeypatch, capsys, "--local_rank=0", features, "--metric", "cosine", "--out", out)
    assert (status, complaint) == (0, "")
    assert said.count("\n") == 1
    scores = json.loads(out.read_text())
    assert set(scores) == {
        *("metric", "mAP", "mINP", "rank1", "rank5", "rank10", "cmc"),
        *("queries", "invalid_queries", "gallery", "per_query", "protocol", "intervals"),
    }
    assert (scores["metric"], scores["queries"], scores["gallery"], len(scores["cmc"])) == ("cosine", 7, 40, 50)
    assert scores["intervals"]["mAP"][0] < scores["mAP"] < scores["intervals"]["mAP"][1]
    assert set(scores["per_query"]) == {"ap", "inp", "first_rank", "ranks"}
    assert scores["invalid_queries"] > 0
    assert all(values.count(None) == scores["invalid_queries"] for values in scores["per_query"].values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npz", "scores.json"]


def test_reranked_scores_stand_beside_the_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features, texts = write(tmp_path, small_case()), []
    for words in ([], ["--rerank"], ["--rerank", "10,3,0"]):
        out = tmp_path / f"{len(texts)}.json"
        status, said, _ = call(monkeypatch, capsys, features, "--metric", "cosine", "--out", out, *words)
        assert (status, said.count("\n")) == (0, 1 + bool(words))
        texts.append(json.loads(out.read_text()))
    plain, published, own = texts
    for scores, protocol in ((published, {"k1": 20, "k2": 6, "lambda": 0.3}), (own, {"k1": 10, "k2": 3, "lambda": 0.0})):
        reranked = scores.pop("reranked")
        assert scores == plain
        assert reranked.pop("protocol") == protocol
        assert reranked.keys() == plain.keys() - {"metric", "protocol", "intervals"}
        assert reranked["mAP"] != plain["mAP"]
    assert "(re-ranked: k1 10, k2 3, lambda 0.0)" in said


def test_the_ledger_says_what_was_scored(ranks: Pool, tmp_path: Path) -> None:
    """Other features of the same pictures have the same ids and another file; on 3 ranks as on one."""
    case, ledgers = small_case(), []
    for world, change in ((1, 0), (3, 0), (1, 1)):
        features, out = write(tmp_path, {**case, "gallery_features": case["gallery_features"] + change}), tmp_path / "out.json"
        words = [str(features), "--metric", "euclidean", "--out", str(out)]
        ranks.run(world, score_on_ranks, words)
        ledgers.append(json.loads(out.read_text())["protocol"])
        assert ledgers[-1]["features_sha256"] == hashlib.sha256(features.read_bytes()).hexdigest()
    first, again, other = ledgers
    assert first == again
    assert {key for key in first if first[key] != other[key]} == {"features_sha256"}
    kept = case["gallery_pids"] != -1
    scores = json.loads(out.read_text())
    for side, rows, further in (("query", slice(None), "invalid"), ("gallery", kept, "junk")):
        pids, camids = (case[f"{side}_{name}"][rows].tolist() for name in ("pids", "camids"))
        counts = {"pictures": len(pids), "identities": len(set(pids)), "cameras": len(set(camids))}
        assert first[side] == counts | {further: first[side][further]}
    assert (first["query"]["invalid"], first["gallery"]["junk"]) == (scores["invalid_queries"], 40 - kept.sum())
    assert first["gallery"]["junk"] > 0
    assert (first["metric"], first["normalisation"]) == ("euclidean", "none")
    assert first["distance"].startswith("squared Euclidean")
    assert (first["commit"], first["versions"]["torch"]) == (commit(), torch.__version__)


@pytest.mark.parametrize("metric", METRICS)
def test_ranks_write_the_same_file(ranks: Pool, tmp_path: Path, metric: str) -> None:
    features = write(tmp_path, small_case(1))
    texts = set()
    for world in (1, 2, 3, 4):
        out = tmp_path / f"{world}.json"
        words = [str(features), "--metric", metric, "--out", str(out), "--rerank"]
        assert ranks.run(world, score_on_ranks, words) == [""] * world
        texts.add(out.read_text())
    assert len(texts) == 1


def check_case(scores: dict[str, Any], expected: dict[str, Any]) -> None:
    assert scores["queries"] == expected["num_queries"]
    assert scores["queries"] - scores["invalid_queries"] == expected["num_valid_queries"]
    for key in ("mAP", "mINP", "cmc"):
        assert scores[key] == pytest.approx(expected[key], abs=1e-9)
    if "per_query" in expected:
        assert scores["per_query"]["first_rank"] == expected["per_query"]["first_rank"]
        for key in ("ap", "inp"):
            found, wanted = scores["per_query"][key], expected["per_query"][key]
            assert [value is None for value in found] == [value is None for value in wanted]
            assert [value or 0 for value in found] == pytest.approx([value or 0 for value in wanted], abs=1e-12)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", CASES)
def test_protocol_cases(test_data: Path, ranks: Pool, tmp_path: Path, case: str, metric: str, world: int) -> None:
    folder, out = test_data / "metric-cases", tmp_path / "scores.json"
    expected = json.loads((folder / f"{case}.expected.json").read_text())[METRICS[metric]]
    words = [str(folder / f"{case}.npz"), "--metric", metric, "--out", str(out)]
    lines = ranks.run(world, score_on_ranks, words)
    if "error" in expected:
        assert len(set(lines)) == 1
        assert expected["error"] in lines[0]
        assert not out.exists()
    else:
        assert lines == [""] * world
        check_case(json.loads(out.read_text()), expected)


def without(case: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key != name}


def with_nan(case: dict[str, Any]) -> dict[str, Any]:
    case["gallery_features"][7, 2] = np.nan
    return case


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a missing key": (lambda case: without(case, "query_camids"), "lacks query_camids"),
    "one camera": (
        lambda case: {**case, "query_camids": np.full(7, 9), "gallery_camids": np.full(40, 9)},
        "camids of both",
    ),
    "one id for all": (lambda case: {**case, "gallery_camids": 9}, "must be (40,)"),
    "no positive": (lambda case: {**case, "query_pids": np.full(7, 99)}, "no valid query among 7"),
    "no query": (lambda case: {k: v[:0] if k.startswith("query") else v for k, v in case.items()}, "give some queries"),
    "no gallery": (lambda case: {k: v[:0] if k.startswith("gall") else v for k, v in case.items()}, "the gallery is empty"),
    "junk alone": (lambda case: {**case, "gallery_pids": np.full(40, -1)}, "no valid query among 7: a query needs"),
    "inf": (lambda case: {**case, "query_features": np.full((7, 5), np.inf, np.float16)}, "query row 0"),
    "too large": (lambda case: {**case, "query_features": np.full((7, 5), 1e200)}, "query row 0 has 1e+200, whose square"),
    "no columns": (lambda case: {**case, "query_features": np.ones((7, 0), np.float32)}, "F >= 1"),
    "a stack": (lambda case: {**case, "query_features": np.ones((7, 5, 1), np.float32)}, "must be [n, F]"),
    "complex features": (lambda case: {**case, "query_features": np.ones((7, 5), complex)}, "must be float16"),
    "more ids than rows": (lambda case: {**case, "query_camids": np.zeros(8, int)}, "must be (7,)"),
    "ids in columns": (lambda case: {**case, "query_pids": np.zeros((7, 1), int)}, "must be (7,)"),
    "true or false ids": (lambda case: {**case, "query_pids": np.ones(7, bool)}, "integer"),
    "not finite": (with_nan, "gallery row 7"),
    "flat features": (lambda case: {**case, "query_features": np.ones(7, np.float32)}, "must be [n, F]"),
    "integer features": (lambda case: {**case, "query_features": np.ones((7, 5), int)}, "must be float16"),
    "other width": (lambda case: {**case, "query_features": np.ones((7, 4), np.float32)}, "4 columns"),
    "short ids": (lambda case: {**case, "gallery_pids": case["gallery_pids"][1:]}, "must be (40,)"),
    "float ids": (lambda case: {**case, "gallery_pids": case["gallery_pids"] * 1.0}, "integer"),
    "wide ids": (lambda case: {**case, "gallery_pids": case["gallery_pids"].astype(np.uint64)}, "fits into int64"),
    "objects": (lambda case: {**case, "gallery_pids": np.array([{}] * 40)}, "cannot be read as an npz file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses_wrong_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, words = WRONG[name]
    features, out = write(tmp_path, change(small_case())), tmp_path / "scores.json"
    status, said, complaint = call(monkeypatch, capsys, features, "--metric", "euclidean", "--out", out)
    assert (status, said, out.exists()) == (2, "", False)
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert words in complaint


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_refuses_a_zero_vector_under_cosine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], side: str
) -> None:
    case, out = small_case(), tmp_path / "scores.json"
    case[f"{side}_features"][3] = 0
    features = write(tmp_path, case)
    status, said, complaint = call(monkeypatch, capsys, features, "--metric", "cosine", "--out", out)
    assert (status, said, complaint.count("\n"), out.exists()) == (2, "", 1, False)
    assert f"all-zero {side} row 3 has no cosine" in complaint
    assert call(monkeypatch, capsys, features, "--metric", "euclidean", "--out", out)[0] == 0


def test_protocols_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    features, found = write(tmp_path, small_case()), {}
    for words in (["market1501"], ["veri776", "--memory_gib", "0.01"], ["vehicleid"], ["open_set"]):
        out = tmp_path / f"{words[0]}.json"
        assert call(monkeypatch, capsys, features, "--metric", "cosine", "--out", out, "--protocol", *words)[0] == 0
        found[words[0]] = json.loads(out.read_text())
    assert {name: each["protocol"]["rule"] for name, each in found.items()} == {name: name for name in found}
    assert {**found["veri776"], "protocol": 0} == {**found["market1501"], "protocol": 0}
    assert found["vehicleid"]["gallery"] == 6
    assert found["vehicleid"]["spread"]["mAP"] > 0
    assert found["vehicleid"]["protocol"]["excluded"] == "junk (pid -1)"
    assert "per_query" not in found["vehicleid"]
    assert set(found["open_set"]["open_set"]["tpr_at_fpr"]) == {"0.0001", "0.001", "0.01"}


@pytest.mark.parametrize("content", [b"", b"not a zip", None], ids=["empty", "text", "cut"])
def test_refuses_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    features, out = write(tmp_path, small_case()), tmp_path / "scores.json"
    features.write_bytes(features.read_bytes()[:700] if content is None else content)
    status, _, complaint = call(monkeypatch, capsys, features, "--metric", "euclidean", "--out", out)
    assert (status, complaint.count("\n"), out.exists()) == (2, 1, False)
    assert "cannot be read as an npz file" in complaint


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--metric", "hamming", "--out", "x.json"], "invalid choice: 'hamming'"),
        (["--metrc", "cosine", "--out", "x.json"], "unknown option --metrc, did you mean --metric?"),
        (["--metric", "cosine", "--out", "missing/x.json"], "no folder missing; make it first"),
        (["--metric", "cosine", "--out", "."], "--out . is a folder"),
        (["--metric", "cosine", "--out", "features.npz"], "is the features file itself"),
        (["--metric", "cosine"], "required: --out"),
        (["--metric", "cosine", "--out", "x.json", "--protocol", "duke"], "invalid choice: 'duke'"),
        (["--metric", "cosine", "--out", "x.json", "--memory_gib", "0"], "'0': must be a number above 0"),
        (["--metric", "cosine", "--out", "x.json", "--rerank", "20,6"], "'20,6': must be K1,K2,LAMBDA with 1 <= K2 <= K1"),
        (["--metric", "cosine", "--out", "x.json", "--rerank", "20,21,0.3"], "'20,21,0.3': must be K1,K2,LAMBDA"),
        (["--metric", "cosine", "--out", "x.json", "--rerank", "20,6,nan"], "'20,6,nan': must be K1,K2,LAMBDA"),
        (
            ["--metric", "cosine", "--out", "x.json", "--rerank", "47,6,0.3"],
            "needs more than 47 queries and",
        ),
        (["--metric", "cosine", "--out", "x.json", "--protocol", "vehicleid", "--rerank"], "re-ranks no drawn galleries"),
    ],
)
def test_refuses_wrong_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    write(tmp_path, small_case())
    monkeypatch.chdir(tmp_path)
    status, said, complaint = call(monkeypatch, capsys, "features.npz", *words)
    assert (status, said, complaint.count("\n")) == (2, "", 1)
    assert line in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


def test_as_a_command(tmp_path: Path) -> None:
    """A plain process: scores, then an error in one line."""
    features, out = write(tmp_path, small_case()), tmp_path / "scores.json"
    command = [sys.executable, "-m", "launcher.score", str(features), "--metric", "cosine", "--out"]
    good = subprocess.run([*command, str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert out.exists()
    bad = subprocess.run([*command, str(features)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)


def test_ranks_tell_an_error_once(tmp_path: Path) -> None:
    """Two processes over a port that both refuse a gallery row."""
    features, out = write(tmp_path, with_nan(small_case())), tmp_path / "scores.json"
    rendezvous = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "launcher.score", str(features), "--metric", "cosine", "--out", str(out)],
            cwd=ROOT,
            env={**os.environ, **rendezvous, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    said, complaints = ("".join(texts) for texts in zip(*outputs, strict=True))
    lines = [line for line in complaints.splitlines() if "error: " in line]
    assert (said, len(lines), out.exists()) == ("", 1, False)
