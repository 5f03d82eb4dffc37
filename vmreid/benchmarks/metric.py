"""The exact metric with its distances, beside the matrix product alone and other metrics: in turns, in one process."""

from __future__ import annotations

import gc
import itertools
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vmreid.benchmarks.fast_reid_checkout import PREFIX, FastReidCheckout
from vmreid.benchmarks.metric_peers import product, sorted_mean_ap
from vmreid.benchmarks.metric_rows import OWN, PRODUCT, MetricRow
from vmreid.benchmarks.synthetic_features import synthetic_features
from vmreid.errors import UserError
from vmreid.evaluation.distances import Metric
from vmreid.evaluation.features import Features
from vmreid.evaluation.protocol import summarise
from vmreid.evaluation.ranking import rank_queries
from vmreid.timing import device_name, now
from vmreid.versions import versions

ROUNDS, SECONDS = 3, 60.0  # rounds of a case, fewer where one takes longer than this
SORT = "argsort"
WATERMARK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class MetricBenchmark:
    """What is to be measured, checked before anything is. Raises UserError for a peer that cannot run.

    ``against``: "argsort" or "fast_reid=PATH".
    """

    def __init__(
        self,
        queries: int,
        galleries: list[int],
        dims: list[int],
        metric: Metric,
        memory_gib: float,
        against: list[str],
        device: torch.device,
    ) -> None:
        self.metric, self.memory_gib, self.device = metric, memory_gib, device
        self.cases = [(queries, gallery, dim) for dim, gallery in itertools.product(dims, sorted(galleries))]
        self.peers: dict[str, str] = {}
        self._contestants: dict[str, Callable[[Features, Features], float | None]] = {PRODUCT: product, OWN: self._own}
        for word in dict.fromkeys(against):
            if word == SORT:
                self._contestants[SORT], self.peers[SORT] = (
                    sorted_mean_ap,
                    "float32 product and torch.argsort of each query's gallery",
                )
            elif word.startswith(PREFIX):
                checkout = FastReidCheckout(word)
                self._contestants["fast_reid"], self.peers["fast_reid"] = checkout.mean_ap, str(checkout)
            else:
                raise UserError(f"--against {word}: must be {SORT} or {PREFIX}PATH")

    def rows(self) -> Iterator[list[MetricRow]]:
        """The contestants' rows of one case after the other."""
        for case in self.cases:
            yield self._case(*case)

    def setting(self, command: str) -> dict[str, Any]:
        """What the figures hold for."""
        return {
            "command": command,
            "device": device_name(self.device),
            "versions": versions(),
            "metric": self.metric,
            "memory_gib": self.memory_gib,
            "peers": self.peers,
        }

    def _own(self, query: Features, gallery: Features) -> float:
        ranks = rank_queries(query, gallery, torch.arange(len(gallery)), self.metric, self.device, self.memory_gib)
        mean_ap = summarise(ranks)["mAP"]
        assert isinstance(mean_ap, float)
        return mean_ap

    def _case(self, queries: int, gallery: int, dim: int) -> list[MetricRow]:
        gc.collect()
        sides = synthetic_features(queries, gallery, dim)
        there = tuple(side.to(self.device) for side in sides)
        size = sum(side.features.nbytes for side in sides)
        seconds: dict[str, list[float]] = {name: [] for name in self._contestants}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in self._contestants}
        peaks: dict[str, int] = {}
        found: dict[str, float | None] = {}
        while len(seconds[OWN]) < ROUNDS and sum(map(sum, seconds.values())) < SECONDS:
            for name, contestant in self._contestants.items():
                _reset_peak(self.device)
                begin, worked = now(self.device), time.process_time()
                found[name] = contestant(*(sides if name == OWN else there))
                seconds[name].append(now(self.device) - begin)
                cpu_seconds[name].append(time.process_time() - worked)
                peaks[name] = max(peaks.get(name, 0), _peak_bytes(self.device))
        return [
            MetricRow(queries, gallery, dim, name, seconds[name], cpu_seconds[name], peaks[name], size, found[name])
            for name in self._contestants
        ]


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif WATERMARK.exists():  # Linux; elsewhere a peak is the largest so far
        WATERMARK.write_text("5")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"VmHWM:\s+(\d+)", STATUS.read_text()) if STATUS.exists() else None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
