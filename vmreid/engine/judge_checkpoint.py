"""Evaluation during training: a checkpoint's scores by the code of the separate pass."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vmreid.data.sets import ShardSet
from vmreid.distributed import Place, from_rank_0
from vmreid.engine.prepare import Plan
from vmreid.evaluation.directions import named
from vmreid.evaluation.evaluate import EvaluationPlan, evaluate_model
from vmreid.recipes.schema import Model
from vmreid.run_folder import RunFolder, write_atomically


def judge_newest(plan: Plan, judged_on: ShardSet, place: Place) -> dict[str, float]:
    """All ranks. Scores of the run's newest checkpoint by the names that MLflow shows, as ``launcher.evaluate`` logs them."""
    checkpoint, model = from_rank_0(_newest(plan) if place.rank == 0 else None)  # the others may still see the one before
    recipe = plan.recipe.model_copy(update={"model": model})
    with _any_algorithm():
        metrics: dict[str, Any] = evaluate_model(
            EvaluationPlan(recipe, judged_on.folder, judged_on.manifest, checkpoint, plan.scan_backend), place
        )
    return named(metrics)


def _newest(plan: Plan) -> tuple[Path, Model]:
    checkpoint = plan.folder.checkpoint(None)
    return checkpoint, plan.folder.model_of(checkpoint)


def keep_judgement(folder: RunFolder, step: int, epochs: int, scores: dict[str, float]) -> None:
    """Rank 0. Add a line to ``evaluations.jsonl``."""
    _write(folder, [*folder.evaluations(), {"step": step, "epochs": epochs, **scores}])


def keep_judgements_until(folder: RunFolder, step: int) -> None:
    """Rank 0. Checkpoints after ``step`` are written again, and judged again."""
    if folder.evaluations_file.is_file():
        _write(folder, [entry for entry in folder.evaluations() if entry["step"] <= step])


def _write(folder: RunFolder, entries: list[dict[str, Any]]) -> None:
    """Whole: a resume reads it after a kill at any instant."""
    write_atomically(folder.evaluations_file, "".join(json.dumps(entry) + "\n" for entry in entries))


@contextlib.contextmanager
def _any_algorithm() -> Iterator[None]:
    """Exact counts need no deterministic algorithms, and some of their operations have none."""
    asked = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked)
