"""The training loops that are compared: DeepSpeed's engine as training uses it, the same without, and bare networks of others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.benchmarks.vmamba_checkout import NETWORKS
from vmreid.data.streams import Batch
from vmreid.engine.deepspeed_config import with_derived_keys
from vmreid.engine.start import make_engine
from vmreid.engine.training_module import TrainingModule
from vmreid.models import BACKBONES, ReIDModel, build_backbone
from vmreid.models.registry import resolved
from vmreid.models.vit import ViT, timm_vit
from vmreid.optim import build_optimizer
from vmreid.precision import computes_bf16
from vmreid.recipes import Recipe

CLASSES = 1000


@dataclass(frozen=True)
class Setup:
    """What a loop trains, and on what. ``deepspeed`` is the JSON as in ``ds_configs``; ``vmamba`` builds its network."""

    recipe: Recipe
    deepspeed: dict[str, Any]
    scan_backend: str
    device: torch.device
    vmamba: Callable[[], nn.Module] | None = None

    def derived_config(self) -> dict[str, Any]:
        """The config that DeepSpeed gets from this one process; the bare loop clips by it too."""
        return with_derived_keys(self.deepspeed, self.recipe.train.batch_size, 1, computes_bf16(self.device))


@dataclass(frozen=True)
class Loop:
    """The three parts of a training step over one batch that stays on the device: loss, gradients, clipping + update."""

    module: nn.Module
    forward: Callable[[], torch.Tensor]
    backward: Callable[[torch.Tensor], Any]
    update: Callable[[], Any]
    close: Callable[[], Any] = lambda: None

    def step(self) -> None:
        """One whole training step."""
        self.backward(self.forward())
        self.update()


def deepspeed_loop(setup: Setup) -> Loop:
    """What ``Trainer`` steps, less its data and its look at the loss, for which it waits in each step."""
    module, batch = _training_module(setup), random_batch(setup)
    engine = make_engine(module, build_optimizer(module.model, setup.recipe.optim), setup.derived_config())
    return Loop(module, lambda: engine(batch).loss, engine.backward, engine.step, engine.destroy)


def plain_loop(setup: Setup, graph: bool = False) -> Loop:
    """The same module, precision, clipping and optimizer in a bare PyTorch loop; ``graph``: the backbone as CUDA graphs."""
    module, batch = _training_module(setup), random_batch(setup)
    if graph:
        _make_graphs(module.model.backbone, setup)
    optimizer = build_optimizer(module.model, setup.recipe.optim)
    return _bare(module, optimizer, lambda: module(batch).loss, setup.derived_config()["gradient_clipping"], setup.device)


def timm_loop(setup: Setup) -> Loop:
    """timm's ViT as a classifier."""
    settings = setup.recipe.model
    return _classifier(timm_vit(setup.recipe.data.image_size, settings.patch, **resolved(settings), classes=CLASSES), setup)


def vmamba_loop(setup: Setup, graph: bool = False) -> Loop:
    """VMamba's own network, of the user's checkout, as a classifier; ``graph``: as CUDA graphs."""
    assert setup.vmamba
    return _classifier(setup.vmamba(), setup, graph)


def _classifier(network: nn.Module, setup: Setup, graph: bool = False) -> Loop:
    """Cross entropy, AdamW, no clipping, no re-ID head."""
    network.to(setup.device)
    batch, optim = random_batch(setup), setup.recipe.optim
    if graph:
        _make_graphs(network, setup)
    fused = setup.device.type == "cuda"
    optimizer = torch.optim.AdamW(network.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)

    def loss() -> torch.Tensor:
        images_BCHW = (batch.images_BCHW.float() / 255 - 0.5) / 0.5
        return F.cross_entropy(network(images_BCHW), batch.ids_B)

    return _bare(network, optimizer, loss, 0, setup.device)


LOOPS: dict[str, Callable[[Setup], Loop]] = {
    "deepspeed": deepspeed_loop,
    "plain": plain_loop,
    "timm": timm_loop,
    "vmamba": vmamba_loop,
    "plain graph": partial(plain_loop, graph=True),
    "vmamba graph": partial(vmamba_loop, graph=True),
}
PEERS = {"timm": ["timm"], "vmamba": ["vmamba", "plain graph", "vmamba graph"]}  # the loops that a peer adds


def loops_of(backbone: str, peers: Collection[str]) -> list[str]:
    """Names of the loops that can train ``backbone``, with those of the ``peers`` that have it too."""
    has = {"timm": BACKBONES[backbone].family is ViT, "vmamba": backbone in NETWORKS}
    return ["deepspeed", "plain", *(loop for peer, loops in PEERS.items() if peer in peers and has[peer] for loop in loops)]


def random_batch(setup: Setup) -> Batch:
    """P x K random pictures on the device, from torch's current random state."""
    size, device = setup.recipe.train.batch_size, setup.device
    images_BCHW = torch.randint(0, 256, (size, 3, *setup.recipe.data.image_size), dtype=torch.uint8, device=device)
    rows_B = torch.arange(size, device=device)
    ids_B = rows_B // setup.recipe.data.pictures_per_identity % CLASSES
    zeros_B = torch.zeros_like(rows_B)
    return Batch(images_BCHW, ids_B, zeros_B, rows_B, rows_B, zeros_B)


def _training_module(setup: Setup) -> TrainingModule:
    data = setup.recipe.data
    backbone = build_backbone(setup.recipe.model, data.image_size, setup.scan_backend)
    model = ReIDModel(backbone, CLASSES, data.mean, data.std).to(setup.device)
    return TrainingModule(model, setup.recipe.loss)


def _make_graphs(network: nn.Module, setup: Setup) -> None:
    """Let the network's forward and backward each be one CUDA graph from now on, in the loops' precision."""
    images_BCHW = torch.zeros(setup.recipe.train.batch_size, 3, *setup.recipe.data.image_size, device=setup.device)
    with torch.autocast(setup.device.type, dtype=torch.bfloat16, cache_enabled=False):
        torch.cuda.make_graphed_callables(network, (images_BCHW,))


def _bare(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], torch.Tensor],
    clipping: float,  # largest gradient norm; 0: off
    device: torch.device,
) -> Loop:
    parameters = list(module.parameters())

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_bf16(device)):
            return loss()

    def update() -> None:
        if clipping:
            torch.nn.utils.clip_grad_norm_(parameters, clipping)
        optimizer.step()
        optimizer.zero_grad()

    return Loop(module, forward, torch.Tensor.backward, update)
