"""The CUDA kernels on a GPU: every output and gradient against float64, in all precisions, and under what torch does with ops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.kernels.test_ss2d import NAMES, by_loops, make_inputs
from vmreid.kernels import fused
from vmreid.kernels.ss2d import ss2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and torch sees none"),
]
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of the largest value


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """What is empty holds NaN."""
    available, why = fused.probe()
    if not available:
        pytest.skip(why)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def cuda_inputs(height: int, width: int, channels: int, states: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    inputs = [x.detach().cuda() for x in make_inputs(height, width, channels=channels, states=states, seed=seed)]
    types = [dtype, dtype, torch.float32, dtype, dtype, torch.float32, torch.float32]
    return [x.to(own).requires_grad_() for x, own in zip(inputs, types, strict=True)]


def compare(
    inputs: list[torch.Tensor], y: torch.Tensor, exact: list[torch.Tensor], wanted: torch.Tensor, least: float, times: int = 1
) -> None:
    dy = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda", dtype=y.dtype)
    found, sought = torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, exact, dy.double())
    for name, one, other in zip(("y", *NAMES), (y, *found), (wanted, *sought), strict=True):
        error = (one.double() - other).abs().max() / other.abs().max().clamp_min(least)
        assert error < times * TOLERANCE[y.dtype], f"{name}: {error}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(24))
def test_random_shapes_equal_loops_in_float64(seed: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    height, width = draw(1, 17), draw(1, 17)
    if seed % 4 == 0:
        height, width = (1, draw(1, 200)) if seed % 8 else (draw(1, 200), 1)
    inputs = cuda_inputs(height, width, draw(1, 100), draw(1, 64) if seed % 3 else 1, dtype, seed)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    compare(inputs, ss2d(*inputs, "fused"), exact, by_loops(exact), 1e-30)


@pytest.mark.parametrize("bias", [-40.0, -12.0, 12.0, 60.0, 200.0])
@pytest.mark.parametrize("states", [1, 16])
def test_steps_that_are_tiny_or_huge(bias: float, states: int) -> None:
    inputs = cuda_inputs(9, 7, 16, states, torch.float32)
    inputs[6] = torch.full_like(inputs[6], bias).requires_grad_()
    inputs[5] = torch.zeros_like(inputs[5]).requires_grad_()  # D would hide what the scan says
    exact = [x.detach().double().requires_grad_() for x in inputs]
    compare(inputs, ss2d(*inputs, "fused"), exact, by_loops(exact), 1e-20)


@pytest.mark.parametrize("states", [1, 16])
def test_a_path_of_65536_tokens(states: int) -> None:
    inputs = cuda_inputs(256, 256, 8, states, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    compare(inputs, ss2d(*inputs, "fused"), exact, ss2d(*exact, "torch"), 1e-30, times=10)  # sums of 65,536 in float32


def test_the_same_bits_twice() -> None:
    inputs = cuda_inputs(32, 16, 192, 16, torch.bfloat16)
    twice = [ss2d(*inputs, "fused") for _ in range(2)]
    dy = torch.randn_like(twice[0])
    gradients = [torch.autograd.grad(y, inputs, dy) for y in twice]
    assert torch.equal(*twice)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("way", ["compile", "checkpoint", "graph"])
def test_compiled_checkpointed_and_in_a_graph_it_gives_the_same(way: str) -> None:
    inputs = cuda_inputs(16, 8, 64, 16, torch.bfloat16)
    dy = torch.randn_like(inputs[0])

    def gradients(run: object = ss2d) -> tuple[torch.Tensor, ...]:
        own = [v.detach().requires_grad_() for v in inputs]  # made on the stream that is captured
        y = run(*own, "fused")  # type: ignore[operator]
        return (y, *torch.autograd.grad(y, own, dy))

    wanted = gradients()
    if way == "compile":
        found = gradients(torch.compile(ss2d, fullgraph=True))
    elif way == "checkpoint":
        found = gradients(lambda *given: checkpoint(ss2d, *given, use_reentrant=False))
    else:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = gradients()
        for v in found:
            v.detach().zero_()
        graph.replay()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=float(other.abs().max()) * 1e-2)
