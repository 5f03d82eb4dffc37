"""k-reciprocal vectors, sparse and in whole numbers, and the re-ranked distance that follows from them.

Zhong et al. (CVPR 2017): an entry of a row's vector is the weight exp(-d) of a member of its set (equation 7), here as the
authors' code has it: d is the distance over the row's farthest, and a vector's entries sum to 1. Local expansion takes the
mean over the k2 nearest (equation 11). The Jaccard distance is 1 - s / (2 - s) with s the sum of the smaller entries
(equation 10), the re-ranked one (1 - lambda) Jaccard + lambda d (equation 12).

Entries are multiples of 2⁻⁴⁴, kept as int64: their sums are exact in any order, also under a GPU's atomic adds. All else is
element by element in float64, ``_exp`` included. So every bit is the same on all devices, tiles and numbers of ranks; from
sums in float64 it differs by less than 1e-10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

UNIT = 1 << 44
ENTRIES = 1 << 22  # of pairs of vectors at once
WIDTH = 4096  # items whose sums lie side by side


def unit_share(distance: torch.Tensor, farthest: torch.Tensor) -> torch.Tensor:
    """A distance over the farthest, from 0 to 1; 0 where all rows are one. Rounding may make a cosine distance negative."""
    return (distance / torch.where(farthest > 0, farthest, 1)).clamp(0, 1)


def blend(share: torch.Tensor, overlap: torch.Tensor, vectors: int, weight: float) -> torch.Tensor:
    """The re-ranked distance; ``overlap``: sum of the smaller entries of two sums of ``vectors`` vectors; ``weight``: lambda."""
    jaccard = 1 - overlap.double() / (2 * vectors * UNIT - overlap).double()
    return jaccard * (1 - weight) + share * weight


def weights(share_A: torch.Tensor, row_A: torch.Tensor, rows: int) -> torch.Tensor:
    """Entries int64 of vectors from their members' distances; ``row_A``: whose of the ``rows`` vectors each is."""
    entry_A = (_exp(-share_A) * UNIT).round().long()
    sum_R = torch.zeros(rows, dtype=torch.int64, device=row_A.device).index_add_(0, row_A, entry_A)
    return (entry_A.double() / sum_R[row_A].double() * UNIT).round().long()


def _exp(x: torch.Tensor) -> torch.Tensor:
    """exp on [-1, 0] by its series: multiplications and additions alone, whose bits a library's exp does not promise."""
    y = torch.ones_like(x)
    for k in range(18, 0, -1):
        y = y * x * (1 / k) + 1
    return y


@dataclass(frozen=True)
class Entries:
    """Sparse non-negative rows as triples, ordered by (row, column), each pair once."""

    row: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True)
class Vectors:
    """The sparse vectors of all N rows: row i has ``column`` and ``value`` from ``first[i]`` up to ``first[i + 1]``."""

    first: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor

    @classmethod
    def of(cls, key: torch.Tensor, value: torch.Tensor, total: int) -> Vectors:
        """From keys row * total + column in any order, each once."""
        order = key.argsort()
        key = key[order]
        first = torch.searchsorted(key, torch.arange(total + 1, device=key.device) * total)
        return cls(first, key % total, value[order])

    def summed(self, rows_RK: torch.Tensor) -> Entries:
        """The sum of K vectors for each R."""
        total, rows = len(self.first) - 1, rows_RK.flatten()
        which, entry = _runs(self.first[rows], self.first[rows + 1])
        key, place = torch.unique(which // rows_RK.shape[1] * total + self.column[entry], return_inverse=True)
        value = torch.zeros_like(key).index_add_(0, place, self.value[entry])
        return Entries(key // total, key % total, value)


@dataclass(frozen=True)
class Inverted:
    """Summed vectors of items by (tile of ``WIDTH`` items, column, place in the tile), as one ascending key each.

    ``total``: number of columns. ``items``: number of items.
    """

    key: torch.Tensor
    value: torch.Tensor
    total: int
    items: int

    @classmethod
    def of(cls, vectors: Vectors, rows_NK: torch.Tensor) -> Inverted:
        """The sums of K vectors for each of N items."""
        keys, values, total = [], [], len(vectors.first) - 1
        for tile, some_NK in enumerate(torch.split(rows_NK, WIDTH)):
            entries = vectors.summed(some_NK)
            key, order = ((tile * total + entries.column) * WIDTH + entries.row).sort()
            keys.append(key)
            values.append(entries.value[order])
        return cls(torch.cat(keys), torch.cat(values), total, len(rows_NK))

    def overlaps(self, entries: Entries, queries: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pairs (query, item) whose vectors share a column, and the sums of their smaller entries."""
        found = []
        for tile in range(-(-self.items // WIDTH)):
            begin = (tile * self.total + entries.column) * WIDTH
            low, high = torch.searchsorted(self.key, begin), torch.searchsorted(self.key, begin + WIDTH)
            sum_QW = torch.zeros(queries, WIDTH, dtype=torch.int64, device=begin.device)
            for some in _chunks(high - low):
                which, entry = _runs(low[some], high[some])
                smaller = torch.minimum(entries.value[some][which], self.value[entry])
                sum_QW.view(-1).index_add_(0, entries.row[some][which] * WIDTH + self.key[entry] % WIDTH, smaller)
            q, w = sum_QW.nonzero(as_tuple=True)
            found.append((q, tile * WIDTH + w, sum_QW[q, w]))
        none = entries.row[:0]
        q, item, overlap = (torch.cat([none, *each]) for each in zip(*found, strict=True)) if found else (none, none, none)
        return q, item, overlap


def _runs(begin: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All numbers of the half-open ranges, one range after the other, and before them the range each is of."""
    length = end - begin
    which = torch.arange(len(length), device=length.device).repeat_interleave(length)
    return which, torch.arange(len(which), device=length.device) + (begin - length.cumsum(0) + length)[which]


def _chunks(length: torch.Tensor) -> Iterator[slice]:
    """Slices of ranges that have about ``ENTRIES`` numbers together."""
    numbers = torch.unique_consecutive((length.cumsum(0) - length) // ENTRIES, return_counts=True)[1]
    begin = 0
    for number in numbers.tolist():
        yield slice(begin, begin + number)
        begin += number
