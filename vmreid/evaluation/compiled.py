"""What a CPU does by code that numba compiles at first use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, which lets other threads run and neither reorders sums nor fuses products with them."""
    import numba

    settings = {"nogil": True, "error_model": "numpy"}
    try:
        made: Callable[..., Any] = numba.njit(function, cache=True, **settings)
    except RuntimeError:  # no folder for its cache can be written
        made = numba.njit(function, **settings)
    return made
