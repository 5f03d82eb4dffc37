"""Backbones by name: their dimensions, and the one function that builds them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from vmreid.errors import UserError
from vmreid.models.backbone import Backbone
from vmreid.models.initialise import start_otherwise
from vmreid.models.mamba_s import MambaS
from vmreid.models.mamba_v2 import MambaV2
from vmreid.models.vim import Vim
from vmreid.models.vit import ViT
from vmreid.models.vmamba import vmamba
from vmreid.recipes.load import suggestion
from vmreid.recipes.schema import Model, Start
from vmreid.run_folder import WEIGHTS, RunFolder

OWN = "backbone."  # how a run's weights file names the backbone's tensors


@dataclass(frozen=True)
class Definition:
    """What a backbone's name stands for; the recipe may change the fields that are not None.

    ``dim`` and ``depth`` of a VMAMBA are those of ``vmamba``: channels of its first stage, blocks of its third.
    """

    family: Callable[..., Backbone]
    dim: int
    depth: int
    heads: int | None = None
    expand: int | None = None
    d_state: int | None = None
    patches: bool = True  # whether pictures are cut into patches of model.patch
    maps: bool = False  # whether it scans maps in four directions


DINO = partial(ViT, layer_scale=1e-5)
BACKBONES = {
    "VIT-T": Definition(ViT, dim=192, depth=12, heads=3),
    "VIT-S": Definition(ViT, dim=384, depth=12, heads=6),
    "VIT-B": Definition(ViT, dim=768, depth=12, heads=12),
    "DINOV2-S": Definition(DINO, dim=384, depth=12, heads=6),
    "DINOV2-B": Definition(DINO, dim=768, depth=12, heads=12),
    "MAMBA-S": Definition(MambaS, dim=384, depth=8, heads=1, expand=2),
    "MAMBA-V2": Definition(MambaV2, dim=384, depth=8, expand=2, d_state=16, maps=True),
    "VMAMBA-T": Definition(vmamba, dim=96, depth=8, expand=1, d_state=1, patches=False, maps=True),
    "VMAMBA-S": Definition(vmamba, dim=96, depth=15, expand=2, d_state=1, patches=False, maps=True),
    "VMAMBA-B": Definition(vmamba, dim=128, depth=15, expand=2, d_state=1, patches=False, maps=True),
    "VMAMBA-T-V0": Definition(partial(vmamba, vanilla=True), dim=96, depth=9, expand=2, d_state=16, patches=False, maps=True),
    "VIM-T": Definition(Vim, dim=192, depth=24, expand=2, d_state=16),
    "VIM-S": Definition(Vim, dim=384, depth=24, expand=2, d_state=16),
}


def check_backbone(model: Model) -> None:
    """Raise UserError for an unknown backbone, a setting that it does not have, or weights that are not there."""
    if model.backbone not in BACKBONES:
        known = list(BACKBONES)
        raise UserError(
            f"backbone {model.backbone}: unknown; the backbones are {', '.join(known)}{suggestion(model.backbone, known)}"
        )
    definition = BACKBONES[model.backbone]
    for field in ("heads", "expand", "d_state"):
        if getattr(model, field) is not None and getattr(definition, field) is None:
            raise UserError(f"model.{field} {getattr(model, field)}: {model.backbone} has no such setting; leave it out")
    scan = ("A", "delta")
    if not definition.d_state and model.start.model_dump(include=set(scan)) != Start().model_dump(include=set(scan)):
        raise UserError(f"model.start.A and delta: {model.backbone} has no selective scan; leave them out")
    if not definition.patches and model.patch != Model.model_fields["patch"].default:
        raise UserError(f"model.patch {model.patch}: {model.backbone} has no such setting; leave it out")
    if model.weights is not None:
        weights_file(model.weights)
    values = resolved(model)
    if values.get("heads") and values["dim"] * values.get("expand", 1) % values["heads"]:
        raise UserError(f"model.heads {values['heads']}: must divide the {values['dim'] * values.get('expand', 1)} channels")


def weights_file(given: str) -> Path:
    """The file that ``model.weights`` stands for: itself, or the newest weights of a run's folder. Raises UserError."""
    path = Path(given)
    if path.is_dir():
        run = RunFolder(path)
        if run.latest() is None:
            raise UserError(f"model.weights {given}: a folder without a checkpoint; give a trained run's folder, or a file")
        path = run.checkpoint(None) / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"model.weights {given}: no such file; give a published checkpoint, a run's folder, or null to start from scratch"
        )
    return path


def scans_maps(model: Model) -> bool:
    """Whether the backbone scans maps in four directions, as ``vmreid.kernels.choose_backend`` wants to know."""
    return BACKBONES[model.backbone].maps


def resolved(model: Model) -> dict[str, int]:
    """The backbone's dimensions with the recipe's deviations; of one that grows, at its last depth."""
    definition = BACKBONES[model.backbone]
    fields = ("dim", "depth", "heads", "expand", "d_state")
    values = {field: getattr(model, field) or getattr(definition, field) for field in fields}
    if model.depth_schedule:
        values["depth"] = model.depth_schedule[-1][1]
    return {field: value for field, value in values.items() if value is not None}


def build_backbone(model: Model, image_size: tuple[int, int], scan_backend: str) -> Backbone:
    """The backbone, initialised from torch's current random state, without published weights.

    ``scan_backend``: as ``vmreid.kernels.choose_backend`` returned it; used by what has a ``d_state``.
    """
    check_backbone(model)
    settings: dict[str, int | str] = {**resolved(model)}
    if BACKBONES[model.backbone].patches:
        settings["patch"] = model.patch
    if "d_state" in settings:
        settings["scan_backend"] = scan_backend
    backbone = BACKBONES[model.backbone].family(image_size, **settings)
    start_otherwise(backbone, model.start)
    return backbone


def load_weights(backbone: Backbone, path: Path) -> str:
    """Load another run's backbone or a published one (.safetensors, .pth, .pt, .bin; never unpickling code).

    Returns a one-line report of what was matched. Raises UserError where the file does not fit.
    """
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals([Namespace]):  # training's options, which many files hold beside the weights
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not readable as weights ({str(error).splitlines()[0]}); give a plain state dict") from None
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise UserError(f"{path}: is not a state dict, names with tensors and nothing else; give a plain state dict")
    if any(name.startswith(OWN) for name in state):
        return _load_own(backbone, state, path)
    return backbone.load_published(state, path.name)


def _load_own(backbone: Backbone, state: dict[str, torch.Tensor], path: Path) -> str:
    own = backbone.state_dict()
    given = {name.removeprefix(OWN): value for name, value in state.items() if name.startswith(OWN)}
    for name in sorted(own.keys() | given.keys()):
        here, there = (list(values[name].shape) if name in values else "nothing" for values in (own, given))
        if here != there:
            raise UserError(
                f"{path}: {name} is {there} there and {here} here; give a run of the same backbone and data.image_size"
            )
    backbone.load_state_dict(given)
    return f"{len(given)} tensors from {path}, left: {', '.join(sorted(set(state) - {OWN + name for name in given}))}"
