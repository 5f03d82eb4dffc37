"""Functions as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def as_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as kernels that torch compiles, its forward and its backward each one CUDA graph. A run overwrites what the
    one before it gave."""
    graphs: Callable[P, R] = torch.compile(function, mode="reduce-overhead", dynamic=False)
    return graphs
