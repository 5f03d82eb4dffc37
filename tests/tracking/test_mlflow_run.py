"""Runs that start at the same moment share one new store; a run that is opened again goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tiny import SMALL, command_on_ranks, forget_deepspeed_groups, runs_of, set_words, write_set

from vmreid.distributed import free_port, rank
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


def test_a_server_that_is_away_from_the_start_is_told_in_the_end_or_when_the_run_is_opened_again(tmp_path, monkeypatch, capsys):
    """Both: a new run, and one that was there before and gets a step again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = "http://127.0.0.1:9"
    store = f"sqlite:///{tmp_path}/runs/mlflow.db"
    for number, before in enumerate(([], [1, 2])):
        folder = RunFolder(tmp_path / str(number))
        folder.path.mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        (tmp_path / "runs").mkdir(exist_ok=True)
        if before:
            run = MlflowRun(folder, "it", "tests")
            for step in before:
                run.log(step, {"loss": float(step)})
            run.close("FAILED")
            folder.mlflow_file.write_text(folder.mlflow_file.read_text().replace(store, away))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
        capsys.readouterr()
        begin = time.monotonic()
        run = MlflowRun(folder, "it", "tests")
        (said,) = [line for line in capsys.readouterr().err.splitlines() if away in line]
        assert "the work goes on" in said
        run.set_tags({"resume": "line"})
        run.log(2, {"loss": 2.0})
        run.log(3, {"loss": 3.0})
        assert time.monotonic() - begin < 10
        if not before:  # it comes back
            run.uri = store
            run._sender._wait = 0.01
        run.close("FINISHED")
        if before:
            assert "keeps what it could not be told" in capsys.readouterr().err
            folder.mlflow_file.write_text(folder.mlflow_file.read_text().replace(away, store))
            MlflowRun(folder, "it", "tests").close("FINISHED")
        client = mlflow.MlflowClient(tracking_uri=store)
        found = client.get_run(json.loads(folder.mlflow_file.read_text())["run_id"])
        assert found.info.status == "FINISHED"
        assert found.data.tags["resume"] == "line"
        history = client.get_metric_history(found.info.run_id, "loss")
        assert [(metric.step, metric.value) for metric in history] == [(step, float(step)) for step in sorted({*before, 2, 3})]
        assert not folder.mlflow_later_file.exists()


def train_without_server(words: list[str], folder: Path) -> int:
    """On a rank of the pool: ``launcher.train`` whose tracking server is away; its status."""
    from launcher import train

    os.chdir(folder)
    os.environ |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    try:
        forget_deepspeed_groups()
        return train.main(words)
    finally:
        del os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]


def test_training_goes_on_without_its_server_and_an_evaluation_tells_another(ranks, tmp_path):
    write_set(tmp_path / "data")
    words = ["--recipe", "demo", "--data", "data", "--out", "run", "--epochs", "3", *set_words(*SMALL["VIT-S"])]
    assert ranks.run(1, train_without_server, words, tmp_path) == [0]
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "run/mlflow.json").exists()
    ranks.run(1, command_on_ranks, "launcher.evaluate", ["--run", "run"], tmp_path)
    (run,) = runs_of(tmp_path)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs/mlflow.db'}")
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]
    assert run.data.params["model.backbone"] == "VIT-S"
    assert "mAP" in run.data.metrics
    assert not (tmp_path / "run/mlflow_later.jsonl").exists()


@pytest.mark.parametrize("uri", ["htp://somewhere", "sqlite:////nowhere/at/all.db"])
def test_a_store_that_cannot_be_is_one_line(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=r"MLflow store .*start that server, or set MLFLOW_TRACKING_URI") as caught:
        MlflowRun(RunFolder(tmp_path), "again", "tests")
    assert "\n" not in str(caught.value)


def test_a_kill_while_the_store_is_made_leaves_none(ranks, tmp_path):
    program = f"import os; os.chdir({str(tmp_path)!r}); from test_mlflow_run import *; open_and_log(Path('.').resolve())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    database, partial = tmp_path / "runs/mlflow.db", tmp_path / "runs/mlflow.db.partial"
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size < 60_000:  # of some hundred thousand: tables are being made
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert partial.exists()
    assert not database.exists()
    shutil.rmtree(tmp_path / "run0")
    ranks.run(1, open_and_log, tmp_path)
    assert database.exists()
    assert not partial.exists()


class Away(ConnectionError):
    """What a store that is away gives."""


def open_while_it_goes_and_comes(folder: Path) -> str:
    """On a rank of the pool: a run whose store goes away after step 2, and comes back when the run is opened again."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    (folder / "kept.txt").write_text("artifact")
    run = MlflowRun(RunFolder(folder), "it", "tests")
    run.log(1, {"loss": 1.0})
    run.log(2, {"loss": 2.0})
    while run._sender._waiting:
        time.sleep(0.01)
    client = run._client

    class Absent:
        def __getattr__(self, name: str) -> Any:
            def away(*args: Any, **named: Any) -> None:
                raise Away(f"no answer to {name}")

            return away

    run._client = Absent()
    begin = time.monotonic()
    for step in range(3, 200):
        run.log(step, {"loss": float(step)})
    run.log_artifact(folder / "kept.txt", "later")
    assert time.monotonic() - begin < 5, "training waits for nobody"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        run.close("FINISHED")
    assert client.get_run(run.run_id).info.status == "RUNNING"
    again = MlflowRun(RunFolder(folder), "it", "tests")
    again.log(199, {"loss": -1.0})  # a step that it has
    again.close("FINISHED")
    return said.getvalue()


def test_what_a_store_that_went_away_was_not_told_it_is_told_later(ranks, tmp_path):
    (said,) = ranks.run(1, open_while_it_goes_and_comes, tmp_path)
    assert "keeps what it could not be told, until python -m launcher.evaluate" in said
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs/mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, float(step)) for step in range(1, 200)]
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "later")] == ["later/kept.txt"]
    assert not (tmp_path / "mlflow_later.jsonl").exists()


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    words = [
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/s.db",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return server
        except OSError:
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.3)


@pytest.mark.slow
def test_a_server_that_comes_late_dies_and_comes_back_has_every_step(tmp_path, monkeypatch, capsys):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    run = MlflowRun(RunFolder(tmp_path), "it", "tests")
    run.log(1, {"loss": 1.0})
    assert not run.run_id
    server = serve(tmp_path, port)
    while run._sender._waiting:
        time.sleep(0.05)
    assert run.run_id
    os.killpg(server.pid, signal.SIGKILL)
    run.log(2, {"loss": 2.0})
    time.sleep(8)
    begin = time.monotonic()
    run.close("FINISHED")
    assert time.monotonic() - begin < 60
    said = capsys.readouterr().err
    assert "training goes on, its metrics wait" in said
    assert "keeps what it could not be told" in said
    server = serve(tmp_path, port)
    try:
        MlflowRun(RunFolder(tmp_path), "it", "tests").close("FINISHED")
        client = mlflow.MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        assert [metric.step for metric in client.get_metric_history(run.run_id, "loss")] == [1, 2]
        assert client.get_run(run.run_id).info.status == "FINISHED"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
