"""The CUDA kernels' own source on the CPU, each thread a fiber, memory full of NaN: every output and gradient."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_ss2d import NAMES, by_loops, make_inputs
from vmreid.errors import UserError
from vmreid.kernels.ss2d import ss2d, ss2d_then_token

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.mark.parametrize(
    ("height", "width", "channels", "states"),
    [
        (6, 5, 24, 1),
        (1, 7, 3, 1),  # a row, channels that are no multiple of 8
        (9, 1, 8, 16),  # a column
        (1, 1, 8, 1),
        (8, 8, 8, 1),  # two whole tiles
        (13, 11, 16, 1),
        (8, 8, 8, 16),  # two whole tiles
        (13, 11, 16, 16),  # five tiles: the middle one is where both ends of a path meet
        (1, 15, 24, 1),  # less than a warp's steps
        (14, 11, 40, 1),  # three tiles of four warps, two blocks of channels of which the last has eight
        (21, 13, 8, 1),  # three tiles of eight warps
        (5, 9, 16, 2),
        (7, 5, 20, 3),
        (5, 8, 40, 8),  # three warps of channels, of which a block has two
        (4, 5, 16, 40),  # more states than one kernel has
    ],
)
def test_output_and_every_gradient_equal_loops_over_the_places(height: int, width: int, channels: int, states: int) -> None:
    inputs = make_inputs(height, width, channels=channels, states=states, dtype=torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, wanted = ss2d(*inputs, "fused"), by_loops(exact)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    found, sought = torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, exact, dy.double())
    for name, one, other in zip(("y", *NAMES), (y, *found), (wanted, *sought), strict=True):
        error = (one.double() - other).abs().max() / other.abs().max().clamp_min(1e-30)
        assert error < 3e-6, f"{name}: {error}"


def test_a_token_that_every_direction_reads_last_is_as_on_the_torch_backend() -> None:
    grid = (5, 7)
    inputs = make_inputs(1, 36, channels=16, states=4, dtype=torch.float32)
    tokens = [inputs[i].detach().flatten(1, 2).requires_grad_() for i in (0, 1, 3, 4)]
    x, delta, B, C = tokens
    A, D, bias = inputs[2], inputs[5], inputs[6]
    results = [ss2d_then_token(x, delta, A, B, C, D, bias, grid, backend) for backend in ("fused", "torch")]
    leaves = [*tokens, A, D, bias]
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=random) for y in results[0]]
    gradients = [torch.autograd.grad(result, leaves, weights) for result in results]
    for one, other in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [-30.0, 60.0])
def test_steps_that_are_tiny_or_huge_lose_nothing(bias: float) -> None:
    inputs = make_inputs(5, 4, channels=8, states=4, dtype=torch.float32)
    inputs[6] = torch.full_like(inputs[6], bias).requires_grad_()
    inputs[5] = torch.zeros_like(inputs[5]).requires_grad_()  # D would hide what the scan says
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, wanted = ss2d(*inputs, "fused"), by_loops(exact)
    found = torch.autograd.grad(y.sum(), inputs)
    sought = torch.autograd.grad(wanted.sum(), exact)
    for name, one, other in zip(("y", *NAMES), (y, *found), (wanted, *sought), strict=True):
        error = (one.double() - other).abs().max() / other.abs().max().clamp_min(1e-30)
        assert error < 3e-6 or other.abs().max() < 1e-25, f"{name}: {error}"


def test_a_path_that_is_too_long_for_its_arithmetic_is_an_error_in_words() -> None:
    inputs = make_inputs(1, 2**16, batch=1, channels=1, states=1, dtype=torch.float32)
    with pytest.raises(UserError, match=r"65536 places in columns of 65536.*below 2\^32; take model.scan_backend=torch"):
        ss2d(*inputs, "fused")
