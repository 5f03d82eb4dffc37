"""SS2D's core, this project's and others', over several shapes: in turns, so that a machine's moods meet all alike."""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vmreid.benchmarks.floors import Floor, Limits, Shape, Stopwatch, measured_limits
from vmreid.benchmarks.scan_rows import Pass, ScanRow
from vmreid.benchmarks.tokens import map_of
from vmreid.benchmarks.vmamba_checkout import PREFIX, VMambaCheckout
from vmreid.errors import UserError
from vmreid.kernels import choose_backend
from vmreid.kernels.cross_scan import DIRECTIONS
from vmreid.kernels.ss2d import ss2d
from vmreid.timing import device_name
from vmreid.versions import versions

ROUNDS = 5  # at least
SECONDS = 1.0  # at least, of all contestants together
GROWTH_CHANNELS = 384
BATCH = {"cuda": 64, "cpu": 1}
SHAPES = ((192, 64, 32, 1), (384, 32, 16, 1), (192, 64, 32, 16), (384, 32, 16, 16), (768, 16, 8, 16))
LARGE = (384, 128, 64, 1)  # on a GPU only


@dataclass(frozen=True)
class Contestant:
    """One way to scan a map: ``prepare`` lays the inputs of ``ss2d`` out as ``scan`` takes them, which is not timed."""

    name: str
    prepare: Callable[[list[torch.Tensor]], list[torch.Tensor]]
    scan: Callable[..., torch.Tensor]
    channels_first: bool = False


@dataclass
class _Ready:
    """A contestant with its inputs and a gradient of its output, warm."""

    scan: Callable[..., torch.Tensor]
    inputs: list[torch.Tensor]
    dy: torch.Tensor
    peak_bytes: int | None
    y_BHWD: torch.Tensor

    def forward(self) -> None:
        with torch.no_grad():
            self.scan(*self.inputs)

    def training(self) -> None:
        torch.autograd.grad(self.scan(*self.inputs), self.inputs, self.dy)


class ScanBenchmark:
    """What is to be measured, checked before anything is. Raises UserError for a peer or a number that cannot be.

    ``against``: backends of ``ss2d``, or "vmamba=PATH". No ``shapes``: the usual ones of the device. ``tokens`` and
    ``d_state`` are those of the growth. ``graphs``: each call is one CUDA graph, as in a compiled step.
    """

    def __init__(
        self,
        against: list[str],
        shapes: list[Shape],
        tokens: list[int],
        d_state: int,
        device: torch.device,
        graphs: bool = False,
    ) -> None:
        if graphs and device.type != "cuda":
            raise UserError("--graphs: CUDA graphs need a GPU, and torch sees none here; leave it out")
        self.device, self.graphs = device, graphs
        self.backend, self.reason = choose_backend("auto", device, maps=True)
        self.peers: dict[str, str] = {}
        self.contestants = [_own(self.backend), *(self._peer(word) for word in dict.fromkeys(against))]
        batch = BATCH[device.type]
        usual = [Shape(batch, *sizes) for sizes in ((*SHAPES, LARGE) if device.type == "cuda" else SHAPES)]
        grown = [(Shape(batch, GROWTH_CHANNELS, *map_of(count), d_state), count) for count in tokens]
        self.cases: list[tuple[Shape, int | None]] = [*((shape, None) for shape in shapes or usual), *grown]
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.stopwatch = Stopwatch(device)

    @functools.cached_property
    def limits(self) -> Limits:
        """Of this machine, measured once."""
        return measured_limits(self.stopwatch)

    def rows(self) -> Iterator[list[ScanRow]]:
        """The contestants' rows of one case after the other; its memory is released before the next."""
        for shape, tokens in self.cases:
            yield self._case(shape, tokens)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def setting(self, command: str) -> dict[str, Any]:
        """What the figures hold for."""
        return {
            "command": command,
            "device": device_name(self.device),
            "versions": versions(),
            "graphs": self.graphs,
            "dtype": str(self.dtype).removeprefix("torch."),
            "backend": self.backend,
            "reason": self.reason,
            "peers": self.peers,
            "limits": asdict(self.limits),
        }

    def _peer(self, word: str) -> Contestant:
        if word.startswith(PREFIX):
            if "vmamba" in self.peers:
                raise UserError(f"--against {word}: a second checkout; give one")
            checkout = VMambaCheckout(word, self.device)
            self.peers["vmamba"] = str(checkout)
            return Contestant("vmamba", checkout.prepare, checkout.scan, channels_first=True)
        name, self.peers[word] = choose_backend(word, self.device, maps=True)
        if name == self.backend:
            raise UserError(f"--against {word}: {name} is what is measured; name another")
        return _own(name)

    def _case(self, shape: Shape, tokens: int | None) -> list[ScanRow]:
        ready: dict[str, _Ready] = {}
        with contextlib.suppress(torch.OutOfMemoryError):
            inputs = _inputs(shape, self.dtype, self.device)
            for contestant in self.contestants:
                with contextlib.suppress(torch.OutOfMemoryError):
                    ready[contestant.name] = _made_ready(contestant, inputs)
        own = ready.get(self.backend)
        differences = {name: _difference(one.y_BHWD, own.y_BHWD) for name, one in ready.items() if own and one is not own}
        forward = self._in_turns({name: self._work(one.forward) for name, one in ready.items()})
        training = self._in_turns({name: self._work(one.training) for name, one in ready.items()})
        floors = self.limits.floors(shape, self.dtype.itemsize)
        rows = []
        for name in (contestant.name for contestant in self.contestants):
            if name in forward and name in training:
                passes = _pass(forward[name], floors[0]), _pass(training[name], floors[1])
                rows.append(ScanRow(shape, tokens, name, "measured", *passes, ready[name].peak_bytes, differences.get(name)))
            else:
                rows.append(ScanRow(shape, tokens, name, "out of memory", None, None, None, None))
        return rows

    def _work(self, call: Callable[[], None]) -> Callable[[], None]:
        return _as_graph(call) if self.graphs else call

    def _in_turns(self, works: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
        """Milliseconds of each call; without those that ran out of memory."""
        times: dict[str, list[float]] = {name: [] for name in works}
        rounds = 0
        while times and (rounds < ROUNDS or sum(map(sum, times.values())) < 1e3 * SECONDS):
            rounds += 1
            for name in list(times):
                try:
                    times[name].append(self.stopwatch.ms(works[name]))
                except torch.OutOfMemoryError:
                    del times[name]
        return times


def _own(backend: str) -> Contestant:
    return Contestant(backend, list, functools.partial(ss2d, backend=backend))


def _as_graph(call: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # a graph is recorded of what has run before
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """The seven of ``ss2d``, random but as a model has them at its start: a delta of about 0.01 to 0.1, decays of 1 to N."""
    draw = functools.partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    place, inner = (shape.batch, shape.height, shape.width), (DIRECTIONS, shape.channels)
    x_BHWD, delta_BHWKD = draw(*place, shape.channels, dtype=dtype), draw(*place, *inner, dtype=dtype)
    B_BHWKN, C_BHWKN = (draw(*place, DIRECTIONS, shape.states, dtype=dtype) for _ in range(2))
    A_KDN = -torch.arange(1.0, shape.states + 1, device=device).expand(*inner, -1).contiguous()
    D_KD, delta_bias_KD = torch.ones(inner, device=device), torch.full(inner, -4.0, device=device)
    return [x_BHWD, delta_BHWKD, A_KDN, B_BHWKN, C_BHWKN, D_KD, delta_bias_KD]


def _made_ready(contestant: Contestant, inputs: list[torch.Tensor]) -> _Ready:
    own = [v.detach().requires_grad_() for v in contestant.prepare(inputs)]
    with torch.no_grad():
        y = contestant.scan(*own)
    shape_BDHW = (*y.shape[:2], *inputs[0].shape[1:3])
    y_BHWD = y.view(shape_BDHW).permute(0, 2, 3, 1) if contestant.channels_first else y
    ready = _Ready(contestant.scan, own, torch.randn_like(y), None, y_BHWD)
    ready.training()  # what is compiled at first use is compiled now
    if y.is_cuda:
        torch.cuda.reset_peak_memory_stats(y.device)
        others = torch.cuda.memory_allocated(y.device) - sum(v.nbytes for v in (*own, ready.dy))
        ready.training()
        ready.peak_bytes = torch.cuda.max_memory_allocated(y.device) - others
    return ready


def _difference(y_BHWD: torch.Tensor, own_BHWD: torch.Tensor) -> float:
    return ((y_BHWD.float() - own_BHWD.float()).abs().max() / own_BHWD.float().abs().max()).item()


def _pass(times: list[float], floor: Floor) -> Pass:
    median = statistics.median(times)
    return Pass(len(times), median, min(times), max(times), floor, floor.ms / median)
