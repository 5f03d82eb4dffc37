"""What a rank's memory will hold, by part, without training: parameters and their like counted, activations traced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from vmreid.engine.deepspeed_config import accumulation_steps, autocasts, bf16_parameters, zero_stage
from vmreid.models import BACKBONES, ReIDModel, build_backbone
from vmreid.models.registry import scans_maps
from vmreid.recipes import Recipe

FP32, BF16 = 4, 2
STATES = {"adamw": 2, "sgd": 1}  # numbers a parameter that the optimizer keeps
BUCKET = 500_000_000  # elements: DeepSpeed's own, where the JSON gives none


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part, on a rank's device and in the host's memory; ``activations`` None: not traced."""

    parameters: int
    gradients: int
    optimizer: int  # with the fp32 copy that stages 1 and 2 keep of a rank's share
    buckets: int  # DeepSpeed's, for gradients on their way
    activations: int | None
    host: int  # the optimizer's part and its gradients, where they are offloaded

    def device(self) -> int:
        """All of the device's parts."""
        return self.parameters + self.gradients + self.optimizer + self.buckets + (self.activations or 0)


def estimate_memory(recipe: Recipe, deepspeed: dict[str, Any], classes: int, world: int) -> MemoryEstimate:
    """What a rank of ``world`` holds at the peak of a step on a GPU, eager. What kernels take for a moment is not in it."""
    model = ReIDModel(build_backbone(recipe.model, recipe.data.image_size, "fused"), classes, recipe.data.mean, recipe.data.std)
    count, stage = sum(parameter.numel() for parameter in model.parameters()), zero_stage(deepspeed)
    section, low = deepspeed.get("zero_optimization", {}), bf16_parameters(deepspeed)
    share, size = -(-count // world), BF16 if low else FP32
    optimizer = STATES[recipe.optim.name] * FP32 * (share if stage else count)
    optimizer += FP32 * share if stage in (1, 2) or low else 0
    gradients = size * (count if stage < 2 else share)
    offloaded = stage > 0 and section.get("offload_optimizer", {}).get("device") == "cpu"
    buckets = sum([FP32, BF16] if autocasts(deepspeed) else [size]) * int(section.get("reduce_bucket_size", BUCKET))
    pictures = recipe.train.batch_size // (world * accumulation_steps(deepspeed))
    traceable = not BACKBONES[recipe.model.backbone].d_state or scans_maps(recipe.model)
    return MemoryEstimate(
        parameters=size * (share if stage == 3 else count),
        gradients=0 if offloaded else gradients,
        optimizer=0 if offloaded else optimizer,
        buckets=buckets if stage else 0,
        activations=saved_bytes(model, recipe, pictures, pictures * world, deepspeed) if traceable else None,
        host=gradients + optimizer if offloaded else 0,
    )


def saved_bytes(model: ReIDModel, recipe: Recipe, pictures: int, all_pictures: int, deepspeed: dict[str, Any]) -> int:
    """Bytes that autograd keeps between forward and backward: the backbone's for a rank's ``pictures``, the head's for all
    ranks'. Nothing is computed: the tensors have shapes alone. With ``train.recompute``: the blocks' inputs, and one block's."""
    if bf16_parameters(deepspeed):
        model.bfloat16()
    trace = _Trace()
    handles = [handle for block in model.backbone.repeated_blocks() for handle in trace.watch(block)]
    with FakeTensorMode() as mode:
        backbone, head = (
            {name: mode.from_tensor(v) for name, v in (*part.named_parameters(), *part.named_buffers())}
            for part in (model.backbone, model.head)
        )
        trace.ignore([*backbone.values(), *head.values()])
        image_BCHW = torch.empty(pictures, 3, *recipe.data.image_size, dtype=model.head.neck.weight.dtype)  # normalised
        with torch.autograd.graph.saved_tensors_hooks(trace.save, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocasts(deepspeed)):
                feature_BF = functional_call(model.backbone, {**backbone}, (image_BCHW,))
            feature_AF = feature_BF.float().new_empty(all_pictures, feature_BF.shape[1]).requires_grad_()
            _, logits_AC = functional_call(model.head, {**head}, (feature_AF,))
            F.cross_entropy(logits_AC, torch.zeros(all_pictures, dtype=torch.int64), label_smoothing=0.1)
    for handle in handles:
        handle.remove()
    if not recipe.train.recompute:
        return trace.kept.total()
    outside = trace.kept.pop(None, 0)
    return outside + trace.inputs + max(trace.kept.values())


class _Trace:
    """Which storages autograd keeps: their bytes by the block in which they were first kept, None: outside of all."""

    def __init__(self) -> None:
        self.inputs = 0
        self.kept: Counter[int | None] = Counter()
        self._block: int | None = None
        self._blocks = 0
        self._ignored: set[int] = set()
        self._tensors: dict[int, torch.Tensor] = {}  # held, so that no other gets the storage

    def ignore(self, tensors: Any) -> None:
        self._ignored = {tensor.untyped_storage()._cdata for tensor in tensors}

    def watch(self, block: torch.nn.Module) -> tuple[RemovableHandle, ...]:
        number = self._blocks
        self._blocks += 1

        def enter(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            self._block = number
            self.inputs += sum(each.nbytes for each in inputs if isinstance(each, torch.Tensor))

        def leave(*_: Any) -> None:
            self._block = None

        return block.register_forward_pre_hook(enter), block.register_forward_hook(leave)

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._ignored and storage._cdata not in self._tensors:
            self._tensors[storage._cdata] = tensor
            self.kept[self._block] += storage.nbytes()
        return tensor
