"""The four-direction scan of a map against loops over its places, with every gradient."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

from vmreid.kernels.ss2d import ss2d

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")


def make_inputs(
    height: int, width: int, batch: int = 2, channels: int = 3, states: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.Tensor]:
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place = (batch, height, width)
    inputs = [draw(*place, channels), draw(*place, 4, channels) - 1, -torch.exp(draw(4, channels, states))]
    inputs += [draw(*place, 4, states), draw(*place, 4, states), draw(4, channels), draw(4, channels) * 0.5]
    return [x.to(dtype).requires_grad_() for x in inputs]


def by_loops(inputs: list[torch.Tensor]) -> torch.Tensor:
    """y_BHWD: every direction walks over the places in its order, and leaves what it says where it says it."""
    x, delta, A, B, C, D, bias = inputs
    height, width = x.shape[1:3]
    rows = list(itertools.product(range(height), range(width)))
    columns = [(h, w) for w in range(width) for h in range(height)]
    y = {place: torch.zeros_like(x[:, 0, 0]) for place in rows}
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        state_BDN = x.new_zeros(len(x), *A.shape[1:])
        for h, w in order:
            step_BD = F.softplus(delta[:, h, w, k] + bias[k])
            entry_BDN = (step_BD * x[:, h, w])[..., None] * B[:, h, w, k, None]
            state_BDN = torch.exp(step_BD[..., None] * A[k]) * state_BDN + entry_BDN
            y[h, w] = y[h, w] + (state_BDN * C[:, h, w, k, None]).sum(-1) + D[k] * x[:, h, w]
    return torch.stack([y[place] for place in rows], dim=1).unflatten(1, (height, width))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 2), (1, 4), (1, 1), (5, 7)])
def test_output_and_every_gradient_equal_loops_over_the_places(height: int, width: int, backend: str) -> None:
    inputs = make_inputs(height, width)
    y, wanted = ss2d(*inputs, backend), by_loops(inputs)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    found, sought = (torch.autograd.grad(result, inputs, dy) for result in (y, wanted))
    for name, one, other in zip(NAMES, found, sought, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_has_the_maps_dtype(dtype: torch.dtype) -> None:
    inputs = make_inputs(4, 3, dtype=dtype)
    y = ss2d(*inputs, "torch")
    assert y.dtype == dtype
    wanted = by_loops([x.detach().double() for x in inputs])
    torch.testing.assert_close(y.detach().double(), wanted, rtol=0, atol=float(torch.finfo(dtype).eps * 4 * wanted.abs().max()))
