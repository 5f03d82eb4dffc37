"""How much is looked at at once, from the memory that may be taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GIB = 1 << 30
QUERY_ROWS, GALLERY_ROWS = 2048, 4096  # at most: products no longer grow faster with larger tiles
EVEN = 64  # a product of 3276 rows takes a third longer than one of 3264
LOOK_NUMBERS = 1 << 18  # at most: what a thread makes of them stays in its cache


def _even(rows: int) -> int:
    return rows - rows % EVEN if rows > EVEN else max(1, rows)


@dataclass(frozen=True)
class Tiles:
    """``threads`` that each have a tile; ``block_bytes`` of queries and their targets that walk the gallery together; rows of a
    tile; ``edges`` of a query tile, and numbers of a tile that a thread looks at, at once."""

    threads: int
    block_bytes: int
    query_rows: int
    gallery_rows: int
    edges: int
    look_numbers: int

    @staticmethod
    def within(memory_gib: float, width: int, threads: int) -> Tiles:
        """Tiles for features of ``width`` that take ``memory_gib`` beyond the features themselves, whatever the gallery's size.

        In bytes: a gallery row takes 8 a column (as given and float32) in each thread, or as much again for float64; a number of
        the tile 12 (float32 and float64); an edge 48; a number looked at 8.
        """
        part = int(memory_gib * GIB / 8)
        gallery_rows = _even(min(GALLERY_ROWS, part // (8 * max(2, threads) * width)))
        return Tiles(
            threads=threads,
            block_bytes=3 * part,
            query_rows=_even(min(QUERY_ROWS, 2 * part // (12 * threads * gallery_rows))),
            gallery_rows=gallery_rows,
            edges=part // (48 * threads),
            look_numbers=max(1, min(LOOK_NUMBERS, part // (8 * threads))),
        )

    def blocks(self, pairs_Q: torch.Tensor, width: int) -> list[torch.Tensor]:
        """Rows of queries by blocks, those with few pairs of one pid first: a row takes 12 bytes a column and 200 a pair."""
        order = pairs_Q.argsort(stable=True)
        number = (12 * width + 200 * pairs_Q[order]).cumsum(0) // max(1, self.block_bytes)
        return list(torch.split(order, [count for count in torch.bincount(number).tolist() if count]))

    def query_tiles(self, pairs_Q: torch.Tensor) -> list[slice]:
        """Slices of a block whose rows have ``pairs_Q``, ascending."""
        slices, stop = [], len(pairs_Q)
        while stop:
            rows = max(1, min(self.query_rows, self.edges // (4 * int(pairs_Q[stop - 1]) + 1)))
            slices.append(slice(max(0, stop - rows), stop))
            stop = slices[-1].start
        return slices[::-1]
