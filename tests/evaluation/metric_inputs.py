"""Features for the metric's tests, and threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from vmreid.evaluation.features import Features

Sides = tuple[Features, Features]


def features(rows: Any, pids: Any, camids: Any, dtype: torch.dtype = torch.float32) -> Features:
    ids = (torch.as_tensor(values, dtype=torch.int64).reshape(-1) for values in (pids, camids))
    return Features(torch.as_tensor(rows, dtype=dtype), *ids)


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """So many, which must be so many afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
        assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


def near_ties() -> Sides:
    """Features far from zero; each gallery row also as exact copies, and with its columns in another order.

    A query whose columns are all equal has one exact distance to all orders of a row, but rounding tells them apart,
    and each formula, shape and summation order in its own way.
    """
    generator = torch.Generator().manual_seed(5)
    base = 300 + torch.randn(120, 96, generator=generator)
    shuffled = [row[torch.randperm(96, generator=generator)] for row in base for _ in range(4)]
    rows = torch.cat([base, base, torch.stack(shuffled), base])
    rows = rows[torch.randperm(len(rows), generator=generator)]
    flat = torch.full((6, 96), 300.0) + torch.randn(6, 1, generator=generator)
    query_rows = torch.cat([flat, base[:20]])
    pids, camids = (torch.randint(0, high, (len(rows),), generator=generator) for high in (30, 4))
    query_pids = torch.arange(len(query_rows)) % 30
    return features(query_rows, query_pids, query_pids % 4), features(rows, pids, camids)
