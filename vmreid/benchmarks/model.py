"""Training steps of several backbones over several numbers of tokens, through each loop, one after the other."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from typing import Any

import torch

from vmreid.benchmarks.figures import Figures, measure
from vmreid.benchmarks.loops import CLASSES, LOOPS, Setup, loops_of
from vmreid.benchmarks.rows import Row
from vmreid.engine.deepspeed_config import precision_name, read_deepspeed_config
from vmreid.errors import UserError
from vmreid.kernels import choose_backend
from vmreid.models.registry import check_backbone
from vmreid.precision import computes_bf16
from vmreid.recipes import Recipe, find_recipe, load_recipe
from vmreid.timing import device_name
from vmreid.versions import versions

RECIPE = "note"  # gives all that --backbones, --tokens and --batch_size leave open: K, losses, optimizer, DeepSpeed JSON


class ModelBenchmark:
    """What is to be measured, checked before anything is. Raises UserError for a name or a number that cannot be."""

    def __init__(self, backbones: list[str], tokens: list[int], batch_size: int, device: torch.device) -> None:
        self.device, self.batch_size = device, batch_size
        self.recipes = {(backbone, count): _recipe(backbone, count, batch_size) for backbone in backbones for count in tokens}
        recipe = next(iter(self.recipes.values()))
        _, self.deepspeed = read_deepspeed_config(recipe.deepspeed_config, find_recipe(RECIPE))
        self.scan_backend, self.scan_reason = choose_backend(recipe.model.scan_backend, device)
        self.cases = [(backbone, count, loop) for backbone, count in self.recipes for loop in loops_of(backbone)]

    def rows(self) -> Iterator[Row]:
        """In a process group of one. Measure one case after the other, and release its memory."""
        for backbone, count, loop in self.cases:
            recipe = self.recipes[backbone, count]
            setup = Setup(recipe, self.deepspeed, self.scan_backend, self.device)
            figures = None
            with contextlib.suppress(torch.OutOfMemoryError):
                figures = _figures(loop, setup)
            gc.collect()  # here the traceback, which held the loop's tensors, is gone too
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            yield Row(backbone, count, recipe.data.image_size, loop, "measured" if figures else "out of memory", figures)

    def setting(self, command: str) -> dict[str, Any]:
        """What the figures hold for."""
        return {
            "command": command,
            "device": device_name(self.device),
            "versions": versions(),
            "batch_size": self.batch_size,
            "classes": CLASSES,
            "recipe": RECIPE,
            "deepspeed": self.deepspeed,
            "precision": precision_name(self.deepspeed, computes_bf16(self.device)),
            "scan_backend": self.scan_backend,
            "scan_reason": self.scan_reason,
        }


def _recipe(backbone: str, tokens: int, batch_size: int) -> Recipe:
    """The recipe with its backbone, its pictures twice as high as wide, and its batch size."""
    recipe = load_recipe(RECIPE, {"model.backbone": ("--backbones", backbone)}, [])
    check_backbone(recipe.model)
    pictures = recipe.data.pictures_per_identity
    if batch_size < 1 or batch_size % pictures:
        raise UserError(f"--batch_size {batch_size}: must be a multiple of {pictures}, the pictures of an identity in a batch")
    width = max(1, round(math.sqrt((tokens - 1) / 2))) if tokens > 1 else 1
    if tokens != 2 * width**2 + 1:
        raise UserError(
            f"--tokens {tokens}: must be 2·m² + 1, the patches of a picture twice as high as wide and the class token; the "
            f"nearest is {2 * width**2 + 1}"
        )
    size = [2 * width * recipe.model.patch, width * recipe.model.patch]
    flags = {"model.backbone": ("--backbones", backbone), "train.batch_size": ("--batch_size", str(batch_size))}
    return load_recipe(RECIPE, flags, [f"data.image_size={size}"])


def _figures(loop: str, setup: Setup) -> Figures:
    torch.manual_seed(setup.recipe.seed)
    built = LOOPS[loop](setup)
    try:
        return measure(built, setup.recipe.train.batch_size, setup.device)
    finally:
        built.close()
