"""What a matrix product says about the distances of a tile, and how far it may be wrong.

The squared distance of two rows is |q|² + |g|² - 2 q·g, so |g|²/2 - q·g, the ``farness`` of an item, orders the gallery of one
query. Both sides are shifted by one centre, which no distance feels, but the product: features far from zero would lose all
their digits there. And they are scaled by a power of two, so that neither large nor small features leave float32.

The bound. u is the unit roundoff of the product's type (2^-24 or 2^-53), N = |q| + |g| after shifting and scaling, F the
width. In units of farness, first order in u:
- F u |q||g|: a sum of F products in any order, fused or not (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
  section 3.1).
- 5 u N²: rounding of the shifted rows (1), of |g|²/2 and |q|²/2 (2 at most, and their sums 2 F 2^-53), of adding |g|²/2 (1),
  and of a target's farness (1).
- (F + 16) 2^-53 N² under ``euclidean``, (F + 64) 2^-53 under ``cosine``: the float64 distance that a target is given by, whose
  unit rows are of unit length within a few roundings.
- what underflow may take, for each column: of the product's type, and of float64 before scaling.
The whole is taken 1.01 times, which covers the second order for F up to 10^5.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vmreid.evaluation.compiled import compiled
from vmreid.evaluation.distances import ROWS, Metric, Rows
from vmreid.evaluation.pair_sums import squared_lengths

SAMPLE = 4096  # rows whose mean is the centre
UNIT = 2.0**-53  # of float64
LARGEST_EXPONENT = {torch.float32: 126, torch.float64: 500}


@contextlib.contextmanager
def plain_products(device: torch.device) -> Iterator[None]:
    """Products in their own type: no autocast, no TF32 or bfloat16 in place of float32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@dataclass(frozen=True)
class Frame:
    """The coordinates of a screen: rows times 2^``exponent``, less ``centre_F``, whose values are float32's. Rows are brought
    there in ``dtype`` or finer."""

    exponent: int
    centre_F: torch.Tensor
    dtype: torch.dtype

    @staticmethod
    def of(query: Rows, gallery: Rows, device: torch.device) -> Frame:
        """One in which no entry is above 2 or so and the gallery lies around zero. Any would do; a good one leaves less doubt."""
        exponent, dtype = 0, torch.promote_types(query.x_NF.dtype, gallery.x_NF.dtype)
        if query.metric == "euclidean":
            ends = [float(end) for side in (query, gallery) if len(side) for end in torch.aminmax(side.x_NF)]
            limit = LARGEST_EXPONENT[dtype]
            exponent = max(-limit, min(limit, -math.frexp(max(map(abs, ends), default=0.0))[1]))
        sample = gallery[:: max(1, len(gallery) // SAMPLE)]
        total_F = torch.zeros(query.x_NF.shape[1], dtype=torch.float64, device=sample.x_NF.device)
        for start in range(0, len(sample), ROWS):
            total_F += (_measured(sample[start : start + ROWS], torch.float64) * 2.0**exponent).sum(dim=0)
        return Frame(exponent, (total_F / max(1, len(sample))).float().to(device), dtype)

    def distances(self, distance: torch.Tensor, metric: Metric) -> torch.Tensor:
        """Exact distances as squared distances within the frame."""
        return 2 * distance if metric == "cosine" else distance * 4.0**self.exponent


@dataclass(frozen=True)
class Screened:
    """Rows of one side in a frame, ``y_NF`` float32 or float64, and ``squared_N`` |y|² in float64."""

    y_NF: torch.Tensor
    squared_N: torch.Tensor

    def __getitem__(self, rows: torch.Tensor | slice) -> Screened:
        return Screened(self.y_NF[rows], self.squared_N[rows])

    def __len__(self) -> int:
        return len(self.y_NF)


def screened(rows: Rows, frame: Frame, dtype: torch.dtype) -> Screened:
    """Shift and scale ``rows``, and round to ``dtype``."""
    y_NF = torch.empty(rows.x_NF.shape, dtype=dtype, device=rows.x_NF.device)
    if rows.x_NF.device.type == "cpu":
        length_N = rows.length_N if rows.metric == "cosine" else torch.ones_like(rows.length_N)
        given = (each.numpy() for each in (rows.x_NF.detach(), length_N, frame.centre_F, y_NF))
        compiled(_shift)(*given, 2.0**frame.exponent)
        return Screened(y_NF, squared_lengths(y_NF))
    finer = torch.promote_types(frame.dtype, dtype)
    squared_N = torch.empty(len(rows), dtype=torch.float64, device=rows.x_NF.device)
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        x_NF = _measured(rows[part], finer)
        y_NF[part] = x_NF * 2.0**frame.exponent - frame.centre_F.to(x_NF.dtype)
        squared_N[part] = y_NF[part].square().sum(dim=1, dtype=torch.float64)
    return Screened(y_NF, squared_N)


def _shift(x_NF: np.ndarray, length_N: np.ndarray, centre_F: np.ndarray, y_NF: np.ndarray, scale: float) -> None:
    for row in range(len(x_NF)):
        for f in range(len(centre_F)):
            y_NF[row, f] = x_NF[row, f] / length_N[row] * scale - centre_F[f]


def _measured(rows: Rows, dtype: torch.dtype) -> torch.Tensor:
    """The rows between which distances lie: as given, in ``dtype``, or of unit length, in float64."""
    return rows.x_NF.double() / rows.length_N.unsqueeze(1) if rows.metric == "cosine" else rows.x_NF.to(dtype)


def products(query: Screened, gallery: Screened, out_QG: torch.Tensor) -> torch.Tensor:
    """-q·g of a tile, the farness less |g|²/2, into ``out_QG``."""
    return torch.addmm(out_QG, query.y_NF, gallery.y_NF.T, beta=0, alpha=-1, out=out_QG)


def bound(query: Screened, gallery: Screened, frame: Frame, metric: Metric) -> torch.Tensor:
    """How far the farness of each query's pairs may lie from that of their exact distance: ``bound_Q``, float64."""
    number, width = torch.finfo(query.y_NF.dtype), query.y_NF.shape[1]
    q_Q, g = query.squared_N.sqrt(), gallery.squared_N.max().sqrt()
    both_Q = (q_Q + g).square()
    bound_Q = number.eps / 2 * (width * q_Q * g + 5 * both_Q) + UNIT * (3 * width + 32) * both_Q
    if metric == "cosine":
        bound_Q += UNIT * (width + 64)
    return 1.01 * bound_Q + 64 * width * number.tiny + width * torch.finfo(torch.float64).tiny * 4.0**frame.exponent
