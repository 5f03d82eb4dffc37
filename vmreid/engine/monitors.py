"""Looks into the layers during training: what scans do, how large states, gradients and updates are, and what that means."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from vmreid.data.streams import Batch
from vmreid.engine.scan_statistics import scan_statistics
from vmreid.engine.start import gathered, whole_gradient
from vmreid.engine.training_module import TrainingModule
from vmreid.kernels.watch import Scanned, watching

PICTURES = 2  # of rank 0's part of a batch that are looked at, the same for every number of ranks


class Monitor:
    """All ranks, one for a look at one step: ``forward`` before its forward, ``backward`` between its last backward and the
    optimizer's step, ``after`` that. What training computes is not touched.

    ``numbers`` gives them by quantity, first block to last: what ``scan_statistics`` says of the blocks that scan,
    ``output_rms`` of what they return, ``gradient_norm`` of their parameters before clipping, ``update_share``: the norm of their
    weights' change over that of their weights.
    """

    def __init__(self, module: TrainingModule, autocast: bool) -> None:
        self._layers: defaultdict[str, list[torch.Tensor]] = defaultdict(list)  # scalars that nobody has waited for
        self._module, self._autocast = module, autocast
        self._before: list[list[torch.Tensor]] = []
        module.show_parameters()
        backbone = module.model.backbone
        names = {id(parameter): name for name, parameter in backbone.named_parameters()}
        self._blocks = [[names[id(parameter)] for parameter in block.parameters()] for block in backbone.repeated_blocks()]

    def forward(self, batch: Batch) -> None:
        """Run the backbone eagerly on a few pictures, without gradients."""

        def scanned(inputs: Scanned) -> None:
            for name, value in scan_statistics(inputs).items():
                self._layers[name].append(value)

        def left(_: nn.Module, __: Any, output: Any) -> None:
            self._layers["output_rms"].append(output.float().square().mean().sqrt())

        model, device = self._module.model, batch.images_BCHW.device.type
        handles = [block.register_forward_hook(left) for block in model.backbone.repeated_blocks()]
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self._autocast), watching(scanned):
            model.features(batch.images_BCHW[:PICTURES])
        for handle in handles:
            handle.remove()

    def backward(self) -> None:
        """Take the norms of the blocks' gradients, and keep their weights."""
        flat = self._module.flat
        pieces = flat.pieces_of(whole_gradient(flat.decay), whole_gradient(flat.no_decay)) if flat else {}
        for names in self._blocks:
            gradients = [pieces[name] if flat else whole_gradient(self._parameter(name)) for name in names]
            self._layers["gradient_norm"].append(_norm(gradients))
            self._before.append(self._weights(names))

    def after(self) -> None:
        """Compare the weights with those before the step."""
        self._module.show_parameters()
        for names, before in zip(self._blocks, self._before, strict=True):
            moved = _norm(torch._foreach_sub(self._weights(names), before))
            self._layers["update_share"].append(moved / _norm(before).clamp_min(1e-12))
        self._before = []

    def numbers(self) -> dict[str, list[float]]:
        """What was seen, fetched from the device in one go."""
        values = torch.stack([value.float() for values in self._layers.values() for value in values]).tolist()
        rest = iter(values)
        return {name: list(itertools.islice(rest, len(values))) for name, values in self._layers.items()}

    def _parameter(self, name: str) -> nn.Parameter:
        return self._module.model.backbone.get_parameter(name)

    def _weights(self, names: list[str]) -> list[torch.Tensor]:
        parameters = [self._parameter(name) for name in names]
        with gathered(parameters):
            return [parameter.detach().clone() for parameter in parameters]


def _norm(tensors: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]))
    return norm
