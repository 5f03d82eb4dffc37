"""Distances between feature rows whose bits depend on the two rows alone.

A matrix product may add its terms in another order for every shape, thread count, library and device. So the product
is only a screen here: it says of nearly all pairs which of two distances is smaller, and its error has a proved bound.
The few pairs that it cannot tell apart are measured by ``exact_distances``, whose operations and order are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Metric = Literal["euclidean", "cosine"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine")
ROWS = 4096


@dataclass(frozen=True)
class Rows:
    """Feature rows made ready for one metric.

    ``x_NF``: float64 rows, of unit length under ``cosine``. ``size_N``: what a row adds to a distance by itself: |x|²
    under ``euclidean``, 1/2 under ``cosine``, so that every distance lies between 0 and 2 (size_q + size_g).
    """

    x_NF: torch.Tensor
    size_N: torch.Tensor
    metric: Metric

    def __getitem__(self, rows: torch.Tensor | slice) -> Rows:
        return Rows(self.x_NF[rows], self.size_N[rows], self.metric)

    def __len__(self) -> int:
        return len(self.x_NF)


def ordered_sum(x_NF: torch.Tensor) -> torch.Tensor:
    """Sum over the last axis by halving it again and again; element-wise additions only, so the bits never vary."""
    while (length := x_NF.shape[-1]) > 1:
        half = (length + 1) // 2
        tail = x_NF[..., half:]
        head = x_NF[..., :half].clone()
        head[..., : length - half] += tail
        x_NF = head
    return x_NF[..., 0]


def squared_norms(features_NF: torch.Tensor) -> torch.Tensor:
    """|x|² of each row in float64; not finite exactly where a row is not finite or too large for float64."""
    return torch.cat([ordered_sum(x_NF.double().square()) for x_NF in torch.split(features_NF, ROWS)])  # few rows: little memory


def prepare(features_NF: torch.Tensor, metric: Metric) -> Rows:
    """Cast finite rows (not zero under ``cosine``) to float64 and normalise them where the metric wants it."""
    x_NF, squared_N = features_NF.double(), squared_norms(features_NF)
    if metric == "cosine":
        return Rows(x_NF / squared_N.sqrt().unsqueeze(-1), torch.full_like(squared_N, 0.5), metric)
    return Rows(x_NF, squared_N, metric)


def exact_distances(query: Rows, gallery: Rows) -> torch.Tensor:
    """Distances of N pairs, row by row: sum((q - g)²) under ``euclidean``, 1 - sum(q g) under ``cosine``."""
    if query.metric == "cosine":
        return 1 - ordered_sum(query.x_NF * gallery.x_NF)
    difference_NF = query.x_NF - gallery.x_NF
    return ordered_sum(difference_NF * difference_NF)


def screen_distances(query: Rows, gallery: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """All distances ``d_QG`` of a tile by one matrix product, and how far each row's may be off, ``bound_Q``.

    A product of F terms summed in any order, fused or not, is off by at most F u |q| |g| with u = eps / 2 (Higham,
    Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). With |q| |g| <= size_q + size_g (half of it
    under ``euclidean``) that is at most (2 F + 5) u (size_q + size_g) for this formula, and as much again or less for
    ``exact_distances``. The bound is twice the sum of both; the tiny part covers underflow.
    """
    scale = -2 if query.metric == "euclidean" else -1
    d_QG = torch.addmm(gallery.size_N, query.x_NF, gallery.x_NF.T, alpha=scale)
    d_QG += query.size_N.unsqueeze(1)
    number = torch.finfo(torch.float64)
    largest = gallery.size_N.max()
    bound_Q = 4 * (query.x_NF.shape[1] + 8) * number.eps * (query.size_N + largest) + number.tiny
    return d_QG, bound_Q
