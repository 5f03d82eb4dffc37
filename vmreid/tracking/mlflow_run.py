"""MLflow's one door. Rank 0 alone opens a run; its id and store are kept in the run folder, so that it is never made twice."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from vmreid.errors import UserError
from vmreid.run_folder import RunFolder, write_atomically
from vmreid.tracking.sender import Sender, Step
from vmreid.versions import commit

EXPERIMENT = "vmreid"
SQLITE = "sqlite:///"
DEFAULT_DATABASE = Path("runs/mlflow.db")
PARAMETER_LENGTH, METRICS_AT_ONCE = 6000, 1000  # MLflow's own limits
CLOSE_SECONDS = 30.0  # that a run waits at its end for a store that does not answer
REQUEST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # MLflow's own: minutes for each


class MlflowRun:
    """An open MLflow run. Metrics are sent in the background; ``close`` waits for them.

    A server that cannot be reached disturbs nobody, from the start or later on: what it could not be told is kept in
    ``mlflow_later.jsonl``, and told when the run is closed or opened again and the server is there.
    """

    def __init__(self, folder: RunFolder, name: str, source: str) -> None:
        """Open the run that ``folder`` names, or make one, which ``source`` (such as ``launcher.train``) began.

        Raises UserError where the store answers that this cannot be, or is no server and does not open.
        """
        _quiet()
        self._folder, self._name, self._source = folder, name, source
        self._known = json.loads(folder.mlflow_file.read_text()) if folder.mlflow_file.is_file() else {}
        self.uri: str = self._known.get("tracking_uri") or default_tracking_uri()
        self.run_id: str = self._known.get("run_id", "")
        self._logged: set[int] | None = None  # steps that the run has; not known before the store is reached
        self._sender = Sender(self._send, self.uri)
        try:
            self._reach()
            self._tell_what_waits()
        except Exception as error:
            reason = (str(error).splitlines()[0] if str(error) else type(error).__name__)[:300]
            if not _is_away(self.uri, error):
                raise UserError(
                    f"MLflow store {self.uri}: {reason}; start that server, or set MLFLOW_TRACKING_URI to another "
                    "(unset: sqlite in runs/mlflow.db)"
                ) from error
            kept = folder.mlflow_later_file
            print(f"MLflow store {self.uri}: {reason}; the work goes on, and {kept} keeps what to tell it", file=sys.stderr)
            self._keep("tags", {"vmreid.opened": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def log(self, step: int, values: dict[str, float]) -> None:
        """Metrics at a step. A training step, which has a loss, is not logged twice where the run has it (before a resume)."""
        self._sender.put(step, values)

    def log_parameters(self, values: dict[str, Any]) -> None:
        """Parameters that the run does not have yet; MLflow refuses to change one."""
        self._tell("parameters", values)

    def set_tags(self, tags: dict[str, str]) -> None:
        """Tags of the run, such as the line that resumes it."""
        self._tell("tags", tags)

    def describe(self, markdown: str) -> None:
        """The text at the top of the run's page; a later one takes its place."""
        self._tell("tags", {"mlflow.note.content": markdown})

    def log_dataset(self, name: str, uri: str, digest: str) -> None:
        """Name a set that a new run reads, for the list of runs."""
        if not self._known:
            self._tell("dataset", [name, uri, digest])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or a folder's files to the run's artifacts."""
        self._tell("artifact", [str(path.resolve()), folder])

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Wait for what is on its way, ``CLOSE_SECONDS`` at most, and set the status; KILLED: a signal stopped it, to go on."""
        kept, unsent = self._folder.mlflow_later_file, self._sender.close(CLOSE_SECONDS)
        for step in unsent:
            self._keep("metrics", step)
        if kept.is_file() and not unsent and self.run_id:
            with contextlib.suppress(Exception):  # whatever it is, all of it is kept
                self._tell_what_waits()
        self._tell("status", status)
        if kept.is_file():
            again = f"python -m launcher.evaluate --run {self._folder.path}"
            print(f"MLflow store {self.uri}: {kept} keeps what it could not be told, until {again} or a resume", file=sys.stderr)

    def _tell(self, kind: str, content: Any) -> None:
        """Tell the store; what it cannot be told, and all that follows, waits."""
        from mlflow.exceptions import MlflowException

        try:
            if self._folder.mlflow_later_file.is_file():
                raise ConnectionError("something waits already")
            getattr(self, f"_tell_{kind}")(content)
        except (MlflowException, OSError):
            self._keep(kind, content)

    def _keep(self, kind: str, content: Any) -> None:
        with self._folder.mlflow_later_file.open("a") as file:
            file.write(json.dumps({kind: content}) + "\n")

    def _reach(self) -> None:
        """Find the run in the store, or make it there."""
        import mlflow

        with _one_at_a_time(self.uri):
            self._client = mlflow.MlflowClient(tracking_uri=self.uri)
            if not self.run_id:
                run_id = self._new_run()
                fields = {"tracking_uri": self.uri, "run_id": run_id}
                write_atomically(self._folder.mlflow_file, json.dumps(fields, indent=2) + "\n")
                self.run_id = run_id
        if self._known:
            self._client.set_terminated(self.run_id, "RUNNING")
        self._logged = {metric.step for metric in self._client.get_metric_history(self.run_id, "loss")}

    def _tell_what_waits(self) -> None:
        """What the store could not be told."""
        if not self._folder.mlflow_later_file.is_file():
            return
        lines = [json.loads(line) for line in self._folder.mlflow_later_file.read_text().splitlines()]
        told = [each for line in lines for each in line.items()]
        for kind, some in itertools.groupby(told, key=lambda each: each[0]):
            contents = [content for _, content in some]
            if kind == "metrics":
                self._send(contents)
            else:
                for content in contents:
                    getattr(self, f"_tell_{kind}")(content)
        self._folder.mlflow_later_file.unlink()
        self._client.set_terminated(self.run_id, "RUNNING")

    def _tell_status(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)

    def _tell_tags(self, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def _tell_parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        have = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:PARAMETER_LENGTH]) for key, value in values.items() if key not in have]
        for begin in range(0, len(new), 100):
            self._client.log_batch(self.run_id, params=new[begin : begin + 100])

    def _tell_dataset(self, of: list[str]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        name, uri, digest = of
        kind = uri.partition(":")[0].replace("file", "local")
        dataset = Dataset(name=name, digest=digest[:12], source_type=kind, source=json.dumps({"uri": uri}))
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset)])

    def _tell_artifact(self, of: list[str | None]) -> None:
        path, folder = of
        send = self._client.log_artifacts if Path(str(path)).is_dir() else self._client.log_artifact
        send(self.run_id, path, folder)

    def _send(self, steps: list[Step]) -> None:
        """Metrics, but for training steps that the run has."""
        from mlflow.entities import Metric

        if self._logged is None:
            self._reach()
        assert self._logged is not None
        new = [(step, moment, values) for step, moment, values in steps if "loss" not in values or step not in self._logged]
        metrics = [Metric(key, float(value), moment, step) for step, moment, values in new for key, value in values.items()]
        for begin in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self.run_id, metrics=metrics[begin : begin + METRICS_AT_ONCE])
        self._logged.update(step for step, _, values in new if "loss" in values)

    def _new_run(self) -> str:
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": self._source,
            "mlflow.source.git.commit": commit(),
        }
        return str(self._client.create_run(self._experiment(), run_name=self._name, tags=tags).info.run_id)

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        database = self.uri.removeprefix(SQLITE)
        artifacts = None if database == self.uri else (Path(database).parent / "mlartifacts").resolve().as_uri()
        # so that its pages are those of model training; MLflow's own default is traces of language models
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=kind))


def _is_away(uri: str, error: Exception) -> bool:
    """Whether a server gave no answer of its own, or a proxy in its place."""
    from mlflow.exceptions import MlflowException, RestException

    return (
        uri.startswith(("http://", "https://"))
        and isinstance(error, (MlflowException, OSError))
        and not isinstance(error, RestException)
    )


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
    """Two runs that start together must not both make a sqlite store."""
    if not uri.startswith(SQLITE):
        yield
        return
    database = Path(uri.removeprefix(SQLITE))
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            _make_store(database)
        yield


def _make_store(database: Path) -> None:
    """MLflow makes its tables one after the other, and where it was killed in between it never opens the file again."""
    import mlflow

    partial = database.with_name(f"{database.name}.partial")
    partial.unlink(missing_ok=True)
    mlflow.MlflowClient(tracking_uri=f"{SQLITE}{partial}").search_experiments(max_results=1)
    partial.replace(database)


def _quiet() -> None:
    for name, value in REQUEST.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
