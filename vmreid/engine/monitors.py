"""Looks into the layers during training: what scans do, how large states, gradients and updates are, and what that means."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vmreid.data.streams import Batch
from vmreid.engine.scan_statistics import Scans
from vmreid.engine.start import gathered, whole_gradient
from vmreid.engine.training_module import TrainingModule
from vmreid.kernels.watch import watching

PICTURES = 2  # of rank 0's part of a batch that are looked at, the same for every number of ranks


class Monitor:
    """All ranks, one for a look at one step: ``forward`` before its forward, ``backward`` between its last backward and the
    optimizer's step, ``after`` that. What training computes is not touched.

    ``numbers`` gives them by quantity, first block to last: what ``scan_statistics`` says of the blocks that scan,
    ``output_rms`` of what they return, ``gradient_norm`` of their parameters before clipping, ``update_share``: the norm of their
    weights' change over that of their weights.
    """

    def __init__(self, module: TrainingModule, autocast: bool) -> None:
        self._layers: dict[str, list[torch.Tensor]] = {}  # of all blocks, in parts that nobody has waited for
        self._module, self._autocast = module, autocast
        self._before: list[torch.Tensor] = []
        module.show_parameters()
        backbone = module.model.backbone
        names = {id(parameter): name for name, parameter in backbone.named_parameters()}
        blocks = [list(block.parameters()) for block in backbone.repeated_blocks()]
        self._parameters = list(itertools.chain(*blocks))
        self._names, self._counts = [names[id(parameter)] for parameter in self._parameters], [len(block) for block in blocks]

    def forward(self, batch: Batch) -> None:
        """Run the backbone eagerly on a few pictures, without gradients."""
        scans, outputs = Scans(), list[torch.Tensor]()

        def left(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            outputs.append(output)

        model, device = self._module.model, batch.images_BCHW.device.type
        handles = [block.register_forward_hook(left) for block in model.backbone.repeated_blocks()]
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self._autocast), watching(scans.add):
            model.features(batch.images_BCHW[:PICTURES])
        for handle in handles:
            handle.remove()
        self._layers["output_rms"] = [norm / output.numel() ** 0.5 for norm, output in zip(_norms(outputs), outputs, strict=True)]
        self._layers |= scans.statistics()

    def backward(self) -> None:
        """Take the norms of the blocks' gradients, and keep their weights."""
        flat = self._module.flat
        pieces = flat.pieces_of(whole_gradient(flat.decay), whole_gradient(flat.no_decay)) if flat else {}
        self._layers["gradient_norm"] = [
            self._norm_of_blocks([pieces[name] for name in self._names] if flat else map(whole_gradient, self._parameters))
        ]
        with gathered(self._parameters), torch.no_grad():
            self._before = list(torch._foreach_mul([*self._parameters], 1.0))  # copies them in few kernels

    def after(self) -> None:
        """Compare the weights with those before the step."""
        self._module.show_parameters()
        with gathered(self._parameters), torch.no_grad():
            moved = torch._foreach_sub([*self._parameters], self._before)
        self._layers["update_share"] = [self._norm_of_blocks(moved) / self._norm_of_blocks(self._before).clamp_min(1e-12)]
        self._before = []

    def numbers(self) -> dict[str, list[float]]:
        """What was seen, fetched from the device in one go."""
        seen = {name: torch.cat([part.reshape(-1) for part in parts]) for name, parts in self._layers.items()}
        rest = iter(torch.cat(list(seen.values())).tolist())
        return {name: list(itertools.islice(rest, len(values))) for name, values in seen.items()}

    def _norm_of_blocks(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """[blocks] of a tensor for each of their parameters."""
        norm_N = torch.stack(_norms(list(tensors)))
        return torch.stack([torch.linalg.vector_norm(part) for part in torch.split(norm_N, self._counts)])


def _norms(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    norms: tuple[torch.Tensor, ...] = torch._foreach_norm(tensors, 2, dtype=torch.float32)
    return norms
