"""causal_conv1d's kernel against torch's convolution in float64: output and every gradient."""

from __future__ import annotations

import pytest
import torch

from vmreid.kernels import causal_conv
from vmreid.kernels.causal_conv import causal_conv_silu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and torch sees none"),
]
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of the largest value; sums of 1,539 products


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("length", [1, 3, 129, 197, 512, 513, 1024, 1025])
def test_outputs_and_gradients_equal_float64(length: int, dtype: torch.dtype) -> None:
    available, why = causal_conv.probe()
    if not available:
        pytest.skip(why)
    random = torch.Generator("cuda").manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device="cuda")

    inputs = [draw(3, 64, length).to(dtype), draw(64, 1, 4), draw(64)]
    exact = [x.double().requires_grad_() for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    y, wanted = causal_conv_silu(*inputs, "mamba_ssm"), causal_conv_silu(*exact, "torch")
    dy = draw(*y.shape).to(dtype)
    found, sought = torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, exact, dy.double())
    assert y.dtype == dtype
    for name, one, other in zip(("y", "dx", "dweight", "dbias"), (y, *found), (wanted, *sought), strict=True):
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < TOLERANCE[dtype], f"{name}: {error}"
