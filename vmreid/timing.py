"""Wall-clock time of work that a device may still be doing when the call returns, and how a cost grows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch


def now(device: torch.device) -> float:
    """Seconds on a clock that is read when ``device`` has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def durations(step: Callable[[], None], device: torch.device, repeats: int, seconds: float) -> list[float]:
    """Seconds of each call of ``step``: at least ``repeats`` calls, and more until they have taken ``seconds`` together."""
    times: list[float] = []
    while len(times) < repeats or sum(times) < seconds:
        begin = now(device)
        step()
        times.append(now(device) - begin)
    return times


def fitted_exponent(cost: dict[int, float]) -> float:
    """Slope of log cost over log tokens by least squares: 1 is linear, 2 quadratic. Needs two numbers of tokens."""
    logs = [(math.log(tokens), math.log(value)) for tokens, value in cost.items()]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    slope: float = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    return slope


def device_name(device: torch.device) -> str:
    """What a time was taken on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
