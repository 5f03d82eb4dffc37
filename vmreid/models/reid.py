"""The re-ID model: backbone, BNNeck, identity classifier (Luo et al., arXiv 1903.07071, "Bag of Tricks", section 3.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.models.backbone import Backbone
from vmreid.models.initialise import WEIGHT_STD


class BNNeck(nn.Module):
    """Batch normalisation without shift between the triplet feature and the classifier. Always computed in fp32.

    In training, statistics are those of the batch it is given, so give it the global batch.
    """

    no_weight_decay = ("weight",)
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, feature_BF: torch.Tensor) -> torch.Tensor:
        """[B, F] to [B, F], fp32."""
        return F.batch_norm(
            feature_BF.float(), self.running_mean, self.running_var, self.weight.float(), None, training=self.training
        )


class Head(nn.Module):
    """Features [B, F] to (neck features [B, F], logits [B, classes]), both fp32 whatever the precision around it."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.neck = BNNeck(dim)
        self.classifier = nn.Linear(dim, classes, bias=False)
        nn.init.trunc_normal_(self.classifier.weight, std=WEIGHT_STD)

    def forward(self, feature_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(feature_BF.device.type, enabled=False):
            neck_BF = self.neck(feature_BF)
            logits_BC = self.classifier(neck_BF.to(self.classifier.weight.dtype)).float()
        return neck_BF, logits_BC


class ReIDModel(nn.Module):
    """Backbone and head. ``forward`` is the evaluation feature: uint8 pictures to neck features."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(backbone.dim, classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] to the floats that the backbone takes, in the parameters' precision."""
        return ((image_BCHW.float() / 255 - self.mean.float()) / self.std.float()).to(self.head.neck.weight.dtype)

    def features(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] to the backbone's features [B, F]."""
        feature_BF: torch.Tensor = self.backbone(self.normalise(image_BCHW))
        return feature_BF

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] to neck features [B, F], fp32."""
        feature_BF: torch.Tensor = self.head(self.features(image_BCHW))[0]
        return feature_BF
