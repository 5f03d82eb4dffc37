"""What a CPU does with pairs of rows: the sums that exact distances are made of, in the order of ``distances.ordered_sum``."""

from __future__ import annotations

import numpy as np
import torch

from vmreid.evaluation.compiled import compiled


def pair_sums(x_NF: torch.Tensor, y_MF: torch.Tensor, x: torch.Tensor, y: torch.Tensor, of_squares: bool) -> torch.Tensor:
    """Of each pair of rows (``x``, ``y``) sum((x - y)²), or else sum(x y), in float64."""
    sums = np.empty(len(x))
    compiled(_sums)(x_NF.detach().numpy(), y_MF.detach().numpy(), x.numpy(), y.numpy(), of_squares, sums)
    return torch.from_numpy(sums)


def squared_lengths(x_NF: torch.Tensor) -> torch.Tensor:
    """Of each row sum(x²), in float64."""
    row = torch.arange(len(x_NF))
    return pair_sums(x_NF, x_NF, row, row, of_squares=False)


def _sums(x_NF: np.ndarray, y_MF: np.ndarray, x: np.ndarray, y: np.ndarray, of_squares: bool, sums: np.ndarray) -> None:
    width = x_NF.shape[1]
    term_F = np.empty(width, np.float64)
    for pair in range(len(x)):
        x_F, y_F = x_NF[x[pair]], y_MF[y[pair]]
        if of_squares:
            for f in range(width):
                difference = np.float64(x_F[f]) - np.float64(y_F[f])
                term_F[f] = difference * difference
        else:
            for f in range(width):
                term_F[f] = np.float64(x_F[f]) * np.float64(y_F[f])
        length = width
        while length > 1:
            half = (length + 1) // 2
            for f in range(length - half):
                term_F[f] += term_F[half + f]
            length = half
        sums[pair] = term_F[0]
