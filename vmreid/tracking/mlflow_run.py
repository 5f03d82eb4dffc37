"""MLflow's one door. Rank 0 alone opens a run; its id and store are kept in the run folder, so that it is never made twice."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from vmreid.errors import UserError
from vmreid.run_folder import RunFolder, write_atomically
from vmreid.versions import commit

EXPERIMENT = "vmreid"
SQLITE = "sqlite:///"
DEFAULT_DATABASE = Path("runs/mlflow.db")
PARAMETER_LENGTH = 6000  # MLflow's own limit


class MlflowRun:
    """An open MLflow run. Metrics are sent in the background; ``close`` waits for them."""

    def __init__(self, folder: RunFolder, name: str, source: str) -> None:
        """Open the run that ``folder`` names, or make one, which ``source`` (such as ``launcher.train``) began.

        Raises UserError where the store cannot be reached.
        """
        _quiet()
        import mlflow

        self._known = json.loads(folder.mlflow_file.read_text()) if folder.mlflow_file.is_file() else {}
        self.uri: str = self._known.get("tracking_uri") or default_tracking_uri()
        try:
            with _one_at_a_time(self.uri):
                self._client = mlflow.MlflowClient(tracking_uri=self.uri)
                self.run_id: str = self._known.get("run_id") or self._new_run(name, source)
            if self._known:
                self._client.set_terminated(self.run_id, "RUNNING")
            self._logged_until = self._last_logged_step() if self._known else 0
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"MLflow store {self.uri}: {reason[:300]}; start that server, or set MLFLOW_TRACKING_URI to another "
                "(unset: sqlite in runs/mlflow.db)"
            ) from error
        if not self._known:
            fields = {"tracking_uri": self.uri, "run_id": self.run_id}
            write_atomically(folder.mlflow_file, json.dumps(fields, indent=2) + "\n")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Metrics of a step. Steps that the run already has (before a resume) are not logged twice."""
        if step > self._logged_until:
            self._send(step, values)

    def log_results(self, step: int, values: dict[str, float]) -> None:
        """Metrics of an evaluation at ``step``."""
        self._send(step, values)

    def log_parameters(self, values: dict[str, Any]) -> None:
        """Parameters that the run does not have yet; MLflow refuses to change one."""
        from mlflow.entities import Param

        have = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:PARAMETER_LENGTH]) for key, value in values.items() if key not in have]
        for begin in range(0, len(new), 100):
            self._client.log_batch(self.run_id, params=new[begin : begin + 100])

    def set_tags(self, tags: dict[str, str]) -> None:
        """Tags of the run, such as the line that resumes it."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def describe(self, markdown: str) -> None:
        """The text at the top of the run's page; a later one takes its place."""
        self._client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def log_dataset(self, name: str, uri: str, digest: str) -> None:
        """Name a set that a new run reads, for the list of runs."""
        if self._known:
            return
        from mlflow.entities import Dataset, DatasetInput

        kind = uri.partition(":")[0].replace("file", "local")
        dataset = Dataset(name=name, digest=digest[:12], source_type=kind, source=json.dumps({"uri": uri}))
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset)])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or a folder's files to the run's artifacts."""
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(self.run_id, str(path), folder)

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Wait for what is on its way and set the run's status; KILLED: stopped by a signal, to go on."""
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        mlflow.flush_async_logging()
        self._client.set_terminated(self.run_id, status)

    def _send(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics, synchronous=False)

    def _new_run(self, name: str, source: str) -> str:
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": source,
            "mlflow.source.git.commit": commit(),
        }
        return str(self._client.create_run(self._experiment(), run_name=name, tags=tags).info.run_id)

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        database = self.uri.removeprefix(SQLITE)
        artifacts = None if database == self.uri else (Path(database).parent / "mlartifacts").resolve().as_uri()
        # so that its pages are those of model training; MLflow's own default is traces of language models
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=kind))

    def _last_logged_step(self) -> int:
        history = self._client.get_metric_history(self.run_id, "loss")
        return max((metric.step for metric in history), default=0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return str(os.getuid())


def default_tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the sqlite file ``runs/mlflow.db`` below the current folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    DEFAULT_DATABASE.parent.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{DEFAULT_DATABASE.resolve()}"


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """MLflow makes a sqlite store's tables at first use; two runs that start together must not both do so."""
    if not uri.startswith(SQLITE):
        yield
        return
    with Path(uri.removeprefix(SQLITE) + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _quiet() -> None:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
