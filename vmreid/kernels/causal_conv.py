"""A causal depthwise convolution of sequences with SiLU, and the one door to causal_conv1d, the optional CUDA package for it."""

from __future__ import annotations

import functools
import importlib

import torch
import torch.nn.functional as F

from vmreid.kernels.optional import imports

CHUNK_BYTES = 2048  # of a channel, that causal_conv1d's kernel takes at once: 128 threads of 16 bytes


@functools.cache
def probe() -> tuple[bool, str]:
    """Whether causal_conv1d runs in this process, and why (not): asked once, by importing its CUDA extension."""
    return imports("causal_conv1d", lambda: importlib.import_module("causal_conv1d"))


def causal_conv_silu(x_BDL: torch.Tensor, weight_D1W: torch.Tensor, bias_D: torch.Tensor, backend: str) -> torch.Tensor:
    """SiLU of each channel's own filter over a token and the W - 1 before it, zeros before the first: x's shape.

    ``backend``: the scan's, as ``choose_backend`` returned it. Beside mamba_ssm, which comes from the same hands and needs
    the same machine, causal_conv1d runs where it is installed; else torch's convolution, which is the reference. Sequences that
    take causal_conv1d more than one chunk (512 tokens in fp32, 1024 in 16 bits) go to torch too: the gradient of ``x`` by
    version 1.7.0 is wrong where few tokens are left for the last chunk (training_step.md).
    """
    if backend == "mamba_ssm" and x_BDL.shape[2] * x_BDL.element_size() <= CHUNK_BYTES and probe()[0]:
        kernel = importlib.import_module("causal_conv1d").causal_conv1d_fn
        y_BDL: torch.Tensor = kernel(x_BDL, weight_D1W.squeeze(1), bias_D, activation="silu")
        return y_BDL
    before = weight_D1W.shape[2] - 1
    weight_D1W, bias_D = weight_D1W.to(x_BDL.dtype), bias_D.to(x_BDL.dtype)
    return F.silu(F.conv1d(F.pad(x_BDL, (before, 0)), weight_D1W, bias_D, groups=len(weight_D1W)))
