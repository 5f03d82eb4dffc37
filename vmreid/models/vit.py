"""VIT-T/S/B: timm's Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) at any image size, and its published weights."""

from __future__ import annotations

import torch

from vmreid.compat import prepare_torchvision
from vmreid.errors import UserError
from vmreid.models.backbone import Backbone
from vmreid.models.initialise import initialise_weights

prepare_torchvision()
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn  # noqa: E402


def timm_vit(image_size: tuple[int, int], patch: int, dim: int, depth: int, heads: int, classes: int) -> torch.nn.Module:
    """timm's own network and initialisation, from [B, 3, height, width], normalised, to logits [B, classes].

    Without ``classes`` (0) it ends in the normalised class token, [B, dim].
    """
    network: torch.nn.Module = VisionTransformer(
        img_size=image_size, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads, num_classes=classes
    )
    return network


class ViT(Backbone):
    """timm's ViT without classifier; the feature is the normalised class token."""

    no_weight_decay = ("vit.cls_token", "vit.pos_embed")

    def __init__(self, image_size: tuple[int, int], patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.vit = timm_vit(image_size, patch, dim, depth, heads, classes=0)
        initialise_weights(self)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width], normalised, to features [B, dim]."""
        feature_BC: torch.Tensor = self.vit(image_BCHW)
        return feature_BC

    def load_published(self, state: dict[str, torch.Tensor], name: str) -> str:
        """Load timm's state dict, positions resampled to this image size; the classifier is left out.

        Returns a one-line report. Raises UserError where a parameter is missing, unexpected or of another shape.
        """
        own = self.vit.state_dict()
        try:
            filtered = checkpoint_filter_fn(state, self.vit)
        except Exception as error:  # timm converts many layouts, and fails in as many ways on what is none of them
            raise UserError(
                f"{name}: timm cannot read it as a ViT ({str(error).splitlines()[0]}); give a checkpoint that timm published"
            ) from None
        left = sorted(key for key in filtered if key.startswith("head."))
        given = {key: value for key, value in filtered.items() if key not in left}
        shapes = [key for key in own if key in given and given[key].shape != own[key].shape]
        for what, keys in (
            ("has no", sorted(own.keys() - given.keys())),
            ("has an unknown", sorted(given.keys() - own.keys())),
            ("has another shape of", shapes),
        ):
            if keys:
                raise UserError(
                    f"{name}: {what} {keys[0]} ({len(keys)} such): not a timm checkpoint of this backbone's dim and depth; "
                    "choose the backbone that it was published for"
                )
        self.vit.load_state_dict(given)
        resized = [key for key in given if key in state and state[key] is not given[key]]
        return f"{len(given)} tensors from {name}, resized: {', '.join(resized) or 'none'}, left: {', '.join(left) or 'none'}"
