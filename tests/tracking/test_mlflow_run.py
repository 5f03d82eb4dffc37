"""Runs that start at the same moment share one new store; a run that is opened again goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlflow
import pytest

from vmreid.distributed import rank
from vmreid.errors import UserError
from vmreid.run_folder import RunFolder
from vmreid.tracking import MlflowRun


def open_and_log(folder: Path) -> str:
    """On a rank of the pool, each with a run of its own."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    own = folder / f"run{rank()}"
    own.mkdir()
    run = MlflowRun(RunFolder(own), f"run {rank()}", "tests")
    run.log(1, {"loss": float(rank())})
    run.close("FINISHED")
    return run.run_id


def test_runs_that_start_together_share_one_new_store(ranks, tmp_path):
    ids = ranks.run(3, open_and_log, tmp_path)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs/mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "vmreid"]
    losses = {run.info.run_id: run.data.metrics["loss"] for run in client.search_runs([experiment.experiment_id])}
    assert losses == {run_id: float(number) for number, run_id in enumerate(ids)}
    assert json.loads((tmp_path / "run1/mlflow.json").read_text())["run_id"] == ids[1]


def open_twice(folder: Path) -> None:
    """On a rank of the pool: a run that fails after step 3 and goes on from a checkpoint of step 2."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    for steps, status in (((1, 2, 3), "FAILED"), ((3, 4), "FINISHED")):
        run = MlflowRun(RunFolder(folder), "it", "tests")
        for step in steps:
            run.log(step, {"loss": step / 2})
        run.close(status)


def test_a_run_opened_again_goes_on_without_repeating_steps(ranks, tmp_path):
    ranks.run(1, open_twice, tmp_path)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs/mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]


def test_a_known_run_whose_store_is_gone_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = RunFolder(tmp_path)
    folder.mlflow_file.write_text(json.dumps({"tracking_uri": "http://127.0.0.1:9", "run_id": "0" * 32}))
    with pytest.raises(UserError, match=r"MLflow store http://127.0.0.1:9: .*start that server") as caught:
        MlflowRun(folder, "again", "tests")
    assert "\n" not in str(caught.value)
