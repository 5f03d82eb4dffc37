"""What one loop costs: time of a step, of its parts, memory, and how busy it keeps a GPU."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from vmreid.benchmarks.loops import Loop
from vmreid.engine.memory import peak_bytes
from vmreid.timing import durations, now

WARM_UP = 3
STEPS = 5  # at least
SECONDS = 2.0  # at least
STEPS_BY_PART = 3
NO_WORK = ("Context Sync", "Event Sync", "Stream Sync", "Stream Wait Event")  # the profiler's entries for waiting
COPIES = ("Memcpy", "Memset")


@dataclass(frozen=True)
class Figures:
    """Milliseconds of a step (median, least, most of ``steps``) and, in a pass of their own, medians of its three parts.

    ``peak_bytes``: most bytes allocated on the GPU since its statistics were reset, parameters and optimizer states among
    them. A CUDA graph holds its memory from the step that records it, so that must lie after.
    ``gpu_busy_ms``: time in which at least one kernel or copy ran in one step; ``gpu_busy_share`` of the median step.
    The share is near 1 where the GPU bounds the step, and small where launching does. The last four are None on a CPU,
    the last three also where the profiler may not see the GPU.
    """

    steps: int
    median_ms: float
    min_ms: float
    max_ms: float
    images_per_s: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    peak_bytes: int | None = None
    gpu_busy_ms: float | None = None
    gpu_busy_share: float | None = None
    kernels: int | None = None


def measure(loop: Loop, batch_size: int, device: torch.device) -> Figures:
    """Time ``loop`` undisturbed, then look at its parts, then on a GPU at its kernels."""
    for _ in range(WARM_UP):
        loop.step()
    times = [1e3 * seconds for seconds in durations(loop.step, device, STEPS, SECONDS)]
    peak = peak_bytes() if device.type == "cuda" else None
    median = statistics.median(times)
    parts = zip(*(_parts(loop, device) for _ in range(STEPS_BY_PART)), strict=True)
    forward, backward, optimizer = (1e3 * statistics.median(part) for part in parts)
    figures = (len(times), median, min(times), max(times), 1e3 * batch_size / median, forward, backward, optimizer)
    if device.type != "cuda":
        return Figures(*figures)
    busy, kernels = _gpu_work(loop.step)
    return Figures(*figures, peak, busy, busy / median, kernels) if kernels else Figures(*figures, peak)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (begin, end) spans: kernels on two streams at once count once."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _parts(loop: Loop, device: torch.device) -> tuple[float, float, float]:
    """Seconds of forward, backward and update, waiting for the device between them."""
    start = now(device)
    loss = loop.forward()
    after_forward = now(device)
    loop.backward(loss)
    after_backward = now(device)
    loop.update()
    return after_forward - start, after_backward - after_forward, now(device) - after_backward


def _gpu_work(step: Callable[[], None]) -> tuple[float, int]:
    """Milliseconds in which the GPU worked, and kernels that it ran, in one step."""
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        step()
        torch.cuda.synchronize()
    on_gpu = [event for event in record.events() if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    work = [event for event in on_gpu if event.name not in NO_WORK]
    busy_us = covered((event.time_range.start, event.time_range.end) for event in work)
    return busy_us / 1e3, sum(not event.name.startswith(COPIES) for event in work)
