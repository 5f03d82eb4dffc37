"""Training steps of several backbones over several numbers of tokens, through each loop, one after the other."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch

from vmreid.benchmarks.figures import Figures, measure
from vmreid.benchmarks.loops import CLASSES, LOOPS, Setup, loops_of
from vmreid.benchmarks.rows import Row
from vmreid.benchmarks.tokens import map_of
from vmreid.benchmarks.vmamba_checkout import NETWORKS, PREFIX, VMambaCheckout
from vmreid.engine.compiled import check_compile
from vmreid.engine.deepspeed_config import precision_name, read_deepspeed_config, zero_stage
from vmreid.errors import UserError
from vmreid.kernels import choose_backend
from vmreid.models import build_backbone
from vmreid.models.registry import check_backbone, scans_maps
from vmreid.precision import computes_bf16
from vmreid.recipes import Recipe, find_recipe, load_recipe
from vmreid.timing import device_name
from vmreid.versions import versions

RECIPE = "note"  # gives all that --backbones, --tokens and --batch_size leave open: K, losses, optimizer, DeepSpeed JSON


class ModelBenchmark:
    """What is to be measured, checked before anything is. Raises UserError for a name or a number that cannot be.

    ``backbones``: names, each alone or with deviations as the recipe has them in ``model``, as in "VIT-S,depth=5".
    ``against``: "timm" or "vmamba=PATH", each for the backbones that it has too; nothing: timm for those.
    ``compiled``: all loops as ``train.compile`` has them. ``deepspeed_config``: a JSON by name or path; None: the recipe's.
    """

    def __init__(
        self,
        backbones: list[str],
        tokens: list[int],
        batch_size: int,
        against: list[str],
        device: torch.device,
        compiled: bool = False,
        deepspeed_config: str | None = None,
    ) -> None:
        self.device, self.batch_size = device, batch_size
        self.recipes = {(backbone, count): _recipe(backbone, count, batch_size) for backbone in backbones for count in tokens}
        recipe = next(iter(self.recipes.values()))
        _, self.deepspeed = read_deepspeed_config(deepspeed_config or recipe.deepspeed_config, find_recipe(RECIPE))
        if compiled:
            check_compile(device, zero_stage(self.deepspeed))
        self.scans = {
            backbone: choose_backend(one.model.scan_backend, device, scans_maps(one.model))
            for (backbone, _), one in self.recipes.items()
        }
        names = {backbone: one.model.backbone for (backbone, _), one in self.recipes.items()}
        self.vmamba = _vmamba(against, list(names.values()), device)
        build = self.vmamba.network if self.vmamba else None
        self.networks = {backbone: build(name) for backbone, name in names.items() if build and name in NETWORKS}
        peers = {word.partition("=")[0] for word in against or ["timm"]}
        self.cases = [
            (backbone, count, loop) for backbone, count in self.recipes for loop in loops_of(names[backbone], peers, compiled)
        ]

    def rows(self) -> Iterator[Row]:
        """In a process group of one. Measure one case after the other, and release its memory."""
        for backbone, count, loop in self.cases:
            recipe = self.recipes[backbone, count]
            setup = Setup(recipe, self.deepspeed, self.scans[backbone][0], self.device, self.networks.get(backbone))
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
            "parameters": {backbone: _parameters(recipe) for (backbone, _), recipe in self.recipes.items()},
            "scan_backend": {backbone: backend for backbone, (backend, _) in self.scans.items()},
            "scan_reason": {backbone: reason for backbone, (_, reason) in self.scans.items()},
            "peers": {"vmamba": str(self.vmamba)} if self.vmamba else {},
        }


def _vmamba(against: list[str], backbones: list[str], device: torch.device) -> VMambaCheckout | None:
    """The checkout that ``against`` names, if any, when all of it is found to be a peer of one of the backbones."""
    paths = []
    for word in dict.fromkeys(against):
        peer = word.partition("=")[0]
        if word != "timm" and not word.startswith(PREFIX):
            raise UserError(f"--against {word}: unknown; the peers of whole models are timm and vmamba=PATH")
        if all(loops_of(name, {peer}) == loops_of(name, ()) for name in backbones):
            example = "VIT-S" if peer == "timm" else "VMAMBA-T"
            raise UserError(f"--against {word}: has none of {', '.join(backbones)}; add a backbone such as {example}")
        if word.startswith(PREFIX):
            paths.append(word)
    if len(paths) > 1:
        raise UserError(f"--against {paths[1]}: a second checkout; give one")
    return VMambaCheckout(paths[0], device) if paths else None


def _parameters(recipe: Recipe) -> int:
    """Of the backbone; positions count with the last number of tokens."""
    with torch.device("meta"):
        backbone = build_backbone(recipe.model, recipe.data.image_size, "reference")
    return sum(parameter.numel() for parameter in backbone.parameters())


def _recipe(backbone: str, tokens: int, batch_size: int) -> Recipe:
    """The recipe with its backbone, its pictures twice as high as wide, and its batch size."""
    name, *deviations = backbone.split(",")
    settings = [f"model.{deviation}" for deviation in deviations]
    recipe = load_recipe(RECIPE, {"model.backbone": ("--backbones", name)}, settings)
    check_backbone(recipe.model)
    pictures = recipe.data.pictures_per_identity
    if batch_size < 1 or batch_size % pictures:
        raise UserError(f"--batch_size {batch_size}: must be a multiple of {pictures}, the pictures of an identity in a batch")
    size = [side * recipe.model.patch for side in map_of(tokens)]
    flags = {"model.backbone": ("--backbones", name), "train.batch_size": ("--batch_size", str(batch_size))}
    return load_recipe(RECIPE, flags, [*settings, f"data.image_size={size}"])


def _figures(loop: str, setup: Setup) -> Figures:
    torch.manual_seed(setup.recipe.seed)
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
    built = LOOPS[loop](setup)
    try:
        return measure(built, setup.recipe.train.batch_size, setup.device)
    finally:
        built.close()
