"""What a backbone costs on this machine: time over the number of tokens, and memory a picture."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmreid.models import build_backbone
from vmreid.precision import computes_bf16
from vmreid.recipes.schema import Model
from vmreid.timing import durations

GRIDS = ((8, 4), (16, 8), (32, 16))  # 32, 128, 512 patch tokens
BATCH = 2
REPEATS = 3
SECONDS = 1.0  # short steps are repeated for this long: on a busy machine few of them run undisturbed


def seconds_by_tokens(model: Model, scan_backend: str, device: torch.device) -> dict[int, float]:
    """Forward + backward of ``BATCH`` pictures over ``GRIDS``: the fastest of several after one to warm up."""
    seconds = {}
    for rows, columns in GRIDS:
        size = (rows * model.patch, columns * model.patch)
        step = _step(build_backbone(model, size, scan_backend).to(device), size, BATCH)
        step()
        seconds[rows * columns] = min(durations(step, device, REPEATS, SECONDS))
    return seconds


def peak_bytes_per_picture(model: Model, size: tuple[int, int], scan_backend: str, device: torch.device) -> float:
    """How much the peak of a forward + backward pass grows with each further picture, bytes; parameters fall out."""
    backbone = build_backbone(model, size, scan_backend).to(device)
    low, high = (_peak_bytes(_step(backbone, size, batch), device) for batch in (BATCH, 2 * BATCH))
    return (high - low) / BATCH


def _step(backbone: nn.Module, size: Sequence[int], batch: int) -> Callable[[], None]:
    device = next(backbone.parameters()).device
    images_BCHW = torch.randn(batch, 3, *size, device=device)

    def step() -> None:
        backbone.zero_grad(set_to_none=False)  # gradients that stay do not hide the activations' peak
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_bf16(device)):
            feature_BF = backbone(images_BCHW)
        feature_BF.float().square().sum().backward()

    return step


def _peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return int(torch.cuda.max_memory_allocated(device) - before)
    live = LiveBytes()
    with live:
        step()
    return live.peak


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operators make while it is on, as long as they live; ``peak`` is the most at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, torch.Tensor):
                self._known.add(given.untyped_storage())  # so that a view of what was there before is not counted
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        weakref.finalize(storage, self._forget, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, size: int) -> None:
        self.now -= size
