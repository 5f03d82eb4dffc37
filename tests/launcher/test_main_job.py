"""Train, resume, evaluate and compare through their commands; what MLflow then holds."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SMALL, command_on_ranks, read_json_lines, runs_of, set_words, write_set

from launcher import evaluate
from vmreid.data.manifest import read_index, read_manifest
from vmreid.errors import UserError
from vmreid.evaluation.query_scores import QueryScores
from vmreid.precision import computes_bf16
from vmreid.versions import commit

BACKBONES = ("VIT-S", "MAMBA-V2")
TRAINED = {"data.png", "layers.png"}
EVALUATED = {"galleries.png", "cmc.png", "precision_recall.png", "distances.png", "curves.json"}
FLOORS = {"chance", "untrained", "histogram", "rgb_histogram"}


@pytest.fixture(scope="module")
def project(ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where two backbones were trained (two ranks), evaluated on three, and compared.

    VIT-S in two pieces, the second of which asks for both directions."""
    folder = tmp_path_factory.mktemp("project")
    write_set(folder / "data", identities=12)
    for backbone in BACKBONES:
        words = ["--recipe", "demo", "--backbone", backbone, "--data", "data", "--out", f"runs/{backbone}", "--epochs", "4"]
        words += set_words(*SMALL[backbone])
        ranks.run(2, command_on_ranks, "launcher.train", words, folder)
        if backbone == "VIT-S":  # thrown back to the checkpoint before the last, then resumed
            (folder / "runs/VIT-S/checkpoints/latest").write_text("step-000003\n")
            (folder / "runs/VIT-S/pictures/data.png").unlink()
            words += ["--resume", "auto", "--set", "evaluation.both_directions=true"]
            ranks.run(2, command_on_ranks, "launcher.train", words, folder)
        table = ranks.run(3, command_on_ranks, "launcher.evaluate", ["--run", f"runs/{backbone}"], folder)[0]
        (folder / f"table-{backbone}").write_text(table)
    runs = [f"runs/{backbone}" for backbone in BACKBONES]
    printed = ranks.run(1, command_on_ranks, "launcher.compare", [*runs, "--out", "runs/report"], folder)[0]
    (folder / "printed").write_text(printed)
    return folder


def test_a_run_holds_what_the_contract_says(project):
    folder = project / "runs/VIT-S"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    assert {"step", "epoch", "loss", "lr", "grad_norm", "images_per_s", "batch_digest"} <= log[0].keys()
    assert (folder / "checkpoints/latest").read_text() == "step-000004\n"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"mAP", "mINP", "rank1", "rank5", "rank10", "cmc", "queries", "invalid_queries", "gallery"} <= metrics.keys()
    assert len(metrics["cmc"]) == 50
    assert (metrics["queries"], metrics["gallery"]) == (6, 18)
    ledger = metrics["protocol"]
    assert ledger["query"] == {"pictures": 6, "identities": 6, "cameras": 2, "invalid": metrics["invalid_queries"]}
    assert (ledger["gallery"]["pictures"], ledger["gallery"]["junk"]) == (18, 0)
    assert (ledger["image_size"], ledger["flip"], ledger["world"]) == ([64, 32], False, 3)
    assert ledger["precision"] == "fp32"  # although the run was trained under bf16 autocast
    assert (ledger["metric"], ledger["normalisation"]) == ("cosine", "unit length")
    assert ledger["data_digest"] == json.loads((project / "data/manifest.json").read_text())["digest"]
    weights = folder / "checkpoints/step-000004/weights.safetensors"
    assert ledger["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert ledger["commit"] == commit()
    assert ledger["per_query"] == {
        "file": "queries.npz",
        "sha256": hashlib.sha256((folder / "queries.npz").read_bytes()).hexdigest(),
    }
    queries = QueryScores.from_npz((folder / "queries.npz").read_bytes())
    assert float(np.nanmean(queries.ap)) == pytest.approx(metrics["mAP"], abs=1e-12)
    assert metrics["intervals"]["mAP"][0] <= metrics["mAP"] <= metrics["intervals"]["mAP"][1]
    assert metrics["intervals"]["identities"] == 6
    assert sum(part["queries"] for part in metrics["breakdown"]["camera"].values()) == 6
    assert set(metrics["baselines"]) == FLOORS


def test_both_directions_are_scored_where_the_recipe_says_so(project):
    metrics = json.loads((project / "runs/VIT-S/metrics.json").read_text())
    reverse, mean = metrics["reverse"], metrics["mean"]
    assert reverse.keys() == metrics.keys() - {"protocol", "reverse", "mean"}
    assert (reverse["queries"], reverse["gallery"]) == (18, 6)
    assert mean.keys() == {"mAP", "mINP", "rank1", "rank5", "rank10", "baselines"}
    assert set(reverse["baselines"]) == set(mean["baselines"]) == FLOORS
    assert mean["mINP"] == (metrics["mINP"] + reverse["mINP"]) / 2
    assert not {"reverse", "mean"} & json.loads((project / "runs/MAMBA-V2/metrics.json").read_text()).keys()
    (run,) = [run for run in runs_of(project) if run.info.run_name == "VIT-S"]
    logged = run.data.metrics
    assert (logged["mAP"], logged["reverse/mAP"], logged["mean/rank5"]) == (metrics["mAP"], reverse["mAP"], mean["rank5"])
    assert not [name for name in logged if "chance" in name or "histogram" in name]  # a chart of its own for what stays the same


@pytest.mark.parametrize(
    ("backbone", "directions"), [("VIT-S", [", query → gallery", ", gallery → query", ", mean"]), ("MAMBA-V2", [""])]
)
def test_the_printed_table_has_each_direction_beside_its_floors(project, backbone, directions):
    metrics = json.loads((project / f"runs/{backbone}/metrics.json").read_text())
    scored = [metrics, *(metrics[name] for name in ("reverse", "mean") if name in metrics)]
    assert len(scored) == len(directions)
    headings, _, *lines, intervals, _ = (project / f"table-{backbone}").read_text().splitlines()
    assert re.split(r"\s{2,}", headings.strip()) == [f"{key}{name}" for name in directions for key in ("mAP", "Rank-1")]
    low, high = metrics["intervals"]["mAP"]
    assert intervals.startswith(f"95% intervals over 6 query identities: mAP: {low:.3f} to {high:.3f}, Rank-1: ")
    rows = {backbone: scored, **{floor: [scores["baselines"][floor] for scores in scored] for floor in FLOORS}}
    printed = {name: cells for name, *cells in (line.split() for line in lines)}
    assert printed == {name: [f"{scores[key]:.3f}" for scores in row for key in ("mAP", "rank1")] for name, row in rows.items()}


def test_pictures_are_files_of_the_run_and_artifacts_in_mlflow(project):
    """The resumed run, whose sheet of the data was taken away, has drawn none again."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{project / 'runs/mlflow.db'}")
    for backbone, drawn in (("VIT-S", EVALUATED | {"layers.png"}), ("MAMBA-V2", EVALUATED | TRAINED)):
        folder = project / "runs" / backbone
        run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
        logged = {artifact.path: artifact.file_size for artifact in client.list_artifacts(run_id, "pictures")}
        assert logged.keys() == {f"pictures/{name}" for name in EVALUATED | TRAINED}
        assert {path.name for path in (folder / "pictures").iterdir()} == drawn
        for name in drawn:
            assert logged[f"pictures/{name}"] == (folder / "pictures" / name).stat().st_size
            if name.endswith(".png"):
                Image.open(folder / "pictures" / name).verify()


def test_the_numbers_of_the_curves_are_kept(project):
    folder = project / "runs/VIT-S"
    curves, metrics = (json.loads((folder / name).read_text()) for name in ("pictures/curves.json", "metrics.json"))
    directions = {"query to gallery": metrics, "gallery to query": metrics["reverse"]}
    assert curves["cmc"].keys() == curves["precision"].keys() == directions.keys()
    for name, scores in directions.items():
        assert curves["cmc"][name]["model"] == scores["cmc"]
        assert set(curves["precision"][name]) == {"model", *FLOORS} - {"chance"}
        for precision in curves["precision"][name].values():
            assert len(precision) == len(curves["recall"]) == 101
            assert precision == sorted(precision, reverse=True)
    distances = curves["distances"]
    assert (distances["metric"], distances["queries"], distances["all_queries"]) == ("cosine", 6, 6)
    assert sum(distances["positive"] + distances["negative"]) == 6 * 18 - excluded(project)


def excluded(project: Path) -> int:
    """Pairs of one identity and one camera."""
    manifest = read_manifest(project / "data")
    query, gallery = (read_index(project / "data", manifest.splits[name]) for name in ("query", "gallery"))
    return sum(int(((gallery["pid"] == one["pid"]) & (gallery["camid"] == one["camid"])).sum()) for one in query)


def test_pictures_that_cannot_be_written_do_not_cost_the_metrics(project, ranks, tmp_path):
    shutil.copytree(project / "runs/MAMBA-V2", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/pictures")
    (tmp_path / "run/pictures").write_text("in the way")
    (tmp_path / "run/metrics.json").unlink()
    with pytest.raises(FileExistsError):
        ranks.run(1, command_on_ranks, "launcher.evaluate", ["--run", str(tmp_path / "run")], project)
    assert json.loads((tmp_path / "run/metrics.json").read_text())["queries"] == 6
    (run,) = [run for run in runs_of(project) if run.info.run_name == "MAMBA-V2"]
    assert run.info.status == "FINISHED"


def test_the_saved_recipe_repeats_the_run(project, ranks):
    ranks.run(1, command_on_ranks, "launcher.train", ["--recipe", "runs/VIT-S/recipe.yaml", "--out", "again/VIT-S"], project)
    losses = [[entry["loss"] for entry in read_json_lines(project / run / "VIT-S/log.jsonl")] for run in ("runs", "again")]
    rounding = 5e-3 if computes_bf16(torch.device("cpu")) else 1e-4  # the demo's precision where the CPU has it
    assert losses[1] == pytest.approx(losses[0], rel=rounding)
    digests = [
        [entry["batch_digest"] for entry in read_json_lines(project / run / "VIT-S/log.jsonl")] for run in ("runs", "again")
    ]
    assert digests[0] == digests[1]


def test_a_resume_needs_no_word_of_what_the_run_has_said(project, ranks):
    folder = project / "alone/VIT-S"
    shutil.copytree(project / "runs/VIT-S", folder)
    (folder / "mlflow.json").unlink()  # the other run keeps its own
    (folder / "checkpoints/latest").write_text("step-000003\n")
    ranks.run(2, command_on_ranks, "launcher.train", ["--out", "alone/VIT-S", "--resume", "auto"], project)
    first, again = (read_json_lines(project / run / "VIT-S/log.jsonl") for run in ("runs", "alone"))
    assert again == first
    assert (folder / "checkpoints/latest").read_text() == "step-000004\n"
    assert [path.name for path in folder.parent.iterdir()] == ["VIT-S"]  # no set was rendered beside it
    words = ["--out", "alone/VIT-S", "--resume", "auto", "--recipe", "demo", "--data", "data"]
    with pytest.raises(UserError, match=r"was trained with .*; resume with --out alone/VIT-S --resume auto alone"):
        ranks.run(2, command_on_ranks, "launcher.train", words, project)


def test_scores_do_not_depend_on_the_ranks_that_evaluate(project, ranks):
    before = json.loads((project / "runs/MAMBA-V2/metrics.json").read_text())
    ranks.run(1, command_on_ranks, "launcher.evaluate", ["--run", "runs/MAMBA-V2"], project)
    after = json.loads((project / "runs/MAMBA-V2/metrics.json").read_text())
    assert after["protocol"].pop("world") == 1
    assert before["protocol"].pop("world") in (1, 3)
    assert after == before


def test_reranked_scores_stand_beside_the_plain_ones(project, ranks):
    """Of both directions; the recipe asks for none, so the option does."""
    before = json.loads((project / "runs/VIT-S/metrics.json").read_text())
    words = ["--run", "runs/VIT-S", "--rerank", "5,2,0.3"]
    table = ranks.run(3, command_on_ranks, "launcher.evaluate", words, project)[0]
    metrics = json.loads((project / "runs/VIT-S/metrics.json").read_text())
    reranked = {name: scores.pop("reranked") for name, scores in (("", metrics), *((n, metrics[n]) for n in ("reverse", "mean")))}
    assert metrics == before
    assert reranked[""].keys() == metrics.keys() - {"intervals", "breakdown", "baselines", "reverse", "mean"}
    for name in ("", "reverse"):
        assert reranked[name]["protocol"] == {"k1": 5, "k2": 2, "lambda": 0.3}
        assert reranked[name]["mAP"] != (metrics[name] if name else metrics)["mAP"]
    assert reranked["mean"]["mAP"] == (reranked[""]["mAP"] + reranked["reverse"]["mAP"]) / 2
    (line,) = [line.split() for line in table.splitlines() if line.startswith("VIT-S, re-ranked")]
    assert line[2:] == [f"{reranked[name][key]:.3f}" for name in reranked for key in ("mAP", "rank1")]
    run_id = json.loads((project / "runs/VIT-S/mlflow.json").read_text())["run_id"]
    (run,) = [run for run in runs_of(project) if run.info.run_id == run_id]
    logged = [run.data.metrics[f"{name}/mAP"] for name in ("reranked", "reverse reranked", "mean reranked")]
    assert logged == [scores["mAP"] for scores in reranked.values()]


def test_a_recipe_may_ask_for_re_ranking_later(project, ranks):
    shutil.copytree(project / "runs/VIT-S", project / "later/VIT-S")
    (project / "later/VIT-S/mlflow.json").unlink()  # the other run keeps its own
    words = ["--out", "later/VIT-S", "--resume", "auto", "--set", "evaluation.rerank.k1=8"]
    ranks.run(2, command_on_ranks, "launcher.train", words, project)
    ranks.run(2, command_on_ranks, "launcher.evaluate", ["--run", "later/VIT-S"], project)
    metrics = json.loads((project / "later/VIT-S/metrics.json").read_text())
    assert metrics["reranked"]["protocol"] == {"k1": 8, "k2": 6, "lambda": 0.3}
    with pytest.raises(UserError, match="k1 = 24 needs more than 24 queries and gallery items, here are 24; give a smaller k1"):
        ranks.run(1, command_on_ranks, "launcher.evaluate", ["--run", "later/VIT-S", "--rerank", "24,6,0.3"], project)


def test_a_recipe_may_ask_for_drawn_galleries_later(project, ranks):
    shutil.copytree(
        project / "runs/VIT-S", project / "drawn/VIT-S", ignore=shutil.ignore_patterns("mlflow.json", "pictures", "queries.npz")
    )
    words = ["--out", "drawn/VIT-S", "--resume", "auto", "--set", "evaluation.protocol=vehicleid"]
    ranks.run(2, command_on_ranks, "launcher.train", words, project)
    table = ranks.run(2, command_on_ranks, "launcher.evaluate", ["--run", "drawn/VIT-S"], project)[0]
    spread = json.loads((project / "drawn/VIT-S/metrics.json").read_text())["spread"]
    assert f"standard deviation over drawn galleries: mAP {spread['mAP']:.3f}, Rank-1 {spread['rank1']:.3f}\n" in table
    assert not (project / "drawn/VIT-S/queries.npz").exists()
    drawn = {path.name for path in (project / "drawn/VIT-S/pictures").glob("*")} - TRAINED
    assert drawn == {"cmc.png", "distances.png", "curves.json"}


def test_several_checkpoints_are_evaluated_on_several_sets(project, ranks, tmp_path):
    """Each pair has its files and its metrics in MLflow; the run's own stay."""
    write_set(tmp_path / "set ü")
    run = project / "several"
    shutil.copytree(project / "runs/MAMBA-V2", run)
    before = (run / "metrics.json").read_text()
    words = ["--run", "several", "--checkpoint", "step-000003", "step-000004", "--data", "data", str(tmp_path / "set ü")]
    printed = ranks.run(2, command_on_ranks, "launcher.evaluate", words, project)[0]
    assert (run / "metrics.json").read_text() == before
    found = {}
    for step, name in itertools.product((3, 4), ("data", "set ü")):
        folder = run / f"evaluations/step-00000{step}/{name}"
        assert {path.name for path in folder.iterdir()} == {"metrics.json", "queries.npz", "pictures"}
        assert f"step-00000{step} on {name}\n" in printed
        found[step, name] = json.loads((folder / "metrics.json").read_text())
        assert found[step, name]["protocol"]["checkpoint"] == f"step-00000{step}"
    assert {**found[4, "data"]["protocol"], "world": 3} == json.loads(before)["protocol"] | {"world": 3}
    assert found[4, "data"]["mAP"] == json.loads(before)["mAP"]
    assert found[3, "data"]["protocol"]["weights_sha256"] != found[4, "data"]["protocol"]["weights_sha256"]
    other = json.loads((tmp_path / "set ü/manifest.json").read_text())["digest"]
    assert [found[step, "set ü"]["protocol"]["data_digest"] for step in (3, 4)] == [other] * 2
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{project / 'runs/mlflow.db'}")
    run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
    for name in ("data", "set ü"):
        history = client.get_metric_history(run_id, f"{name}/mAP")
        assert [(metric.step, metric.value) for metric in history] == [(step, found[step, name]["mAP"]) for step in (3, 4)]
    logged = {artifact.path for artifact in client.list_artifacts(run_id, "evaluations/step-000003/set ü")}
    assert {Path(path).name for path in logged} == {"metrics.json", "queries.npz", "pictures"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--checkpoint", "step-9"], "checkpoints/step-9: no whole checkpoint; runs/VIT-S has step-000003, step-000004"),
        (["--data", "data", "./data"], "--data: 2 sets are called data, so their results would be; give one at a time"),
        (["--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_anything_is(project, call, monkeypatch, words, line):
    monkeypatch.chdir(project)
    status, printed, told = call(evaluate.main, "--run", "runs/VIT-S", *words)
    assert (status, printed) == (2, "")
    assert line in told
    assert not (project / "runs/VIT-S/evaluations").exists()


def test_mlflow_has_one_run_a_training_with_all_there_is_to_know(project):
    by_name = {run.info.run_name: run for run in runs_of(project)}
    assert {name for name in by_name if "again" not in name} >= {"VIT-S", "MAMBA-V2", "comparison VIT-S, MAMBA-V2"}
    assert sum(run.data.params.get("model.backbone") == "MAMBA-V2" for run in by_name.values()) == 1
    run = by_name["MAMBA-V2"]
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert (params["model.backbone"], params["optim.lr"], params["world"]) == ("MAMBA-V2", "0.0003", "2")
    assert (params["deepspeed.stage"], params["deepspeed.gradient_clipping"]) == ("1", "1.0")
    assert params["weights"] == "from scratch"
    assert len(params["data.digest"]) == 64
    assert {"version.torch", "version.deepspeed", "version.commit"} <= params.keys()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{project / 'runs/mlflow.db'}")
    for key in ("loss", "loss_identity", "loss_triplet", "lr", "grad_norm", "images_per_s", "peak_GiB"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, key)] == [1, 2, 3, 4], key
    metrics = json.loads((project / "runs/MAMBA-V2/metrics.json").read_text())
    assert run.data.metrics["mAP"] == metrics["mAP"]
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"recipe.yaml", "deepspeed.json", "log.jsonl", "metrics.json", "queries.npz"} <= names


def test_mlflows_pages_say_what_a_run_is(project):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{project / 'runs/mlflow.db'}")
    experiment = client.get_experiment_by_name("vmreid")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    by_name = {run.info.run_name: run for run in runs_of(project)}
    run, metrics = by_name["VIT-S"], json.loads((project / "runs/VIT-S/metrics.json").read_text())
    assert run.data.tags["mlflow.source.name"] == "launcher.train"
    assert run.data.tags["mlflow.user"]
    note = run.data.tags["mlflow.note.content"]
    for name, scores in (("VIT-S", metrics), *metrics["baselines"].items()):
        assert f"| {name} | {scores['mAP']:.3f} | {scores['rank1']:.3f} |" in note
    assert "step-000004 on `data`: 6 queries, 18 gallery pictures" in note
    (dataset,) = [entry.dataset for entry in run.inputs.dataset_inputs]  # one, although the run was resumed
    assert (dataset.name, dataset.digest) == ("data", metrics["protocol"]["data_digest"][:12])
    comparison = by_name["comparison VIT-S, MAMBA-V2"]
    assert comparison.data.metrics == {}  # charts over all runs would show them first
    assert "| MAMBA-V2 |" in comparison.data.tags["mlflow.note.content"]


def test_a_resumed_run_goes_on_in_its_mlflow_run_without_repeating_steps(project):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{project / 'runs/mlflow.db'}")
    known = json.loads((project / "runs/VIT-S/mlflow.json").read_text())
    history = client.get_metric_history(known["run_id"], "loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    logged = [entry["loss"] for entry in read_json_lines(project / "runs/VIT-S/log.jsonl")]
    assert [metric.value for metric in history] == logged


def test_the_comparison_reports_what_the_runs_measured(project):
    printed = (project / "printed").read_text()
    report = json.loads((project / "runs/report/report.json").read_text())
    assert [row["name"] for row in report["rows"]] == list(BACKBONES)
    for row in report["rows"]:
        metrics = json.loads((project / f"runs/{row['name']}/metrics.json").read_text())
        assert (row["mAP"], row["rank1"]) == (metrics["mAP"], metrics["rank1"])
        assert f"{metrics['mAP']:.3f}" in printed
        assert row["bytes_per_picture"] > 0
        assert list(row["seconds_by_tokens"]) == ["32", "128", "512"]
    (pair,) = report["pairs"]
    assert (pair["first"], pair["second"]) == BACKBONES
    assert pair["mAP"]["difference"] == pytest.approx(report["rows"][0]["mAP"] - report["rows"][1]["mAP"], abs=1e-12)
    assert f"VIT-S − MAMBA-V2  {pair['mAP']['difference']:+.3f}" in printed
    assert set(report["floors"]) == {"chance", "histogram", "rgb_histogram", "untrained VIT-S", "untrained MAMBA-V2"}
    assert "<svg" in (project / "runs/report/report.html").read_text()
    assert "| VIT-S |" in (project / "runs/report/report.md").read_text()


def test_a_checkpoint_of_another_architecture_is_refused(project, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = (project / "runs/VIT-S/recipe.yaml").read_text().replace("depth: 2", "depth: 3")
    for part in ("deepspeed.json", "checkpoints"):
        (tmp_path / part).symlink_to(project / "runs/VIT-S" / part)
    (tmp_path / "recipe.yaml").write_text(recipe)
    status, printed, line = call(evaluate.main, "--run", tmp_path)
    assert (status, printed) == (2, "")
    assert "is of another architecture than VIT-S" in line
