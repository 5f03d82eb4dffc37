"""What of a run is there and what is missing, read from its folder alone."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path

import torch

from vmreid.engine.checkpoint import state_of
from vmreid.engine.prepare import make_plan
from vmreid.errors import UserError
from vmreid.recipes import find_recipe
from vmreid.run_folder import RunFolder
from vmreid.study.file import Run


class Missing(Enum):
    """What is to be done next."""

    TRAINING = "training"
    EVALUATION = "evaluation"
    NOTHING = "nothing"


def missing_of(run: Run, out: Path, ranks: int, device: torch.device) -> Missing:
    """Raises UserError where the run cannot be, or its folder holds one of other values, named with its key."""
    folder, recipe = RunFolder(out / run.folder), run.resolved()
    if recipe.data.shards is None:
        raise UserError(
            f"{run.folder}: no data; give a folder of shards by --data, or name it at the top of the study, data: FOLDER"
        )
    plan = make_plan(recipe, find_recipe(run.recipe), folder.path, True, ranks, device)
    if plan.checkpoint is None:
        return Missing.TRAINING
    steps = recipe.train.epochs * plan.batches().steps_per_epoch
    if state_of(plan.checkpoint).step < steps:
        return Missing.TRAINING
    scored = json.loads(folder.metrics_file.read_text()) if folder.metrics_file.is_file() else {}
    fits = scored.get("protocol", {}).get("checkpoint") == plan.checkpoint.name
    return Missing.NOTHING if fits else Missing.EVALUATION
