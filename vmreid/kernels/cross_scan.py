"""Four reading orders of a map, and the way back: the cross scan of VMamba (Liu et al. 2024, arXiv 2401.10166).

Direction 0 reads row by row, 1 column by column, 2 and 3 are 0 and 1 from the end to the start.
"""

from __future__ import annotations

import torch


def cross_scan(x_BHWD: torch.Tensor) -> torch.Tensor:
    """Return x_BKDL: the map as K = 4 sequences of L = H·W tokens."""
    rows_BLD = x_BHWD.flatten(1, 2)
    columns_BLD = x_BHWD.transpose(1, 2).flatten(1, 2)
    x_BKLD = torch.stack((rows_BLD, columns_BLD, rows_BLD.flip(1), columns_BLD.flip(1)), dim=1)
    return x_BKLD.transpose(2, 3)


def cross_merge(y_BKDL: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return y_BHWD: every token back in its place, averaged over the 4 directions.

    The mean, not VMamba's sum, so that ``cross_merge(cross_scan(x), height, width)`` is x.
    """
    y_BKLD = y_BKDL.transpose(2, 3)
    rows_BLD = y_BKLD[:, 0] + y_BKLD[:, 2].flip(1)
    columns_BLD = y_BKLD[:, 1] + y_BKLD[:, 3].flip(1)
    rows_BHWD = torch.unflatten(rows_BLD, 1, (height, width))
    columns_BHWD = torch.unflatten(columns_BLD, 1, (width, height)).transpose(1, 2)
    return (rows_BHWD + columns_BHWD) / 4
