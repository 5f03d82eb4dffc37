"""The module that DeepSpeed trains: backbone on this rank's pictures, head and losses on the global batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from vmreid.data.streams import Batch
from vmreid.engine.compiled import FlatBackbone
from vmreid.graphs import as_graphs
from vmreid.losses import batch_hard_triplet
from vmreid.models import ReIDModel
from vmreid.models.reid import Head
from vmreid.recipes.schema import Loss


class StepResult(NamedTuple):
    """Losses and accuracy over the global micro-batch; equal on all ranks. Scalars, and int64 [B, 2] rows and checksums.

    ``replaced``: how many of the pictures stand in for unreadable ones.
    """

    loss: torch.Tensor
    identity_loss: torch.Tensor
    triplet_loss: torch.Tensor
    accuracy: torch.Tensor
    pictures_B2: torch.Tensor
    replaced: torch.Tensor


class _GatherWithGradient(torch.autograd.Function):
    """Concatenate equal parts over ranks. Backward takes this rank's slice times the number of ranks.

    Every rank computes the whole loss, so the slice is the whole gradient of this rank's pictures; DeepSpeed then
    averages over ranks, which the factor undoes. The head's gradient is equal on all ranks: its average is right as is.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, part_BF: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(part_BF) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part_BF.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> torch.Tensor:
        (grad_BF,) = grads
        world = dist.get_world_size()
        return grad_BF.chunk(world)[dist.get_rank()] * world


class TrainingModule(nn.Module):
    """All ranks. From a rank's part of the batch to the loss over the global batch, equal on every rank.

    BNNeck's statistics and the triplets span the global batch, so the step does not depend on the number of ranks.
    """

    def __init__(self, model: ReIDModel, loss: Loss, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self.settings = loss
        self.flat = FlatBackbone(model) if compiled else None
        self._features, self._judge = model.features, judge
        if self.flat:
            self._features, self._judge = as_graphs(self.flat), as_graphs(judge)

    def show_parameters(self) -> None:
        """Let ``model`` hold what is trained, wherever DeepSpeed keeps that."""
        if self.flat:
            self.flat.show()

    def forward(self, batch: Batch) -> StepResult:
        part_BF = self._features(batch.images_BCHW).float()
        feature_BF = _gather_with_gradient(part_BF)
        facts_B4 = _gather(torch.stack([batch.ids_B, batch.rows_B, batch.checksums_B, batch.replaced_B], dim=1))
        ids_B = facts_B4[:, 0]
        smoothing, margin = self.settings.label_smoothing, self.settings.triplet_margin
        identity, triplet, accuracy = self._judge(self.model.head, feature_BF, ids_B, smoothing, margin)
        identity_loss, triplet_loss = identity.detach().clone(), triplet.detach().clone()  # a graph overwrites its results
        return StepResult(
            identity + triplet, identity_loss, triplet_loss, accuracy.clone(), facts_B4[:, 1:3], facts_B4[:, 3].sum()
        )


def judge(
    head: Head, feature_BF: torch.Tensor, ids_B: torch.Tensor, smoothing: float, margin: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Identity loss, triplet loss and accuracy of a batch; ``smoothing`` of labels and ``margin`` as the recipe has them."""
    _, logits_BC = head(feature_BF)
    identity = F.cross_entropy(logits_BC, ids_B, label_smoothing=smoothing)
    with torch.autocast(feature_BF.device.type, enabled=False):
        triplet = batch_hard_triplet(feature_BF, ids_B, margin)
    return identity, triplet, (logits_BC.argmax(dim=1) == ids_B).float().mean()


def _gather_with_gradient(part_BF: torch.Tensor) -> torch.Tensor:
    if dist.get_world_size() == 1:
        return part_BF
    gathered_BF: torch.Tensor = _GatherWithGradient.apply(part_BF)  # type: ignore[no-untyped-call]
    return gathered_BF


def _gather(part: torch.Tensor) -> torch.Tensor:
    if dist.get_world_size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts)
