"""Distances between feature rows whose bits depend on the two rows alone.

A matrix product may add its terms in another order for every shape, thread count, library and device, so it only screens
(``screen.py``). What it cannot tell apart is measured by ``exact_distances``, whose operations and order are fixed.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vmreid.evaluation.pair_sums import pair_sums, squared_lengths

Metric = Literal["euclidean", "cosine"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine")
ROWS = 1024  # of float64 at once
PAIR_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 24}  # numbers of the pairs that are measured at once


@dataclass(frozen=True)
class Rows:
    """Feature rows made ready for one metric: ``x_NF`` as given, float32 or float64, and ``length_N`` |x| in float64."""

    x_NF: torch.Tensor
    length_N: torch.Tensor
    metric: Metric

    def __getitem__(self, rows: torch.Tensor | slice) -> Rows:
        if isinstance(rows, slice):
            return Rows(self.x_NF[rows], self.length_N[rows], self.metric)
        rows = rows.to(self.x_NF.device)
        return Rows(self.x_NF.index_select(0, rows), self.length_N[rows], self.metric)  # twice as fast as by brackets

    def __len__(self) -> int:
        return len(self.x_NF)

    def to(self, device: torch.device) -> Rows:
        """The same rows there."""
        return Rows(self.x_NF.to(device), self.length_N.to(device), self.metric)


def ordered_sum(x_NF: torch.Tensor) -> torch.Tensor:
    """Sum over the last axis by halving it again and again; additions of elements only, so the bits never vary. ``x_NF`` is
    overwritten."""
    while (length := x_NF.shape[-1]) > 1:
        half = (length + 1) // 2
        x_NF[..., : length - half] += x_NF[..., half:]
        x_NF = x_NF[..., :half]
    return x_NF[..., 0].clone()  # a view would keep all of it


def exact_sqrt(x: torch.Tensor) -> torch.Tensor:
    """The root that IEEE 754 asks for, as GPUs give it; on a CPU torch may give its neighbour, as the processor has it."""
    return x.sqrt() if x.is_cuda else torch.from_numpy(np.sqrt(x.numpy()))


def prepare(features_NF: torch.Tensor, metric: Metric) -> Rows:
    """Rows with their lengths: finite exactly where a row is finite and its square not too large for float64."""
    if features_NF.device.type == "cpu":
        return Rows(features_NF, exact_sqrt(squared_lengths(features_NF)), metric)
    length_N = torch.empty(len(features_NF), dtype=torch.float64, device=features_NF.device)
    for start in range(0, len(features_NF), ROWS):
        wide_NF = features_NF[start : start + ROWS].double()
        length_N[start : start + ROWS] = exact_sqrt(ordered_sum(wide_NF * wide_NF))
    return Rows(features_NF, length_N, metric)


def exact_distances(query: Rows, gallery: Rows) -> torch.Tensor:
    """Distances of N pairs, row by row, float64: sum((q - g)²) under ``euclidean``, 1 - sum(q g) / (|q| |g|) under ``cosine``."""
    if query.metric == "cosine":
        return 1 - ordered_sum(query.x_NF.double() * gallery.x_NF) / (query.length_N * gallery.length_N)
    difference_NF = query.x_NF.double() - gallery.x_NF
    return ordered_sum(difference_NF.mul_(difference_NF))


def pair_distances(query: Rows, gallery: Rows, q: torch.Tensor, g: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``exact_distances`` of the pairs of rows (q, g), on ``device``; on a CPU compiled code takes the same sums."""
    if device.type != "cpu":
        return exact_distances(query[q].to(device), gallery[g].to(device))
    sums = pair_sums(query.x_NF, gallery.x_NF, q, g, of_squares=query.metric == "euclidean")
    return 1 - sums / (query.length_N[q] * gallery.length_N[g]) if query.metric == "cosine" else sums


def pairs_at_once(
    q: torch.Tensor, g: torch.Tensor, width: int, device: torch.device
) -> Generator[tuple[slice, torch.Tensor, torch.Tensor], None, None]:
    """The pairs (q, g), with their slice, so many at once as suit ``exact_distances`` of rows of ``width`` on ``device``."""
    chunk = max(1, PAIR_NUMBERS[device.type] // width)
    for start in range(0, len(q), chunk):
        some = slice(start, start + chunk)
        yield some, q[some], g[some]
