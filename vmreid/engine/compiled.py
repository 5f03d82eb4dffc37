"""The backbone as compiled kernels in CUDA graphs, with few parameters for the optimizer to look after."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from vmreid.errors import UserError
from vmreid.models import ReIDModel
from vmreid.optim import parameter_groups


def check_compile(device: torch.device, zero_stage: int, grows: bool = False) -> None:
    """Raise UserError where ``train.compile`` cannot be had."""
    if device.type != "cuda":
        raise UserError("train.compile true: makes CUDA graphs, and torch sees no GPU here; leave it out")
    if grows:
        raise UserError(
            "train.compile true: keeps a backbone's parameters in two, which a model.depth_schedule would have to cut; "
            "leave out one of them"
        )
    if zero_stage == 3:
        raise UserError(
            "train.compile true: ZeRO stage 3 gathers parameters between a backbone's layers, which one graph cannot; "
            "take a deepspeed_config of stage 0 to 2, or train.compile=false"
        )


class FlatBackbone(nn.Module):
    """Takes a model's features with parameters of its backbone that are cut from two: all that decay, and all that do not.

    DeepSpeed's work on the host follows the number of parameters, about 0.2 ms each in a step, and a graph's does not.
    The backbone's own parameters are trained no more: ``show`` makes them views of the two.
    """

    def __init__(self, model: ReIDModel) -> None:
        super().__init__()
        self._model = (model,)  # whose parameters are not this module's
        backbone = model.backbone
        self._names: list[list[str]] = []
        flats = []
        for group in parameter_groups(backbone, weight_decay=1.0):
            self._names.append(group["names"])
            flats.append(torch.cat([parameter.detach().flatten() for parameter in group["params"]]))
        self.decay = nn.Parameter(flats[0][None])  # two axes, as all that decays
        self.no_decay = nn.Parameter(flats[1])
        for flat in self.parameters():  # a graph's next run overwrites the gradients of its last
            flat.register_hook(torch.clone)  # type: ignore[no-untyped-call]
        backbone.requires_grad_(False)
        self.show()

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """As ``ReIDModel.features``."""
        (model,) = self._model
        feature_BF: torch.Tensor = functional_call(model.backbone, self._pieces(), (model.normalise(image_BCHW),))
        return feature_BF

    @torch.no_grad()
    def show(self) -> None:
        """Let the backbone's own parameters be what is trained. DeepSpeed moves the two, so ask again before each look."""
        for name, piece in self._pieces().items():
            self._model[0].backbone.get_parameter(name).data = piece

    def _pieces(self) -> dict[str, torch.Tensor]:
        return self.pieces_of(self.decay, self.no_decay)

    def pieces_of(self, decay: torch.Tensor, no_decay: torch.Tensor) -> dict[str, torch.Tensor]:
        """What belongs to each of the backbone's parameters, of two tensors with the shapes of these two."""
        pieces: dict[str, torch.Tensor] = {}
        for names, flat in zip(self._names, (decay, no_decay), strict=True):
            shapes = [self._model[0].backbone.get_parameter(name).shape for name in names]
            parts = torch.split(flat.flatten(), [shape.numel() for shape in shapes])
            pieces |= {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return pieces
