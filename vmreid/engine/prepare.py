"""Rank 0, before the process group starts: read and check everything, so that what is wrong is said once and at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def prepare(recipe: Recipe, recipe_file: Path, out: Path, resume: bool, world: int, device: torch.device) -> Plan:
    """Check recipe, data, DeepSpeed JSON and run folder, and write the folder's recipe. ``data.shards`` must be given.

    Raises UserError.
    """
    check_backbone(recipe.model)
    deepspeed_path, deepspeed = read_deepspeed_config(recipe.deepspeed_config, recipe_file)
    check_precision(deepspeed, recipe.model.backbone, deepspeed_path)
    if recipe.train.compile:
        check_compile(device, zero_stage(deepspeed))
    check_split_over_ranks(recipe.identities_per_batch, world, accumulation_steps(deepspeed))
    scan_backend, scan_reason = choose_backend(
        recipe.model.scan_backend, device, scans_maps(recipe.model), recipe.train.deterministic
    )
    sets = training_sets(recipe.data)
    judged_on = evaluation_set(recipe.data) if recipe.evaluation.every_epochs else None
    identity_batches(recipe, [each.train_index() for each in sets], sets)
    folder = RunFolder(out)
    recipe = _with_whole_paths(recipe, folder)
    checkpoint = _prepare_folder(folder, recipe, deepspeed, resume)
    form = None
    if checkpoint:
        check_data(checkpoint, digest_of_sets(sets))
        if state_of(checkpoint).world != world and zero_stage(deepspeed):
            form = universal_form(checkpoint)
    return Plan(recipe, folder, sets, deepspeed, deepspeed_path, scan_backend, scan_reason, checkpoint, form, judged_on)


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


def _prepare_folder(folder: RunFolder, recipe: Recipe, deepspeed: dict[str, Any], resume: bool) -> Path | None:
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{folder.path}: is a file; --out takes a folder")
    text = json.dumps(deepspeed, indent=2) + "\n"
    if folder.recipe_file.is_file():
        if not resume:
            raise UserError(f"{folder.path}: holds a run already; add --resume auto to go on with it, or give a new --out")
        _check_same(folder, recipe)
        if folder.deepspeed_file.read_text() != text:
            raise UserError(
                f"{folder.deepspeed_file}: differs from --deepspeed_config; leave that out to resume, or give a new --out"
            )
        write_atomically(folder.recipe_file, dump_recipe(recipe))  # launcher.evaluate reads from it what may have changed
        checkpoint, problems = newest_sound(folder)
        for problem in problems:
            print(f"{problem}; going on from {checkpoint.name if checkpoint else 'the start'}", file=sys.stderr)
        return checkpoint
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.deepspeed_file, text)
    write_atomically(folder.recipe_file, dump_recipe(recipe))
    return None


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
