"""The training loops that are compared: DeepSpeed's engine as training uses it, the same without, and bare networks of others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.benchmarks.vmamba_checkout import NETWORKS
from vmreid.data.streams import Batch
from vmreid.distributed import world_size
from vmreid.engine.deepspeed_config import precision_name, with_derived_keys
from vmreid.engine.start import end_engine, make_engine, take_step
from vmreid.engine.training_module import TrainingModule
from vmreid.graphs import as_graphs
from vmreid.models import BACKBONES, ReIDModel, build_backbone
from vmreid.models.registry import resolved
from vmreid.models.vit import ViT, timm_vit
from vmreid.optim import build_optimizer
from vmreid.precision import computes_bf16
from vmreid.recipes import Recipe

CLASSES = 1000
Launch = Literal["eager", "compiled", "graph"]  # compiled: as train.compile does it; graph: eager kernels in a CUDA graph


@dataclass(frozen=True)
class Setup:
    """What a loop trains, and on what. The recipe's batch is this rank's; ``deepspeed`` is the JSON as in ``ds_configs``;
    ``vmamba`` builds its network."""

    recipe: Recipe
    deepspeed: dict[str, Any]
    scan_backend: str
    device: torch.device
    vmamba: Callable[[], nn.Module] | None = None

    def derived_config(self) -> dict[str, Any]:
        """The config that DeepSpeed gets from each rank; the bare loop clips by it too."""
        world = world_size()
        return with_derived_keys(self.deepspeed, self.recipe.train.batch_size * world, world, computes_bf16(self.device))

    def autocast(self) -> bool:
        """Whether the config's autocast is on here; the bare loops do as it says."""
        return precision_name(self.deepspeed, computes_bf16(self.device)).startswith("bf16 autocast")


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


def deepspeed_loop(setup: Setup, launch: Launch = "eager") -> Loop:
    """What ``Trainer`` steps, less its data and its look at the loss, for which it waits in each step."""
    module, batch = _training_module(setup, launch), random_batch(setup)
    config = setup.derived_config()
    engine = make_engine(module, build_optimizer(module, setup.recipe.optim), config)
    update = partial(take_step, engine, config["gradient_clipping"])
    return Loop(module, lambda: engine(batch).loss, engine.backward, update, partial(end_engine, engine))


def plain_loop(setup: Setup, launch: Launch = "eager") -> Loop:
    """The same module, precision, clipping and optimizer in a bare PyTorch loop."""
    module, batch = _training_module(setup, launch), random_batch(setup)
    optimizer = build_optimizer(module, setup.recipe.optim)
    return _bare(module, optimizer, lambda: module(batch).loss, setup, setup.derived_config()["gradient_clipping"])


def timm_loop(setup: Setup, launch: Launch = "eager") -> Loop:
    """timm's ViT as a classifier."""
    settings = setup.recipe.model
    network = timm_vit(setup.recipe.data.image_size, settings.patch, **resolved(settings), classes=CLASSES)
    return _classifier(network, setup, launch)


def vmamba_loop(setup: Setup, launch: Launch = "eager") -> Loop:
    """VMamba's own network, of the user's checkout, as a classifier."""
    assert setup.vmamba
    return _classifier(setup.vmamba(), setup, launch)


def _classifier(network: nn.Module, setup: Setup, launch: Launch) -> Loop:
    """Cross entropy, AdamW, no clipping, no re-ID head."""
    network.to(setup.device)
    batch, optim = random_batch(setup), setup.recipe.optim
    _set_launch(network, setup, launch)
    fused = setup.device.type == "cuda"
    optimizer = torch.optim.AdamW(network.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)

    def loss() -> torch.Tensor:
        images_BCHW = (batch.images_BCHW.float() / 255 - 0.5) / 0.5
        return F.cross_entropy(network(images_BCHW), batch.ids_B)

    return _bare(network, optimizer, loss, setup, clipping=0)


EAGER: dict[str, Callable[..., Loop]] = {
    "deepspeed": deepspeed_loop,
    "plain": plain_loop,
    "timm": timm_loop,
    "vmamba": vmamba_loop,
}
LOOPS: dict[str, Callable[[Setup], Loop]] = {
    **EAGER,
    **{f"{name} compiled": partial(loop, launch="compiled") for name, loop in EAGER.items()},
    "vmamba graph": partial(vmamba_loop, launch="graph"),
}


def loops_of(backbone: str, peers: Collection[str], compiled: bool = False) -> list[str]:
    """Names of the loops that can train ``backbone``, with those of the ``peers`` that have it too; VMamba's best at few
    pictures is a CUDA graph of its eager kernels, so ``compiled`` adds that."""
    has = {"timm": BACKBONES[backbone].family is ViT, "vmamba": backbone in NETWORKS}
    names = ["deepspeed", "plain", *(peer for peer in has if peer in peers and has[peer])]
    if not compiled:
        return names
    return [*(f"{name} compiled" for name in names), *(["vmamba graph"] if "vmamba" in names else [])]


def random_batch(setup: Setup) -> Batch:
    """P x K random pictures on the device, from torch's current random state."""
    size, device = setup.recipe.train.batch_size, setup.device
    images_BCHW = torch.randint(0, 256, (size, 3, *setup.recipe.data.image_size), dtype=torch.uint8, device=device)
    rows_B = torch.arange(size, device=device)
    ids_B = rows_B // setup.recipe.data.pictures_per_identity % CLASSES
    zeros_B = torch.zeros_like(rows_B)
    return Batch(images_BCHW, ids_B, zeros_B, rows_B, rows_B, zeros_B, zeros_B, zeros_B)


def _training_module(setup: Setup, launch: Launch) -> TrainingModule:
    data = setup.recipe.data
    backbone = build_backbone(setup.recipe.model, data.image_size, setup.scan_backend)
    model = ReIDModel(backbone, CLASSES, data.mean, data.std).to(setup.device)
    return TrainingModule(model, setup.recipe.loss, launch == "compiled")


def _set_launch(network: nn.Module, setup: Setup, launch: Launch) -> None:
    """How the network's kernels, forward and backward, come to the device from now on, in the loops' precision."""
    if launch == "compiled":
        network.forward = as_graphs(network.forward)
    elif launch == "graph":
        images_BCHW = torch.zeros(setup.recipe.train.batch_size, 3, *setup.recipe.data.image_size, device=setup.device)
        with torch.autocast(setup.device.type, dtype=torch.bfloat16, enabled=setup.autocast(), cache_enabled=False):
            torch.cuda.make_graphed_callables(network, (images_BCHW,))


def _bare(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], torch.Tensor],
    setup: Setup,
    clipping: float,  # largest gradient norm; 0: off
) -> Loop:
    parameters = list(module.parameters())

    def forward() -> torch.Tensor:
        with torch.autocast(setup.device.type, dtype=torch.bfloat16, enabled=setup.autocast()):
            return loss()

    def update() -> None:
        if clipping:
            torch.nn.utils.clip_grad_norm_(parameters, clipping)
        optimizer.step()
        optimizer.zero_grad()

    return Loop(module, forward, torch.Tensor.backward, update)
