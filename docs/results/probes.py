"""What a trained backbone makes of pictures whose parts are moved or covered: ``python docs/results/probes.py RUN``.

Writes RUN/probes.json: mAP of query and gallery changed alike, and how far around it a token in the middle looks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange

from vmreid.data.sets import evaluation_set
from vmreid.data.streams import evaluation_batches
from vmreid.distributed import own_device, place_from_environment, start_process_group
from vmreid.evaluation.evaluate import EvaluationPlan, evaluate_model, load_model
from vmreid.kernels import choose_backend
from vmreid.models.registry import scans_maps
from vmreid.run_folder import RunFolder, write_atomically

PATCH, BLOCK = 16, 64
GREY = 124
PICTURES = 32  # for the field
Change = Callable[[torch.Tensor], torch.Tensor]


def shuffled(image_BCHW: torch.Tensor, size: int, within: int | None = None) -> torch.Tensor:
    """Squares of ``size`` pixels in another order, one for all pictures: over the whole picture, or ``within`` larger squares."""
    height, width = image_BCHW.shape[2:]
    rows, columns = height // size, width // size
    random = torch.Generator().manual_seed(0)
    place_N = torch.arange(rows * columns)
    if within is None:
        order_N = place_N[torch.randperm(len(place_N), generator=random)]
    else:
        block_N = place_N // columns * size // within * columns + place_N % columns * size // within
        order_N = torch.empty_like(place_N)
        for block in block_N.unique():
            own = (block_N == block).nonzero().squeeze(1)
            order_N[own] = own[torch.randperm(len(own), generator=random)]
    squares = rearrange(image_BCHW, "b c (r h) (q w) -> b c (r q) h w", h=size, w=size)[:, :, order_N.to(image_BCHW.device)]
    return rearrange(squares, "b c (r q) h w -> b c (r h) (q w)", r=rows)


def covered(image_BCHW: torch.Tensor, share: float) -> torch.Tensor:
    """A grey rectangle of the picture's own proportions at a place of its own in each picture."""
    result, (height, width) = image_BCHW.clone(), image_BCHW.shape[2:]
    tall, wide = (max(1, round(side * share**0.5)) for side in (height, width))
    random = torch.Generator().manual_seed(int(image_BCHW[0].sum()))
    for image_CHW in result:
        top, left = (int(torch.randint(room + 1, (), generator=random)) for room in (height - tall, width - wide))
        image_CHW[:, top : top + tall, left : left + wide] = GREY
    return result


CHANGES: dict[str, Change] = {
    "none": lambda image: image,
    "patches anywhere": lambda image: shuffled(image, PATCH),
    "patches within blocks": lambda image: shuffled(image, PATCH, BLOCK),
    "blocks anywhere": lambda image: shuffled(image, BLOCK),
    "a tenth covered": lambda image: covered(image, 0.1),
    "three tenths covered": lambda image: covered(image, 0.3),
}


def field(plan: EvaluationPlan, device: torch.device) -> dict[str, float]:
    """How the gradient of a middle token of the last block lies over the picture's patches (Luo et al. 2016, arXiv 1701.04128):
    the share of its energy at distance 0, within 2 patches, and its mean distance, in patches, beside those of equal shares."""
    model = load_model(plan)[0].to(device)
    if plan.recipe.model.backbone.startswith("VMAMBA"):
        return {}  # its last blocks have no token a patch
    grid = tuple(side // PATCH for side in plan.recipe.data.image_size)
    middle = grid[0] // 2 * grid[1] + grid[1] // 2
    seen: list[torch.Tensor] = []
    residual = plan.recipe.model.backbone.startswith("VIT")  # whose blocks add themselves to what they get
    hook = lambda module, given, made: seen.append(made - given[0] if residual else made)  # noqa: E731
    model.backbone.repeated_blocks()[-1].register_forward_hook(hook)
    split = plan.manifest.splits["gallery"]
    batches = evaluation_batches(plan.data, split, plan.recipe.data.image_size, PICTURES, rank=0, world=1, workers=0)
    image_BCHW = next(iter(batches)).images_BCHW.to(device).float().requires_grad_()
    model.features(image_BCHW)
    tokens_BLC = seen[0]
    patches = grid[0] * grid[1]
    own_BLC = _patches_of(tokens_BLC, plan.recipe.model.backbone, patches)
    direction_C = torch.randn(own_BLC.shape[2], generator=torch.Generator().manual_seed(0)).to(device)
    (gradient,) = torch.autograd.grad((own_BLC[:, middle].float() @ direction_C).sum(), image_BCHW)
    energy_N = rearrange(gradient.square(), "b c (r h) (q w) -> (r q) (b c h w)", h=PATCH, w=PATCH).sum(1).cpu().double()
    energy_N /= energy_N.sum()
    row_N, column_N = torch.arange(patches) // grid[1], torch.arange(patches) % grid[1]
    distance_N = ((row_N - grid[0] // 2).square() + (column_N - grid[1] // 2).square()).double().sqrt()
    return {
        "own patch": float(energy_N[middle]),
        "within 2": float(energy_N[distance_N <= 2].sum()),
        "mean distance": float(energy_N @ distance_N),
        "mean distance of equal shares": float(distance_N.mean()),
    }


def _patches_of(tokens_BLC: torch.Tensor, backbone: str, patches: int) -> torch.Tensor:
    """Without the class token: a ViT's first, a MAMBA's last, a Vim's in the middle."""
    if backbone.startswith("MAMBA"):
        return tokens_BLC[:, :patches]
    if backbone.startswith("VIM"):
        return torch.cat([tokens_BLC[:, : patches // 2], tokens_BLC[:, patches // 2 + 1 :]], dim=1)
    return tokens_BLC[:, -patches:]


def main() -> None:
    run = RunFolder(Path(sys.argv[1]))
    recipe, device, place = run.recipe(), own_device(), place_from_environment()
    start_process_group(place)
    scan, _ = choose_backend(recipe.model.scan_backend, device, scans_maps(recipe.model))
    judged_on, checkpoint = evaluation_set(recipe.data), run.checkpoint(None)
    plan = EvaluationPlan(recipe, judged_on.folder, judged_on.manifest, checkpoint, scan)
    scores = {}
    for name, change in CHANGES.items():
        metrics = evaluate_model(plan, place, change)
        scores[name] = metrics.get("mean", metrics)["mAP"]
    write_atomically(run.path / "probes.json", json.dumps({"mAP": scores, "field": field(plan, device)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
