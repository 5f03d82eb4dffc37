"""P x K identity batches in an order that is a pure function of (indexes, weights, seed, epoch, step), whatever the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmreid.data.manifest import REWRITE, ROWS
from vmreid.errors import UserError

WINDOW = 64  # shards whose identities are mixed: locality for disks and networks, breadth for training
MIX, ORDER, PLACES, PICTURES = range(4)  # what a generator draws; keeps its numbers apart from the others'


@dataclass(frozen=True)
class Draw:
    """One picture of a batch: row, label 0..C-1, camera, and the seed of its augmentation.

    Rows and labels count through the sets in their order: those of the second set follow those of the first.
    """

    row: int
    label: int
    camid: int
    seed: tuple[int, ...]


class IdentityBatches:
    """Identity batches over the training splits of one or several sets.

    **An epoch** has as many places as there are identities, in all sets together: C // P steps of P. With one set, each
    identity comes once, but for the C % P left over, which are others in the next epoch.

    **Order**: each epoch permutes a set's shards, and its identities within windows of ``WINDOW`` shards.

    **Several sets**: ``weights`` say how many of a batch's P identities come from each. The share of a set with weight w,
    of all weights' sum 1, is P·w on average, and in every batch P·w rounded up or down, as a drawn number says. A set
    that is through begins again in a new order; what is left of it and does not fill its share of the batch sits out, so
    that no identity is in a batch twice. Identities of different sets never are the same, whatever their pids.

    **Long tails**: an identity has one place whatever its number of pictures, so those with many do not crowd out the
    others; of more than K pictures, each epoch draws K anew. **Fewer than K** pictures: all of them, then again from the
    first, each time augmented anew. **Cameras**: the K pictures go in turns over the identity's cameras, in a drawn
    order, so they come from as many cameras as they can. An identity of **one camera** takes part like the others; its
    positives are of that camera.

    Memory: some numbers an identity and a step; the indexes stay on disk.
    """

    def __init__(
        self,
        indexes: np.ndarray | Sequence[np.ndarray],
        identities: int,
        pictures: int,
        seed: int,
        weights: Sequence[float] = (1,),
    ) -> None:
        self._sets: list[_Set] = []
        for index in [indexes] if isinstance(indexes, np.ndarray) else indexes:
            before = self._sets[-1] if self._sets else None
            self._sets.append(_Set(index, before.end_row if before else 0, before.end if before else 0))
        self.classes = self._sets[-1].end
        self.identities, self.pictures, self.seed = identities, pictures, seed
        if self.classes < identities:
            raise UserError(
                f"P = {identities} identities a batch, but the training split has {self.classes}; lower --batch_size, "
                "raise data.pictures_per_identity, or give more data"
            )
        self.steps_per_epoch = self.classes // identities
        borders = np.cumsum([0, *weights]) / sum(weights) * identities
        self._borders = np.round(borders, 9)  # so that sums of weights that are whole numbers are so exactly
        for each, share in zip(self._sets, np.ceil(np.diff(self._borders) - 1e-6), strict=True):
            if each.end - each.first < share:
                raise UserError(
                    f"data.shards: a set with {each.end - each.first} identities must give up to {share:.0f} of a batch's "
                    f"P = {identities}; lower its weight, or --batch_size"
                )
        self._plan: tuple[int, np.ndarray] | None = None

    def identities_at(self, epoch: int, step: int) -> np.ndarray:
        """The P identities of a step (0 <= step < steps_per_epoch) by number 0 .. C-1, in the order of the batch; int64 [P]."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._planned(epoch))
        chosen = [
            each.order(self.seed, epoch, number, turn)[begin : begin + count]
            for number, (each, (begin, count, turn)) in enumerate(zip(self._sets, self._plan[1][step].tolist(), strict=True))
        ]
        return np.random.default_rng([PLACES, self.seed, epoch, step]).permutation(np.concatenate(chosen))

    def rows_of(self, epoch: int, identity: int) -> list[int]:
        """All rows of an identity in the order in which ``epoch`` takes them, cameras in turns."""
        part, place = self._find(identity)
        random = np.random.default_rng([PICTURES, self.seed, epoch, identity])
        start, length = int(part.starts[place]), int(part.lengths[place])
        shuffled = random.permutation(length)
        cameras, camera = np.unique(part.index["camid"][start : start + length][shuffled], return_inverse=True)
        by_camera = np.argsort(camera, kind="stable")
        first = np.searchsorted(camera[by_camera], camera[by_camera])
        turn = np.empty(length, dtype=np.int64)
        turn[by_camera] = np.arange(length) - first
        in_turns = np.lexsort((random.permutation(len(cameras))[camera], turn))
        rows: list[int] = (part.first_row + start + shuffled[in_turns]).tolist()
        return rows

    def draw(self, epoch: int, identity: int, row: int, repetition: int) -> Draw:
        """A picture of an identity, for the n-th time in a batch (from 0)."""
        part, place = self._find(identity)
        camid = int(part.index["camid"][row - part.first_row])
        return Draw(row, int(part.labels[place]), camid, (self.seed, epoch, row, repetition))

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The P x K pictures of a step, identity by identity."""
        draws = []
        for identity in self.identities_at(epoch, step).tolist():
            rows = self.rows_of(epoch, identity)
            draws += [self.draw(epoch, identity, rows[k % len(rows)], k // len(rows)) for k in range(self.pictures)]
        return draws

    def _planned(self, epoch: int) -> np.ndarray:
        """Of each step and set: where in the set's order its part begins, how many it takes, and how often it went round.

        Systematic sampling: points u, u + 1, ... fall into the sets' stretches of [0, P). int64 [steps, sets, 3].
        """
        u = np.random.default_rng([MIX, self.seed, epoch]).random((self.steps_per_epoch, 1))
        counts = np.diff(np.ceil(self._borders - u).clip(0, self.identities).astype(np.int64))
        plan = np.empty((*counts.shape, 3), dtype=np.int64)
        for number, each in enumerate(self._sets):
            begin = turn = 0
            for step, count in enumerate(counts[:, number].tolist()):
                if begin + count > each.end - each.first:
                    begin, turn = 0, turn + 1
                plan[step, number] = begin, count, turn
                begin += count
        return plan

    def _find(self, identity: int) -> tuple[_Set, int]:
        part = next(each for each in self._sets if identity < each.end)
        return part, identity - part.first


class _Set:
    """One set's identities: where each begins, how many pictures it has, its shard and label; numbered through all sets."""

    def __init__(self, index: np.ndarray, first_row: int, first: int) -> None:
        self.index, self.first_row, self.end_row = index, first_row, first_row + len(index)
        self.starts = _starts(index["pid"])
        self.lengths = np.diff(np.r_[self.starts, len(index)])
        self.first, self.end = first, first + len(self.starts)
        pid = index["pid"][self.starts]
        sorted_pids = np.unique(pid)
        if len(sorted_pids) != len(pid):
            raise UserError(f"an index has {len(pid) - len(sorted_pids)} identities in more than one place; {REWRITE}")
        self.labels = first + np.searchsorted(sorted_pids, pid)
        self._shard = index["shard"][self.starts]
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    def order(self, seed: int, epoch: int, number: int, turn: int) -> np.ndarray:
        """The set's identities in the order of the ``turn``-th time that ``epoch`` goes through it; int64."""
        if self._order is None or self._order[0] != (epoch, turn):
            random = np.random.default_rng([ORDER, seed, epoch, number, turn])
            shards, shard = np.unique(self._shard, return_inverse=True)
            window = random.permutation(len(shards))[shard] // WINDOW
            self._order = (epoch, turn), self.first + np.lexsort((random.permutation(len(shard)), window))
        return self._order[1]


def _starts(pid: np.ndarray) -> np.ndarray:
    """The rows where an identity begins; a part of the index at a time."""
    found = [np.zeros(min(len(pid), 1), dtype=np.int64)]
    for begin in range(1, len(pid), ROWS):
        end = min(begin + ROWS, len(pid))
        found.append(begin + np.flatnonzero(pid[begin:end] != pid[begin - 1 : end - 1]))
    return np.concatenate(found)


def check_split_over_ranks(identities: int, world: int, accumulation: int) -> None:
    """Raise UserError unless the P identities of a batch divide evenly over ranks and accumulation steps."""
    if identities % (world * accumulation):
        fits = [str(n) for n in range(1, identities + 1) if identities % (n * accumulation) == 0]
        ways = f"run on {', '.join(fits)} ranks, or" if fits else "lower gradient_accumulation_steps, or"
        raise UserError(
            f"P = {identities} identities a batch must be a multiple of ranks x gradient_accumulation_steps = "
            f"{world} x {accumulation}; {ways} change --batch_size or data.pictures_per_identity"
        )
