"""How many gallery items of this rank come before targets, tile by tile: float32 screens, float64 decides."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch

from vmreid.evaluation.distances import Rows
from vmreid.evaluation.features import JUNK, Features
from vmreid.evaluation.screen import Frame, Screened, bound, products, screened
from vmreid.evaluation.threads import on_threads
from vmreid.evaluation.tiles import Tiles
from vmreid.evaluation.windows import Targets, Windows, count_exactly, look

Pairs = tuple[torch.Tensor, torch.Tensor]  # rows of queries, rows of items
DOUBTS = 32  # a row in doubt about more than one item in so many is screened again by float64: cheaper than measuring them


@dataclass(frozen=True)
class Part:
    """This rank's gallery: ``rows`` as given, and of its items G without junk, ordered by pid, their rows, ids and indices."""

    rows: Rows
    row_G: torch.Tensor
    pids_G: torch.Tensor
    camids_G: torch.Tensor
    index_G: torch.Tensor

    @staticmethod
    def of(given: Features, rows: Rows, index: torch.Tensor) -> Part:
        """``rows``: its features made ready; ``index``: the items' places in the whole gallery, int64."""
        kept = (given.pids != JUNK).nonzero().squeeze(1)
        kept = kept[given.pids[kept].argsort(stable=True)]
        return Part(rows, kept, given.pids[kept].contiguous(), given.camids[kept], index[kept])

    def __len__(self) -> int:
        return len(self.row_G)

    def of_one_pid(self, pids_Q: torch.Tensor) -> torch.Tensor:
        """How many items have each query's pid."""
        return torch.searchsorted(self.pids_G, pids_Q, right=True) - torch.searchsorted(self.pids_G, pids_Q)

    def pairs_of_one_pid(self, pids_Q: torch.Tensor) -> Pairs:
        """Rows (query, item) of all pairs with one pid, ordered by query."""
        first_Q, number_Q = torch.searchsorted(self.pids_G, pids_Q), self.of_one_pid(pids_Q)
        q = torch.arange(len(pids_Q)).repeat_interleave(number_Q)
        offset = torch.arange(len(q)) - (number_Q.cumsum(0) - number_Q)[q]
        return q, first_Q[q] + offset


def count_before(
    part: Part,
    tiles: Tiles,
    query: Rows,
    left_out: Pairs,
    slices: Sequence[slice],
    targets: Sequence[Targets],
    device: torch.device,
) -> list[torch.Tensor]:
    """Of each tile of a block of queries, which are ``slices`` of it, how many items of this rank come before each of its
    ``targets``: ``before_QP``, on ``device``. ``left_out``: pairs (query, item) that count nowhere."""
    frame = Frame.of(query, part.rows, device)
    queries = [
        _Queries(query[rows].to(device), target, frame, torch.float32) for rows, target in zip(slices, targets, strict=True)
    ]
    before = [torch.zeros_like(each.index_QP) for each in targets]
    adding = threading.Lock()

    def count(taken: Iterator[_Tile]) -> None:
        counter = _Counter(tiles, frame, device)
        for tile in taken:
            before_QP = counter.before_in(tile.items, queries[tile.number], tile.left_out)
            with adding:
                before[tile.number] += before_QP

    on_threads(_tiles(part, tiles.gallery_rows, left_out, slices, queries, frame, device), count, tiles.threads)
    return before


@dataclass(frozen=True)
class _Tile:
    """Items before a query tile, given by its ``number``, and the pairs of both that count nowhere."""

    items: _Items
    number: int
    left_out: Pairs


def _tiles(
    part: Part,
    rows: int,
    left_out: Pairs,
    slices: Sequence[slice],
    queries: Sequence[_Queries],
    frame: Frame,
    device: torch.device,
) -> Generator[_Tile, None, None]:
    """Each ``rows`` of the gallery before all query tiles that have targets."""
    order = left_out[1].argsort(stable=True)
    left_out_q, left_out_g = left_out[0][order], left_out[1][order].contiguous()
    for start in range(0, len(part), rows):
        stop = min(start + rows, len(part))
        items = _Items(part.rows[part.row_G[start:stop]].to(device), part.index_G[start:stop].to(device), frame)
        inside = slice(*torch.searchsorted(left_out_g, torch.tensor([start, stop])).tolist())
        q, g = left_out_q[inside], left_out_g[inside] - start
        for number, tile in enumerate(slices):
            if queries[number].targets.index_QP.shape[1]:
                own = (q >= tile.start) & (q < tile.stop)
                yield _Tile(items, number, ((q[own] - tile.start).to(device), g[own].to(device)))


class _Counter:
    """Counts within tiles, on ``device``, in one thread. Memory for tiles stays: fresh memory would cost as much as looking at a
    tile."""

    def __init__(self, tiles: Tiles, frame: Frame, device: torch.device) -> None:
        self._tiles, self._frame, self._device = tiles, frame, device
        self._memory: dict[torch.dtype, torch.Tensor] = {}

    def before_in(self, items: _Items, queries: _Queries, left_out: Pairs) -> torch.Tensor:
        """``before_QP`` within a tile. A row of float32 with many doubts is screened again by float64."""
        own, dtype = queries.screened, queries.dtype
        other = items.screened(dtype)
        product_QG = products(own, other, self._place(len(own), len(other), dtype))
        product_QG[left_out] = torch.inf
        windows = queries.windows(bound(own, other, self._frame, queries.rows.metric))
        most = len(other) // DOUBTS if dtype == torch.float32 else len(other)
        seen = look(product_QG, (other.squared_N / 2).to(dtype), windows, self._tiles.look_numbers, most)
        before_QP = seen.before_QP
        if len(seen.q):
            before_QP += count_exactly(queries.rows, queries.targets, items.rows, items.index_G, seen.q, seen.g)
        again = (seen.doubts_Q > most).nonzero().squeeze(1)
        if len(again):
            place_Q = torch.full((len(own),), -1, device=self._device)
            place_Q[again] = torch.arange(len(again), device=self._device)
            q, g = left_out
            kept = place_Q[q] >= 0
            finer = _Queries(queries.rows[again], queries.targets[again], self._frame, torch.float64)
            before_QP[again] = self.before_in(items, finer, (place_Q[q[kept]], g[kept]))
        return before_QP

    def _place(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._memory:
            size = self._tiles.query_rows * self._tiles.gallery_rows
            self._memory[dtype] = torch.empty(size, dtype=dtype, device=self._device)
        return self._memory[dtype][: rows * columns].view(rows, columns)


class _Queries:
    """A tile of queries and their targets on the device, screened by ``dtype``. Several threads may ask it at once."""

    def __init__(self, rows: Rows, targets: Targets, frame: Frame, dtype: torch.dtype) -> None:
        self.rows, self.targets, self.dtype = rows, targets, dtype
        self.screened = screened(rows, frame, dtype)
        self._distance_QP = frame.distances(targets.distance_QP, rows.metric)
        self._windows: Windows | None = None

    def windows(self, bound_Q: torch.Tensor) -> Windows:
        """Windows around the targets, the last ones where they suit: to make them takes a twentieth of a product's time."""
        windows = self._windows  # the same throughout, whatever another thread puts in its place
        if windows is None or not windows.suit(bound_Q):
            windows = self._windows = Windows.around(self._distance_QP, self.screened, bound_Q)
        return windows


class _Items:
    """A tile of this rank's items on the device: as given, and screened. Several threads may ask it at once."""

    def __init__(self, rows: Rows, index_G: torch.Tensor, frame: Frame) -> None:
        self.rows, self.index_G, self._frame = rows, index_G, frame
        self._screened = {torch.float32: screened(rows, frame, torch.float32)}

    def screened(self, dtype: torch.dtype) -> Screened:
        """By float32 or float64, which few tiles need."""
        if dtype not in self._screened:
            self._screened[dtype] = screened(self.rows, self._frame, dtype)
        return self._screened[dtype]
