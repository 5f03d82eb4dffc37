"""The files of one run: recipe.yaml, deepspeed.json, log.jsonl, monitors.jsonl, evaluations.jsonl, non_finite.jsonl,
metrics.json, queries.npz, mlflow.json, mlflow_later.jsonl (what MLflow could not be told yet), features/, pictures/,
checkpoints/, non_finite/ (batch and weights of a stop)."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from vmreid.digests import DIGESTS, damage
from vmreid.errors import UserError
from vmreid.recipes import Recipe, load_recipe
from vmreid.recipes.schema import Model

WEIGHTS, STATE = "weights.safetensors", "state.json"
QUERIES = "queries.npz"


class RunFolder:
    """Paths of a run and what can be read from them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.deepspeed_file = path / "deepspeed.json"
        self.log_file = path / "log.jsonl"
        self.monitors_file = path / "monitors.jsonl"
        self.non_finite_file = path / "non_finite.jsonl"
        self.metrics_file = path / "metrics.json"
        self.evaluations_file = path / "evaluations.jsonl"
        self.queries_file = path / QUERIES
        self.mlflow_file = path / "mlflow.json"
        self.mlflow_later_file = path / "mlflow_later.jsonl"
        self.features = path / "features"
        self.pictures = path / "pictures"
        self.checkpoints = path / "checkpoints"
        self.latest_file = self.checkpoints / "latest"

    def recipe(self) -> Recipe:
        """The resolved recipe. Raises UserError where the folder holds no run."""
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such run; train it first with python -m launcher.train --out {self.path}")
        if not self.recipe_file.is_file():
            raise UserError(f"{self.path}: holds no recipe.yaml, so it is no run; give the folder that launcher.train wrote")
        return load_recipe(str(self.recipe_file), {}, [])

    def checkpoint(self, name: str | None) -> Path:
        """Folder of a whole checkpoint by its name, or of the newest, with the weights that were written. Raises UserError."""
        if name is None:
            newest = self.latest()
            if newest is None:
                again = f"train on with python -m launcher.train --out {self.path} --resume auto"
                raise UserError(f"{self.path}: has no checkpoint yet; {again}")
            name = newest.name
        chosen, found = self.checkpoints / name, ", ".join(path.name for path in self.whole()) or "none"
        if chosen not in self.whole():
            raise UserError(f"{chosen}: no whole checkpoint; {self.path} has {found}")
        wrong = damage(chosen, [WEIGHTS])
        if wrong:
            raise UserError(f"{chosen}: damaged ({wrong}); give another by --checkpoint, {self.path} has {found}")
        return chosen

    def model_of(self, checkpoint: Path) -> Model:
        """The recipe's model as it was at a checkpoint: one that grows may have been less deep."""
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text()) if (checkpoint / STATE).is_file() else {}
        return self.recipe().model.at_depth(state.get("depth"))

    def whole(self) -> list[Path]:
        """Folders of whole checkpoints, oldest first."""
        return sorted(path.parent for path in self.checkpoints.glob(f"step-*/{DIGESTS}"))

    def latest(self) -> Path | None:
        """Folder of the newest whole checkpoint, or None where there is none yet."""
        if not self.latest_file.is_file():
            return None
        checkpoint = self.checkpoints / self.latest_file.read_text().strip()
        if not (checkpoint / DIGESTS).is_file():
            raise UserError(
                f"{self.latest_file}: names {checkpoint.name}, which is not whole; write the name of another folder there"
            )
        return checkpoint

    def log(self) -> list[dict[str, Any]]:
        """One entry an optimizer step; empty before the first."""
        return _json_lines(self.log_file)

    def monitors(self) -> list[dict[str, Any]]:
        """One entry (step, layers, warnings) a look into the layers; empty where there was none."""
        return _json_lines(self.monitors_file)

    def evaluations(self) -> list[dict[str, Any]]:
        """One entry (step, epoch, scores) an evaluation during training; empty where there was none."""
        return _json_lines(self.evaluations_file)

    def non_finite(self) -> list[dict[str, Any]]:
        """One entry (step, where) a stop at a non-finite value, over all resumes; empty where there was none."""
        return _json_lines(self.non_finite_file)

    def metrics(self) -> dict[str, Any]:
        """What launcher.evaluate wrote. Raises UserError where it has not run yet."""
        if not self.metrics_file.is_file():
            raise UserError(f"{self.path}: no metrics.json; evaluate it first with python -m launcher.evaluate --run {self.path}")
        metrics: dict[str, Any] = json.loads(self.metrics_file.read_text())
        return metrics


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part. An OSError names ``path``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # two nodes may have the same process number
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:  # a full disk does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
