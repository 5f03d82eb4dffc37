"""k-reciprocal nearest neighbours and their expansion: Zhong et al., Re-ranking Person Re-identification with k-reciprocal
Encoding, CVPR 2017, section 3.2. Whole numbers only, so the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch

ROWS = 1024  # at once


def expanded_sets(nearest_NK: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R*(p, k1) of the given rows p, equation (5), as pairs (place in ``rows``, member), ascending, each once.

    ``nearest_NK``: the K = k1 + 1 nearest of all N rows, each row itself among them, nearest first. Members' own sets,
    R(q, k1 / 2), are of the K' = round(k1 / 2) + 1 nearest, half to even, as the authors' code has it. Where a row has
    K copies of lower number it is not among its own nearest, and its set may be empty.
    """
    total, count = nearest_NK.shape
    half = round((count - 1) / 2) + 1
    halves = [_reciprocal(nearest_NK, some, half) for some in torch.split(torch.arange(total, device=rows.device), ROWS)]
    half_NH = torch.cat(halves)
    keys = [start * total + key for start, key in _keys(nearest_NK, half_NH, rows)]
    key = torch.cat([torch.zeros(0, dtype=torch.int64, device=rows.device), *keys])
    return key // total, key % total


def _keys(nearest_NK: torch.Tensor, half_NH: torch.Tensor, rows: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """For some rows at once: the place of the first, and (place after it) * N + member."""
    total, count = nearest_NK.shape
    half = half_NH.shape[1]
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        near_RK, own_RK = nearest_NK[some], _reciprocal(nearest_NK, some, count)
        member_RK = near_RK.masked_fill(~own_RK, total).sort(dim=1).values
        theirs_RKH = nearest_NK[near_RK, :half]
        mutual_RKH = half_NH[near_RK] & own_RK.unsqueeze(2)
        place_RA = torch.searchsorted(member_RK, theirs_RKH.flatten(1)).clamp_max(count - 1)
        common_RKH = (member_RK.gather(1, place_RA) == theirs_RKH.flatten(1)).view_as(mutual_RKH) & mutual_RKH
        taken_RK = 3 * common_RKH.sum(dim=2) > 2 * mutual_RKH.sum(dim=2)
        key_R = torch.arange(len(some), device=rows.device) * total
        own = (key_R[:, None] + near_RK)[own_RK]
        theirs = (key_R[:, None, None] + theirs_RKH)[mutual_RKH & taken_RK.unsqueeze(2)]
        yield start, torch.unique(torch.cat([own, theirs]))


def _reciprocal(nearest_NK: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Which of the rows' ``count`` nearest have the row among their own ``count`` nearest: [R, count]."""
    return (nearest_NK[nearest_NK[rows, :count], :count] == rows[:, None, None]).any(dim=2)
