"""Rank 0, before the process group starts: read and check everything, so that what is wrong is said once and at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmreid.data.identity_batches import IdentityBatches, check_split_over_ranks
from vmreid.data.sets import ShardSet, digest_of_sets, evaluation_set, training_sets, with_whole_paths
from vmreid.engine.checkpoint import check_data, newest_sound, state_of
from vmreid.engine.compiled import check_compile
from vmreid.engine.deepspeed_config import accumulation_steps, check_precision, read_deepspeed_config, zero_stage
from vmreid.engine.universal import universal_form
from vmreid.errors import UserError
from vmreid.kernels import choose_backend
from vmreid.models.registry import check_backbone, scans_maps, weights_file
from vmreid.recipes import Recipe, dump_recipe
from vmreid.run_folder import RunFolder, write_atomically

MAY_CHANGE_ON_RESUME = (
    "data.workers",
    "data.shards",
    "data.cache_dir",
    "data.cache_gib",
    "data.skip_unreadable",
    "train.checkpoint_epochs",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.monitor_steps",
    "train.recompute",
    "evaluation.metric",
    "evaluation.batch_size",
    "evaluation.precision",
    "evaluation.flip",
    "evaluation.keep_features",
    "evaluation.protocol",
    "evaluation.memory_gib",
    "evaluation.both_directions",
    "evaluation.every_epochs",
    "evaluation.rerank",
    "evaluation.rerank.k1",
    "evaluation.rerank.k2",
    "evaluation.rerank.lambda_value",
)


@dataclass(frozen=True)
class Plan:
    """All that every rank needs to train; made on rank 0 and sent to the others."""

    recipe: Recipe
    folder: RunFolder
    sets: tuple[ShardSet, ...]
    deepspeed: dict[str, Any]
    deepspeed_path: Path
    scan_backend: str
    scan_reason: str
    checkpoint: Path | None  # to resume from
    form: Path | None  # of that, where another number of ranks wrote it
    judged_on: ShardSet | None  # where training is to evaluate

    @cached_property
    def data_digest(self) -> str:
        """What a resume must find again."""
        return digest_of_sets(self.sets)

    def batches(self) -> IdentityBatches:
        """The order of training, from the sets' indexes."""
        return identity_batches(self.recipe, [each.train_index() for each in self.sets], self.sets)


def prepare(recipe: Recipe, recipe_file: Path, out: Path, resume: bool, world: int, device: torch.device) -> Plan:
    """``make_plan``, and write what it needs: the folder's recipe and DeepSpeed JSON, a form for another number of ranks.

    Raises UserError.
    """
    plan = make_plan(recipe, recipe_file, out, resume, world, device)
    plan.folder.checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.folder.deepspeed_file, _as_text(plan.deepspeed))
    write_atomically(plan.folder.recipe_file, dump_recipe(plan.recipe))  # on a resume: launcher.evaluate reads what has changed
    if plan.checkpoint and state_of(plan.checkpoint).world != world and zero_stage(plan.deepspeed):
        return replace(plan, form=universal_form(plan.checkpoint))
    return plan


def make_plan(recipe: Recipe, recipe_file: Path, out: Path, resume: bool, world: int, device: torch.device) -> Plan:
    """Check recipe, data, DeepSpeed JSON and run folder; nothing is written. ``data.shards`` must be given. Raises UserError."""
    check_backbone(recipe.model)
    deepspeed_path, deepspeed = read_deepspeed_config(recipe.deepspeed_config, recipe_file)
    check_precision(deepspeed, recipe.model.backbone, deepspeed_path)
    if recipe.train.compile:
        check_compile(device, zero_stage(deepspeed), grows=recipe.model.depth_schedule is not None)
    check_split_over_ranks(recipe.identities_per_batch, world, accumulation_steps(deepspeed))
    scan_backend, scan_reason = choose_backend(
        recipe.model.scan_backend, device, scans_maps(recipe.model), recipe.train.deterministic
    )
    sets = training_sets(recipe.data)
    judged_on = evaluation_set(recipe.data) if recipe.evaluation.every_epochs else None
    identity_batches(recipe, [each.train_index() for each in sets], sets)
    folder = RunFolder(out)
    recipe = _with_whole_paths(recipe, folder)
    checkpoint = _checkpoint_of(folder, recipe, deepspeed, resume)
    if checkpoint:
        check_data(checkpoint, digest_of_sets(sets))
    return Plan(recipe, folder, sets, deepspeed, deepspeed_path, scan_backend, scan_reason, checkpoint, None, judged_on)


def identity_batches(recipe: Recipe, indexes: Sequence[np.ndarray], sets: Sequence[ShardSet]) -> IdentityBatches:
    """The order of training. Raises UserError where the sets have too few identities for it."""
    weights = [each.weight for each in sets]
    return IdentityBatches(indexes, recipe.identities_per_batch, recipe.data.pictures_per_identity, recipe.seed, weights)


def _with_whole_paths(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe as the run folder keeps it: readable from any current folder."""
    weights = recipe.model.weights and str(weights_file(recipe.model.weights).resolve())
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"weights": weights}),
            "data": with_whole_paths(recipe.data),
            "deepspeed_config": folder.deepspeed_file.name,
        }
    )


def _checkpoint_of(folder: RunFolder, recipe: Recipe, deepspeed: dict[str, Any], resume: bool) -> Path | None:
    """What a run in ``folder`` goes on from; None where it begins. Raises UserError where it may do neither."""
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{folder.path}: is a file; --out takes a folder")
    if not folder.recipe_file.is_file():
        return None
    if not resume:
        raise UserError(f"{folder.path}: holds a run already; add --resume auto to go on with it, or give a new --out")
    _check_same(folder, recipe)
    if folder.deepspeed_file.read_text() != _as_text(deepspeed):
        raise UserError(
            f"{folder.deepspeed_file}: differs from --deepspeed_config; leave that out to resume, or give a new --out"
        )
    checkpoint, problems = newest_sound(folder)
    for problem in problems:
        print(f"{problem}; going on from {checkpoint.name if checkpoint else 'the start'}", file=sys.stderr)
    return checkpoint


def _as_text(deepspeed: dict[str, Any]) -> str:
    return json.dumps(deepspeed, indent=2) + "\n"


def _check_same(folder: RunFolder, recipe: Recipe) -> None:
    before, now = flat(folder.recipe().model_dump()), flat(recipe.model_dump())
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in (*MAY_CHANGE_ON_RESUME, "deepspeed_config"):
            raise UserError(
                f"{folder.path}: was trained with {key} = {before.get(key)}, now it is {now.get(key)}; "
                f"resume with --out {folder.path} --resume auto alone, or give a new --out"
            )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
