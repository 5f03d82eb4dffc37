"""What scans are given, for whoever watches. Where nobody does, nothing is made for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scanned:
    """The inputs of one scan, as one sequence a direction; as ``selective_scan_reference`` names them."""

    u_BKDL: torch.Tensor
    delta_BKDL: torch.Tensor  # before its bias and the softplus
    A_KDN: torch.Tensor
    B_BKNL: torch.Tensor
    delta_bias_KD: torch.Tensor


_watchers: list[Callable[[Scanned], None]] = []


@contextlib.contextmanager
def watching(watcher: Callable[[Scanned], None]) -> Iterator[None]:
    """Call ``watcher`` for every eager scan in this context, in their order."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.pop()


def watched() -> bool:
    """Whether anybody watches."""
    return bool(_watchers)


def tell(scanned: Scanned) -> None:
    """Show the inputs of a scan to all watchers."""
    for watcher in _watchers:
        watcher(scanned)
