"""The first non-finite value stops the run with its place; the last good checkpoint stays, and what replays it is kept.

It is looked for in a plain copy of the model, so that neither ZeRO nor a compiled graph stands in the way.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn

from vmreid.data.streams import Batch
from vmreid.distributed import concatenate_over_ranks
from vmreid.engine.deepspeed_config import autocasts, read_deepspeed_config
from vmreid.engine.training_module import TrainingModule
from vmreid.errors import UserError
from vmreid.kernels import choose_backend
from vmreid.models import ReIDModel, build_backbone, scans_maps
from vmreid.precision import computes_bf16
from vmreid.recipes import Recipe
from vmreid.run_folder import WEIGHTS, RunFolder, write_atomically

BATCH, FAULT = "batch.safetensors", "fault.json"


@dataclass(frozen=True)
class Fault:
    """Where a non-finite value came up first: ``order`` in the step, in words, on which rank, and in which pictures."""

    order: int
    where: str
    rank: int
    rows: list[int]  # index rows of the pictures whose values are not finite; empty where it is no matter of pictures

    def in_pictures(self, most: int | None = None) -> str:
        """Which pictures, ``most`` of them, as the end of a sentence; nothing where it is no matter of pictures."""
        return f", pictures in rows {', '.join(map(str, self.rows[:most]))} of the index" if self.rows else ""


def plain_copy(recipe: Recipe, scan_backend: str, weights: dict[str, torch.Tensor], device: torch.device) -> TrainingModule:
    """The training module without DeepSpeed, with a checkpoint's ``weights``."""
    backbone = build_backbone(recipe.model, recipe.data.image_size, scan_backend)
    model = ReIDModel(backbone, len(weights["head.classifier.weight"]), recipe.data.mean, recipe.data.std)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return TrainingModule(model.to(device), recipe.loss)


def locate(module: TrainingModule, batch: Batch, autocast: bool) -> Fault | None:
    """All ranks. Take a step's forward and backward again, watching; the first fault of any rank, or None where all is finite."""
    watch = _Watch(batch)
    handles = [handle for name, child in module.named_modules() if name for handle in watch.handles(name, child)]
    with torch.autocast(batch.images_BCHW.device.type, torch.bfloat16, enabled=autocast):
        loss = module(batch).loss
    if not watch.found:
        loss.backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and not _finite(parameter.grad):
                watch.add(f"gradient of {name}", [])
    for handle in handles:
        handle.remove()
    faults: list[Fault | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, watch.found[0] if watch.found else None)
    return min((fault for fault in faults if fault), key=lambda fault: (fault.order, fault.rank), default=None)


def keep_fault(
    folder: RunFolder,
    step: int,
    fault: Fault | None,
    seen_in: str,
    batch: Batch,
    weights: dict[str, torch.Tensor],
    digest: str,
    depth: int | None,
) -> Path:
    """All ranks. The folder with the global batch, the weights before the step, and where; a line in ``non_finite.jsonl``."""
    place = folder.path / "non_finite" / f"step-{step:06d}"
    parts = {each.name: concatenate_over_ranks(getattr(batch, each.name)).cpu().contiguous() for each in fields(Batch)}
    if dist.get_rank() == 0:
        place.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(parts, place / BATCH)
        safetensors.torch.save_file(weights, place / WEIGHTS)
        what = asdict(fault) if fault else {"where": seen_in}
        line = json.dumps({"step": step, **what, "batch_digest": digest, "depth": depth})
        write_atomically(place / FAULT, line + "\n")
        with folder.non_finite_file.open("a") as file:
            file.write(line + "\n")
    return place


def non_finite(step: int, fault: Fault | None, seen_in: str, place: Path) -> UserError:
    """The error for a NaN or an infinity, which no weight has felt."""
    where = f"{fault.where} on rank {fault.rank}{fault.in_pictures(5)}" if fault else seen_in
    return UserError(
        f"step {step}: non-finite value, first in {where}; the last checkpoint is kept, {place} holds what replays it (python -m "
        "launcher.doctor --replay). Lower optim.lr or lengthen optim.warmup_epochs, and see that gradient_clipping is on"
    )


def replay(place: Path, device: torch.device) -> Fault | None:
    """One rank, in a process group. What ``locate`` finds for a kept fault. Raises UserError where ``place`` holds none."""
    if not (place / FAULT).is_file():
        raise UserError(f"{place}: holds no {FAULT}; give a folder that a stop has left, RUN/non_finite/step-NNNNNN")
    recipe, depth = RunFolder(place.parents[1]).recipe(), json.loads((place / FAULT).read_text())["depth"]
    recipe = recipe.model_copy(update={"model": recipe.model.at_depth(depth)})
    weights = safetensors.torch.load_file(place / WEIGHTS)
    batch = Batch(**{name: value.to(device) for name, value in safetensors.torch.load_file(place / BATCH).items()})
    scan_backend, _ = choose_backend(recipe.model.scan_backend, device, scans_maps(recipe.model))
    _, deepspeed = read_deepspeed_config(str(place.parents[1] / recipe.deepspeed_config), place.parents[1])
    autocast = autocasts(deepspeed) and computes_bf16(device)
    return locate(plain_copy(recipe, scan_backend, weights, device), batch, autocast)


class _Watch:
    """Hooks that note what is not finite, in the order of the step."""

    def __init__(self, batch: Batch) -> None:
        self.found: list[Fault] = []
        self._batch = batch
        self._seen = 0

    def add(self, where: str, rows: list[int]) -> None:
        self.found.append(Fault(self._seen, where, dist.get_rank(), rows))

    def handles(self, name: str, child: nn.Module) -> list[Any]:
        def forward(_: nn.Module, __: Any, output: Any) -> None:
            self._seen += 1
            for own, parameter in child.named_parameters(recurse=False):
                if not _finite(parameter):
                    self.add(f"parameter {name}.{own}", [])
            for tensor in _tensors(output):
                if not _finite(tensor):
                    self.add(f"output of {name} ({type(child).__name__})", self._rows(tensor))

        def backward(_: nn.Module, inputs: Any, outputs: Any) -> None:
            self._seen += 1
            if all(map(_finite, _tensors(outputs))) and not all(map(_finite, _tensors(inputs))):
                self.add(f"backward of {name} ({type(child).__name__})", [])

        return [child.register_forward_hook(forward), child.register_full_backward_hook(backward)]

    def _rows(self, tensor: torch.Tensor) -> list[int]:
        if tensor.ndim == 0 or len(tensor) != len(self._batch.rows_B):
            return []
        bad_B = ~tensor.detach().reshape(len(tensor), -1).isfinite().all(dim=1)
        return [] if bad_B.all() else [int(row) for row in self._batch.rows_B[bad_B]]


def _tensors(values: Any) -> list[torch.Tensor]:
    return [each for each in (values if isinstance(values, tuple) else (values,)) if isinstance(each, torch.Tensor)]


def _finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())
