"""The note's initialisation, one place for all backbones."""

from __future__ import annotations

import math

import torch
from torch import nn

from vmreid.recipes.schema import Start

WEIGHT_STD = 0.02
NOTE = Start()  # which the functions below follow


def initialise_weights(module: nn.Module) -> None:
    """Truncated normal with standard deviation 0.02 for linear and patch weights and tokens, 0 for biases, 1 for norms.

    Depthwise convolutions (few inputs an output) and whatever a module sets up by itself keep their own start.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear) or (isinstance(child, nn.Conv2d) and child.groups == 1):
            nn.init.trunc_normal_(child.weight, std=WEIGHT_STD)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in ("cls_token", "pos_embed"):
            nn.init.trunc_normal_(parameter, std=WEIGHT_STD)


def scan_projection(directions: int, outputs: int, inner: int) -> torch.Tensor:
    """x_proj, from D channels to E inputs of the scan: truncated normal with standard deviation 0.02, [K, E, D]."""
    return nn.init.trunc_normal_(torch.empty(directions, outputs, inner), std=WEIGHT_STD)


def delta_projection(directions: int, inner: int, rank: int) -> torch.Tensor:
    """dt_proj, from R numbers to the step size of each channel: U[-1, 1] / sqrt(R), [K, D, R] (Mamba's own start)."""
    return torch.empty(directions, inner, rank).uniform_(-(rank**-0.5), rank**-0.5)


def log_state_decay(channels: int, states: int) -> torch.Tensor:
    """A_log = log(1..N) for every channel, [channels, states] (S4D-real; Gu et al. 2022, arXiv 2206.11893, section 3.3)."""
    return torch.arange(1, states + 1, dtype=torch.float32).log().repeat(channels, 1)


def decay_rates(A_log_DN: torch.Tensor) -> torch.Tensor:
    """A = -exp(A_log), [channels, states], in fp32 at least: bf16 knows less than three digits of it."""
    return -torch.exp(A_log_DN.to(torch.promote_types(A_log_DN.dtype, torch.float32)))


def delta_bias(channels: int, steps: tuple[float, float] = NOTE.delta) -> torch.Tensor:
    """softplus^-1(exp U[log 1e-3, log 1e-1]), [channels]: step sizes over two decades (Mamba, arXiv 2312.00752, section 3.6),
    or between the two of ``steps``."""
    low, high = map(math.log, steps)
    delta = torch.exp(torch.rand(channels) * (high - low) + low)
    return delta + torch.log(-torch.expm1(-delta))


@torch.no_grad()
def start_otherwise(module: nn.Module, start: Start) -> None:
    """Draw anew what ``start`` has otherwise than the note; the rest stays as it was drawn."""
    for path, parameter in module.named_parameters():
        name = path.rpartition(".")[2]
        if name == "A_log" and start.A != NOTE.A:
            parameter.copy_(torch.randn_like(parameter) if start.A == "normal" else torch.zeros_like(parameter))
        elif name.startswith("dt_bias") and start.delta != NOTE.delta:
            parameter.copy_(delta_bias(parameter.numel(), start.delta).view_as(parameter))
        elif name in ("cls_token", "pos_embed") and start.token_std != NOTE.token_std:
            zeros = start.token_std == 0
            parameter.zero_() if zeros else nn.init.trunc_normal_(parameter, std=start.token_std)
