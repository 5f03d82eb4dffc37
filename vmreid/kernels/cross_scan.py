"""Four reading orders of a map, and the way back: the cross scan of VMamba (Liu et al. 2024, arXiv 2401.10166).

Direction 0 reads row by row, 1 column by column, 2 and 3 are 0 and 1 from the end to the start.
"""

from __future__ import annotations

import torch

DIRECTIONS = 4


def cross_scan(x_BHWD: torch.Tensor) -> torch.Tensor:
    """Return x_BKDL: the map as K = 4 sequences of L = H·W tokens."""
    rows_BLD, columns_BLD = _by_rows(x_BHWD), _by_columns(x_BHWD)
    return _directed(rows_BLD, columns_BLD, rows_BLD, columns_BLD)


def cross_scan_own(x_BHWKC: torch.Tensor) -> torch.Tensor:
    """Return x_BKCL: as ``cross_scan``, where each of the K = 4 directions reads a map of its own."""
    first_BHWC, second_BHWC, third_BHWC, fourth_BHWC = x_BHWKC.unbind(3)
    return _directed(_by_rows(first_BHWC), _by_columns(second_BHWC), _by_rows(third_BHWC), _by_columns(fourth_BHWC))


def cross_sum(y_BKDL: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return y_BHWD: every token back in its place, summed over the 4 directions."""
    y_BKLD = y_BKDL.transpose(2, 3)
    rows_BLD = y_BKLD[:, 0] + y_BKLD[:, 2].flip(1)
    columns_BLD = y_BKLD[:, 1] + y_BKLD[:, 3].flip(1)
    rows_BHWD = torch.unflatten(rows_BLD, 1, (height, width))
    columns_BHWD = torch.unflatten(columns_BLD, 1, (width, height)).transpose(1, 2)
    return rows_BHWD + columns_BHWD


def cross_merge(y_BKDL: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return y_BHWD: every token back in its place, averaged over the 4 directions, so that it undoes ``cross_scan``."""
    return cross_sum(y_BKDL, height, width) / DIRECTIONS


def _by_rows(x_BHWC: torch.Tensor) -> torch.Tensor:
    return x_BHWC.flatten(1, 2)


def _by_columns(x_BHWC: torch.Tensor) -> torch.Tensor:
    return x_BHWC.transpose(1, 2).flatten(1, 2)


def _directed(
    rows_BLC: torch.Tensor, columns_BLC: torch.Tensor, rows_back_BLC: torch.Tensor, columns_back_BLC: torch.Tensor
) -> torch.Tensor:
    x_BKLC = torch.stack((rows_BLC, columns_BLC, rows_back_BLC.flip(1), columns_back_BLC.flip(1)), dim=1)
    return x_BKLC.transpose(2, 3)
