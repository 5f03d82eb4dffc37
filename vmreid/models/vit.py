"""VIT-T/S/B and DINOV2-S/B: timm's Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) at any image size."""

from __future__ import annotations

import torch
from torch import nn

from vmreid.compat import prepare_torchvision
from vmreid.errors import UserError
from vmreid.models.backbone import Backbone
from vmreid.models.initialise import initialise_weights
from vmreid.models.published import State, load_exactly, resize_positions
from vmreid.models.transreid_names import global_branch, is_transreid

prepare_torchvision()
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn  # noqa: E402


def timm_vit(
    image_size: tuple[int, int],
    patch: int,
    dim: int,
    depth: int,
    heads: int,
    classes: int,
    layer_scale: float | None = None,
) -> torch.nn.Module:
    """timm's own network and initialisation, from [B, 3, height, width], normalised, to logits [B, classes].

    Without ``classes`` (0) it ends in the normalised class token, [B, dim]. ``layer_scale``: where the learned factor of each
    residual branch starts (Touvron et al., arXiv 2103.17239); None: no such factor.
    """
    network: torch.nn.Module = VisionTransformer(
        img_size=image_size, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads, num_classes=classes,
        init_values=layer_scale,
    )  # fmt: skip
    return network


class ViT(Backbone):
    """timm's ViT without classifier; the feature is the normalised class token."""

    no_weight_decay = ("vit.cls_token", "vit.pos_embed")
    ends = ("attn.proj", "mlp.fc2")

    def __init__(
        self, image_size: tuple[int, int], patch: int, dim: int, depth: int, heads: int, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        self.dim, self.grid = dim, (image_size[0] // patch, image_size[1] // patch)
        self.vit = timm_vit(image_size, patch, dim, depth, heads, classes=0, layer_scale=layer_scale)
        initialise_weights(self)

    def repeated_blocks(self) -> list[nn.Module]:
        return list(self.vit.blocks.children())  # type: ignore[union-attr]

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width], normalised, to features [B, dim]."""
        feature_BC: torch.Tensor = self.vit(image_BCHW)
        return feature_BC

    def load_published(self, state: State, name: str) -> str:
        """Load a state dict of timm, DINOv2 or TransReID; positions and patches are resized to this image and patch size.

        The classifier is left out, and what TransReID has beside its global branch. As ``load_exactly``.
        """
        state, parts = global_branch(state) if is_transreid(state) else (dict(state), [])
        resized = resize_positions(state, self.grid, middle=False)
        try:
            given = checkpoint_filter_fn(dict(state), self.vit)
        except Exception as error:  # timm converts many layouts, and fails in as many ways on what is none of them
            raise UserError(
                f"{name}: timm cannot read it as a ViT ({str(error).splitlines()[0]}); give a checkpoint that timm published"
            ) from None
        if "pos_embed" in given:  # which timm may have resized once more: it takes any square number for a square map
            given["pos_embed"] = state["pos_embed"]
        resized += [key for key in given if key in state and state[key] is not given[key]]
        left = [key for key in state if key.startswith("head.") or key == "mask_token"]  # DINOv2's, for its own training
        return load_exactly(self.vit, given, name, resized=resized, left=[*left, *parts])
