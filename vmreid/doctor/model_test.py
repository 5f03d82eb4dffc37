"""The note's model test: is a backbone, as a recipe has it, able to learn at all, and is its scan the scan?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vmreid.doctor.directions import Scanning, misread, scanning
from vmreid.engine.training_module import judge
from vmreid.kernels import selective_scan
from vmreid.kernels.cross_scan import DIRECTIONS
from vmreid.kernels.ss2d import ss2d
from vmreid.models import ReIDModel, build_backbone, scans_maps
from vmreid.models.registry import resolved
from vmreid.recipes.schema import Model

IDENTITIES = 100
NEAR = 0.1  # of ln(identities)
AGREES = 1e-3  # of the largest value: float32 against float64
BY_HEART = (4, 2)  # identities and pictures of each
INPUTS = ("x", "delta", "A", "B", "C", "D", "delta's bias")
STEPS, RATE, SMOOTHING, MARGIN = 200, 1e-3, 0.1, 0.3
LEARNT = 0.2  # the loss of a batch known by heart
SMALL = 4  # patches on the sides of the pictures that are learnt by heart: (8, 4) of them


@dataclass(frozen=True)
class Check:
    """What was asked, whether it holds, and what was seen."""

    name: str
    holds: bool
    words: str


def model_test(model: Model, image_size: tuple[int, int], backend: str, device: torch.device) -> Iterator[Check]:
    """The checks one by one, as they are done; ``backend``: as ``choose_backend`` returned it."""
    torch.manual_seed(0)
    large = _model(model, image_size, backend, device, IDENTITIES)
    yield _shapes(large, model, image_size, backend, device)
    yield _gradients(large, image_size)
    blocks = scanning(large.backbone)
    if blocks:
        yield _directions(blocks)
        yield _scan(model, backend, device)
    yield _first_loss(large, image_size)
    yield _by_heart(model, backend, device)


def _model(model: Model, size: tuple[int, int], backend: str, device: torch.device, identities: int) -> ReIDModel:
    return ReIDModel(build_backbone(model, size, backend), identities, (0.5,) * 3, (0.5,) * 3).to(device)


def _pictures(count: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


def _shapes(large: ReIDModel, model: Model, size: tuple[int, int], backend: str, device: torch.device) -> Check:
    """At the recipe's size, and at twice its height."""
    seen = []
    for each in (size, (2 * size[0], size[1])):
        own = large if each == size else _model(model, each, backend, device, IDENTITIES)
        with torch.no_grad():
            feature_BF = own.features(_pictures(2, each, device))
        right = feature_BF.shape == (2, own.backbone.dim) and bool(feature_BF.isfinite().all())
        seen.append((right, f"{each[0]}x{each[1]} → {list(feature_BF.shape)}"))
    return Check("shapes", all(right for right, _ in seen), ", ".join(words for _, words in seen))


def _gradients(large: ReIDModel, size: tuple[int, int]) -> Check:
    """Every parameter has a gradient that is finite and not nothing."""
    device = large.mean.device
    ids_B = torch.tensor([0, 0, 1, 1], device=device)
    identity, triplet, _ = judge(large.head, large.features(_pictures(4, size, device)).float(), ids_B, SMOOTHING, MARGIN)
    torch.autograd.backward(identity + triplet)
    without = [
        name
        for name, parameter in large.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    count = len(list(large.parameters()))
    large.zero_grad()
    words = f"{', '.join(without[:3])} of {count} parameters have none" if without else f"all {count} parameters have one"
    return Check("a gradient at every parameter", not without, words)


def _directions(blocks: list[Scanning]) -> Check:
    for number, block in enumerate(blocks, 1):
        wrong = misread(block)
        if wrong:
            return Check("directions", False, f"block {number}, {wrong[0]}")
    count = blocks[0].x_proj_KED.shape[0]
    return Check("directions", True, f"{len(blocks)} blocks: {count} directions, each reads in its own order")


def _scan(model: Model, backend: str, device: torch.device) -> Check:
    """Outputs and gradients of the backend in float32 beside the plain loop in float64."""
    states = resolved(model)["d_state"]
    inputs = _maps(states) if scans_maps(model) else _sequences(states)
    names = ["the output", *(f"the gradient of {name}" for name in INPUTS)]
    scan: Callable[..., torch.Tensor] = ss2d if scans_maps(model) else selective_scan
    seen, expected = (
        _with_gradients(scan, inputs, name, dtype, place)
        for name, dtype, place in ((backend, torch.float32, device), ("reference", torch.float64, torch.device("cpu")))
    )
    apart = {
        name: float((a.double().cpu() - b).abs().max() / b.abs().max()) for name, a, b in zip(names, seen, expected, strict=True)
    }
    worst = max(apart, key=lambda name: apart[name])
    words = f"{backend} and reference differ most in {worst}, by {apart[worst]:.1e} of its largest value (at most {AGREES:.0e})"
    return Check("scan", apart[worst] < AGREES, words)


def _maps(states: int) -> list[torch.Tensor]:
    """x_BHWD, delta_BHWKD, A_KDN, B_BHWKN, C_BHWKN, D_KD, delta_bias_KD."""
    grid, inner, K = (5, 3), 8, DIRECTIONS
    shapes = [(2, *grid, inner), (2, *grid, K, inner), (K, inner, states), *[(2, *grid, K, states)] * 2, (K, inner), (K, inner)]
    return _drawn(shapes)


def _sequences(states: int) -> list[torch.Tensor]:
    """u_BDL, delta_BDL, A_DN, B_BKNL, C_BKNL, D_D, delta_bias_D."""
    length, inner, K = 15, 8, 2
    shapes = [*[(2, K * inner, length)] * 2, (K * inner, states), *[(2, K, states, length)] * 2, (K * inner,), (K * inner,)]
    return _drawn(shapes)


def _drawn(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    drawn[2] = -drawn[2].exp()  # A
    return drawn


def _with_gradients(
    scan: Callable[..., torch.Tensor], inputs: list[torch.Tensor], backend: str, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    given = [each.to(device, dtype).requires_grad_() for each in inputs]
    y = scan(*given, backend=backend)
    torch.autograd.backward(y.square().sum())
    return [y.detach(), *(each.grad for each in given if each.grad is not None)]


def _first_loss(large: ReIDModel, size: tuple[int, int]) -> Check:
    with torch.no_grad():
        _, logits_BC = large.head(large.features(_pictures(8, size, large.mean.device)))
    loss, expected = float(F.cross_entropy(logits_BC, torch.arange(8, device=logits_BC.device))), math.log(IDENTITIES)
    words = f"{loss:.3f} with {IDENTITIES} identities, ln {IDENTITIES} = {expected:.3f} (within {NEAR:.0%})"
    return Check("first loss", abs(loss - expected) < NEAR * expected, words)


def _by_heart(model: Model, backend: str, device: torch.device) -> Check:
    """A batch of noise, small so that it takes seconds."""
    identities, pictures = BY_HEART
    size = (2 * SMALL * model.patch, SMALL * model.patch)
    small = _model(model, size, backend, device, identities)
    image_BCHW = _pictures(identities * pictures, size, device)
    ids_B = torch.arange(identities, device=device).repeat_interleave(pictures)
    optimizer = torch.optim.AdamW(small.parameters(), lr=RATE, weight_decay=0)
    steps, loss, right = 0, math.inf, 0.0
    while steps < STEPS and not (right == 1 and loss < LEARNT):
        identity, triplet, accuracy = judge(small.head, small.features(image_BCHW).float(), ids_B, 0.0, MARGIN)
        loss, right = float((identity + triplet).detach()), float(accuracy)
        optimizer.zero_grad()
        torch.autograd.backward(identity + triplet)
        torch.nn.utils.clip_grads_with_norm_(small.parameters(), 1.0, torch.nn.utils.get_total_norm(_grads(small)))
        optimizer.step()
        steps += 1
    what = f"{identities} identities x {pictures} pictures of {size[0]}x{size[1]} noise"
    words = f"{what}: accuracy {right:.2f}, loss {loss:.3f} after {steps} steps (at most {STEPS}, below {LEARNT})"
    return Check("one batch learnt by heart", right == 1 and loss < LEARNT, words)


def _grads(model: ReIDModel) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
