"""At which lengths causal_conv1d's gradient of its input is wrong: ``python docs/results/convolution_lengths.py``.

Needs CUDA and causal_conv1d. Random sequences against torch's convolution in float64.
"""

from __future__ import annotations

import torch
from causal_conv1d import causal_conv1d_fn

from vmreid.kernels.causal_conv import causal_conv_silu

LENGTHS = (129, 197, 509, 512, 513, 514, 516, 600, 1020, 1024, 1025, 1028, 1536, 2049, 2052)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
DRAWS, BATCH, CHANNELS, WIDTH = 40, 3, 64, 4


def error(length: int, dtype: torch.dtype, seed: int) -> float:
    """Of the gradient, the largest, as a share of its largest value."""
    random = torch.Generator("cuda").manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device="cuda")

    x_BDL = draw(BATCH, CHANNELS, length).to(dtype).requires_grad_()
    weight_DW, bias_D = draw(CHANNELS, WIDTH), draw(CHANNELS)
    exact_BDL = x_BDL.detach().double().requires_grad_()
    wanted_BDL = causal_conv_silu(exact_BDL, weight_DW.double().unsqueeze(1), bias_D.double(), "torch")
    y_BDL = causal_conv1d_fn(x_BDL, weight_DW, bias_D, activation="silu")
    dy_BDL = draw(*y_BDL.shape).to(dtype)
    (found,) = torch.autograd.grad(y_BDL, x_BDL, dy_BDL)
    (sought,) = torch.autograd.grad(wanted_BDL, exact_BDL, dy_BDL.double())
    return float((found.double() - sought).abs().max() / sought.abs().max())


def main() -> None:
    for dtype, tolerance in TOLERANCE.items():
        for length in LENGTHS:
            errors = [error(length, dtype, seed) for seed in range(DRAWS)]
            wrong = sum(not each < tolerance for each in errors)
            print(f"{dtype} {length}: wrong {wrong} of {DRAWS}, worst {max(errors):.2g}", flush=True)


if __name__ == "__main__":
    main()
