"""What a CPU does with some rows of a tile of products: one walk along each row, which numba compiles at first use.

Nothing is branched on item by item: most items lie beyond the last edge, eight of them are passed over at once, and the others
search their places side by side, so that the compiler makes vectors of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np


def pass_edges(
    far_QG: np.ndarray, half_G: np.ndarray, edge_QE: np.ndarray, reach_Q: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add ``half_G`` to each row in its place; how many items of a row up to ``reach_Q`` have passed exactly so many of its
    edges, ``count_QE`` int64, and which are in doubt, having passed an odd number: places in the flat tile, ascending.

    Of a row with more than ``most`` doubts none is listed. All four are of one type, float32 or float64.
    """
    count_QE = np.zeros(edge_QE.shape, np.int64)
    doubt = np.empty(len(far_QG) * min(most, far_QG.shape[1]), np.int64)
    number = _compiled()(far_QG, half_G, edge_QE, reach_Q, most, count_QE, doubt)
    return count_QE, doubt[:number].copy()


@functools.cache
def _compiled() -> Callable[..., int]:
    import numba

    settings = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., int] = numba.njit(_walk, cache=True, **settings)
    except RuntimeError:  # no folder for its cache can be written
        compiled = numba.njit(_walk, **settings)
    return compiled


def _walk(
    far_QG: np.ndarray,
    half_G: np.ndarray,
    edge_QE: np.ndarray,
    reach_Q: np.ndarray,
    most: int,
    count_QE: np.ndarray,
    doubt: np.ndarray,
) -> int:
    (rows, columns), size = far_QG.shape, edge_QE.shape[1]
    near = np.zeros((columns + 7) // 8 * 8, np.bool_)
    eight = near.view(np.uint64)
    place = np.empty(columns + 8, np.uint32)  # of what is near, and of what comes after the last one
    far = np.empty(columns, far_QG.dtype)
    passed = np.empty(columns, np.uint32)
    one, none, listed = np.uint32(1), np.uint32(0), 0
    for q in range(rows):
        reach, edge = reach_Q[q], edge_QE[q]
        for g in range(columns):
            far_QG[q, g] += half_G[g]
            near[g] = far_QG[q, g] <= reach
        number = 0
        for group in range(len(eight)):
            if eight[group]:
                for g in range(8 * group, 8 * group + 8):
                    place[number] = g
                    number += near[g]
        for item in range(number):
            far[item] = far_QG[q, place[item]]
            passed[item] = none
        step = np.uint32(size >> 1)
        while step:
            for item in range(number):
                passed[item] += step if edge[passed[item] + step - one] < far[item] else none
            step >>= one
        doubts = none
        for item in range(number):
            count_QE[q, passed[item]] += 1
            doubts += passed[item] & one
        if none < doubts <= most:
            for item in range(number):
                if passed[item] & one:
                    doubt[listed] = q * columns + place[item]
                    listed += 1
    return listed
