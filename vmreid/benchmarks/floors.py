"""What a scan cannot go below on the machine at hand: its bytes through the memory, its exponentials through their units."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch

from vmreid.kernels.cross_scan import DIRECTIONS
from vmreid.timing import now

COPIED = 2**29  # bytes of the copy that shows the bandwidth
COPIES = 9
# exponentials a cycle and multiprocessor, by compute capability (CUDA C++ Programming Guide, "Arithmetic Instructions")
UNITS = {(9, 0): 16}


@dataclass(frozen=True)
class Shape:
    """SS2D's map: ``batch`` pictures of ``height`` x ``width`` tokens with ``channels`` inner channels, ``states`` of each."""

    batch: int
    channels: int
    height: int
    width: int
    states: int

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))


@dataclass(frozen=True)
class Floor:
    """Bytes that must move and exponentials that must be taken, and the milliseconds of the slower of both."""

    bytes: int
    exponentials: int
    ms: float
    bound_by: str


class Stopwatch:
    """Times single calls on ``device``; on a GPU by its own events, and each with the level 2 cache overwritten before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self.flush = torch.empty(size, dtype=torch.uint8, device=device)

    def ms(self, work: Callable[[], object]) -> float:
        """Milliseconds of one call of ``work``."""
        if self.device.type != "cuda":
            begin = now(self.device)
            work()
            return 1e3 * (now(self.device) - begin)
        begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self.flush.zero_()
        begin_event.record()
        work()
        end_event.record()
        end_event.synchronize()
        elapsed: float = begin_event.elapsed_time(end_event)
        return elapsed


@dataclass(frozen=True)
class Limits:
    """Bytes a second of a large copy, reads and writes counted; exponentials a second, None where that is not known."""

    bytes_per_s: float
    exponentials_per_s: float | None

    def floors(self, shape: Shape, element: int) -> tuple[Floor, Floor]:
        """Of the forward alone, and of forward and backward together; ``element`` are the bytes of one.

        The forward reads x, the delta of each direction, B and C and writes y; the backward reads all of them again and dy,
        and writes their gradients. An exponential for each state, and two for each softplus; the backward takes them twice,
        walking forward again and then back. What has no token axis is left out.
        """
        tokens = shape.batch * shape.height * shape.width
        inputs = (1 + DIRECTIONS) * shape.channels + 2 * DIRECTIONS * shape.states
        forward = tokens * element * (inputs + shape.channels)
        backward = tokens * element * (2 * inputs + shape.channels)
        exponentials = tokens * shape.channels * DIRECTIONS * (shape.states + 2)
        return self._floor(forward, exponentials), self._floor(forward + backward, 3 * exponentials)

    def _floor(self, size: int, exponentials: int) -> Floor:
        moved = 1e3 * size / self.bytes_per_s
        taken = 1e3 * exponentials / self.exponentials_per_s if self.exponentials_per_s else 0.0
        return Floor(size, exponentials, max(moved, taken), "bytes" if moved >= taken else "exponentials")


def measured_limits(stopwatch: Stopwatch) -> Limits:
    """Copy a large tensor, and look up what the processor's special function units do."""
    device = stopwatch.device
    source, target = (torch.zeros(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = statistics.median(stopwatch.ms(lambda: target.copy_(source)) for _ in range(COPIES)) / 1e3
    return Limits(2 * COPIED / seconds, _exponentials_per_s(device))


def _exponentials_per_s(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    a_cycle = UNITS.get((properties.major, properties.minor))
    kilohertz: int | None = getattr(properties, "clock_rate", None)  # older releases of torch do not tell it
    return 1e3 * kilohertz * properties.multi_processor_count * a_cycle if a_cycle and kilohertz else None
