"""What a CPU does with some rows of a tile of products: one walk along each row, which numba compiles at first use.

Nothing is branched on item by item: most items lie beyond the last edge, eight of them are passed over at once, and the others
search their places side by side. A step of the search adds what a comparison gave: of a choice between two numbers the compiler
makes a jump for some processors, which they cannot foresee.
"""

from __future__ import annotations

import numpy as np
import torch

from vmreid.evaluation.compiled import compiled

TOP = 16  # the search begins among so many parts at once: to compare with all edges between them needs no jumping about


def pass_edges(
    product_QG: torch.Tensor, half_G: torch.Tensor, tree_QE: torch.Tensor, reach_Q: torch.Tensor, most: int, numbers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With ``half_G`` added to each row, how many items of a row are surely before each of its windows, ``before_QW``; how many
    are in doubt, ``doubts_Q``; and which, as places in the flat tile, ascending. ``numbers`` of the tile are looked at at once.

    Of a row with more than ``most`` doubts none is listed. All given are of one type, float32 or float64.
    """
    (rows, columns), at_once = product_QG.shape, max(1, numbers // product_QG.shape[1])
    before_QW, doubts_Q = torch.zeros(rows, tree_QE.shape[1] // 2, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    place, places = np.empty(min(rows, at_once) * min(most, columns), np.int64), []
    by_row = [each.numpy() for each in (product_QG, tree_QE, reach_Q, before_QW, doubts_Q)]
    for start in range(0, rows, at_once):
        number = compiled(_walk)(*(each[start : start + at_once] for each in by_row), half_G.numpy(), most, place)
        places.append(place[:number] + start * columns)
    return before_QW, doubts_Q, torch.from_numpy(np.concatenate(places))


def _walk(
    product_QG: np.ndarray,
    tree_QE: np.ndarray,
    reach_Q: np.ndarray,
    before_QW: np.ndarray,
    doubts_Q: np.ndarray,
    half_G: np.ndarray,
    most: int,
    doubt: np.ndarray,
) -> int:
    (rows, columns), size = product_QG.shape, np.uint32(tree_QE.shape[1])
    near = np.zeros((columns + 7) // 8 * 8, np.bool_)
    eight = near.view(np.uint64)
    place = np.empty(columns + 8, np.uint32)  # of what is near, and of what comes after the last one
    far = np.empty(columns, product_QG.dtype)
    node = np.empty(columns, np.uint32)
    count = np.zeros((4, 2 * tree_QE.shape[1]), np.uint32)  # four, for items in turn: most of a row pass the same edges
    one, none, listed = np.uint32(1), np.uint32(0), 0
    top = min(size, np.uint32(TOP))
    for q in range(rows):
        reach, tree = reach_Q[q], tree_QE[q]
        for g in range(columns):  # nothing is written back: half of the memory's time
            near[g] = product_QG[q, g] + half_G[g] <= reach
        number = np.uint64(0)  # at each use a signed one would be asked whether it counts from the end
        for group in range(len(eight)):
            if eight[group]:
                for g in range(8 * group, 8 * group + 8):
                    place[number] = g
                    number += np.uint64(near[g])
        for item in range(number):
            far[item] = product_QG[q, place[item]] + half_G[place[item]]
            node[item] = top
        for high in range(one, top):
            for item in range(number):
                node[item] += np.uint32(tree[high] < far[item])
        level = top
        while level < size:
            for item in range(number):
                node[item] += node[item] + np.uint32(tree[node[item]] < far[item])
            level += level
        for item in range(number):
            count[item & np.uint64(3), node[item]] += one
        sure, doubts = none, none
        if number:
            for window in range(size >> one):
                for turn in range(4):
                    sure += count[turn, size + 2 * window]
                    doubts += count[turn, size + 2 * window + 1]
                before_QW[q, window] = sure
            doubts_Q[q] = doubts
            count[:, size:] = none
        if none < doubts <= most:
            for item in range(number):
                if node[item] & one:
                    doubt[listed] = q * columns + place[item]
                    listed += 1
    return listed
