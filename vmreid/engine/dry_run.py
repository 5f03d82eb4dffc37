"""What a training run would be, in words: every value with its origin, the batch, the steps, a rank's memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vmreid.engine.checkpoint import state_of
from vmreid.engine.deepspeed_config import accumulation_steps, with_derived_keys
from vmreid.engine.estimate import MemoryEstimate, estimate_memory
from vmreid.engine.prepare import Plan, flat
from vmreid.models import BACKBONES
from vmreid.models.registry import resolved
from vmreid.recipes import Recipe
from vmreid.text_table import aligned

MOMENTARY = "measured peaks lay 5 to 24 % above the sum: docs/results/zero_stages.md"  # of that page's ten, none with recompute


def describe_plan(plan: Plan, given: Recipe, origins: Mapping[str, str], world: int) -> str:
    """The text for ``world`` ranks. ``given``: the recipe as it was read, before data was rendered for this look."""
    recipe, accumulation = plan.recipe, accumulation_steps(plan.deepspeed)
    batches = plan.batches()
    steps, epochs, train = batches.steps_per_epoch, recipe.train.epochs, recipe.train
    part = train.batch_size // (world * accumulation)
    model = {f"model.{key}": value for key, value in resolved(given.model).items()}
    values = [
        (key, json.dumps(value), origins[key]) if value is not None or key not in model
        else (key, json.dumps(model[key]), given.model.backbone)
        for key, value in flat(given.model_dump(mode="json")).items()
    ]  # fmt: skip
    derived = flat(with_derived_keys(plan.deepspeed, train.batch_size, world, native_bf16=True))
    own, name = flat(plan.deepspeed), plan.deepspeed_path.name
    values += [(f"deepspeed: {key}", json.dumps(value), name if key in own else "derived") for key, value in derived.items()]
    memory = estimate_memory(recipe, plan.deepspeed, batches.classes, world)
    start = f"from step {state_of(plan.checkpoint).step} ({plan.checkpoint})" if plan.checkpoint else "from the start"
    every = train.checkpoint_steps or train.checkpoint_epochs * steps
    return "\n".join(
        [
            aligned(("value", "", "origin"), values),
            "",
            *(each.description() for each in plan.sets),
            f"batch {train.batch_size} = {batches.identities} identities x {batches.pictures} pictures; on {world} ranks x "
            f"{accumulation} accumulation steps: {part} pictures a rank at once",
            f"{epochs * steps} steps = {epochs} epochs x {steps}, {start}; a checkpoint at least every {every}",
            *([f"selective scan here: {plan.scan_reason}"] if BACKBONES[recipe.model.backbone].d_state else []),
            "",
            memory_table(memory, plan.deepspeed_path, recipe.train.recompute),
            f"an estimate for eager steps on a GPU with vmreid's kernels; {MOMENTARY}",
        ]
    )


def memory_table(memory: MemoryEstimate, deepspeed: Path, recompute: bool) -> str:
    """A rank's bytes by part."""
    unknown = memory.activations is None
    what = "blocks' inputs and one block's (train.recompute)" if recompute else "of all blocks"
    rows = [
        ("parameters", _gib(memory.parameters), ""),
        ("gradients", _gib(memory.gradients), ""),
        ("optimizer state", _gib(memory.optimizer), "with a rank's fp32 copy, where ZeRO keeps one"),
        ("buckets", _gib(memory.buckets), f"zero_optimization.reduce_bucket_size of {deepspeed.name}"),
        (
            "activations",
            _gib(memory.activations),
            "not estimated: this backbone's scan is no kernel of vmreid" if unknown else what,
        ),
        ("sum without activations" if unknown else "sum", _gib(memory.device()), ""),
    ]
    if memory.host:
        rows.append(("in host memory", _gib(memory.host), "offload_optimizer"))
    return aligned(("a rank's memory", "GiB", ""), rows)


def _gib(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**30:.2f}"
