"""P x K identity batches in an order that is a pure function of (index, seed, epoch, step), whatever the world size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmreid.errors import UserError

WINDOW = 64  # shards whose identities are mixed: locality for disks and networks, breadth for training


@dataclass(frozen=True)
class Draw:
    """One picture of a batch: index row, label 0..C-1 (identities sorted by pid), and the seed of its augmentation."""

    row: int
    label: int
    seed: tuple[int, ...]


class IdentityBatches:
    """Identity batches over one split's index.

    Each epoch permutes the shards, permutes the identities within windows of ``WINDOW`` shards, and cuts them into
    batches of P; the identities left over sit that epoch out. K pictures of each are drawn without repetition; an
    identity with fewer than K pictures gives all of them, then begins again, each time augmented anew.
    """

    def __init__(self, index: np.ndarray, identities: int, pictures: int, seed: int) -> None:
        pid = np.asarray(index["pid"])
        starts = np.flatnonzero(np.r_[True, pid[1:] != pid[:-1]])
        self._starts = starts
        self._lengths = np.diff(np.r_[starts, len(pid)])
        self._shards = np.asarray(index["shard"])[starts]
        sorted_pids = np.sort(pid[starts])
        self._labels = np.searchsorted(sorted_pids, pid[starts])
        self.classes = len(starts)
        self.identities, self.pictures, self.seed = identities, pictures, seed
        if self.classes < identities:
            raise UserError(
                f"P = {identities} identities a batch, but the training split has {self.classes}; lower --batch_size, "
                "raise data.pictures_per_identity, or give more data"
            )
        self.steps_per_epoch = self.classes // identities
        self._epoch_order: tuple[int, np.ndarray] | None = None

    def order(self, epoch: int) -> np.ndarray:
        """Positions of the identities in the order of ``epoch``; int64, all C of them."""
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            shards = random.permutation(np.unique(self._shards))
            rank_of_shard = np.empty(int(self._shards.max()) + 1, dtype=np.int64)
            rank_of_shard[shards] = np.arange(len(shards))
            window = rank_of_shard[self._shards] // WINDOW
            order = np.lexsort((random.permutation(self.classes), window))
            self._epoch_order = (epoch, order)
        return self._epoch_order[1]

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The P x K pictures of ``step`` (0 <= step < steps_per_epoch) of ``epoch``, identity by identity."""
        chosen = self.order(epoch)[step * self.identities : (step + 1) * self.identities]
        return [draw for identity in chosen for draw in self._draw(epoch, int(identity))]

    def _draw(self, epoch: int, identity: int) -> list[Draw]:
        start, length = int(self._starts[identity]), int(self._lengths[identity])
        random = np.random.default_rng([self.seed, epoch, start])
        order = random.permutation(length)
        return [
            Draw(
                start + int(order[k % length]),
                int(self._labels[identity]),
                (self.seed, epoch, start + int(order[k % length]), k // length),
            )
            for k in range(self.pictures)
        ]


def check_split_over_ranks(identities: int, world: int, accumulation: int) -> None:
    """Raise UserError unless the P identities of a batch divide evenly over ranks and accumulation steps."""
    if identities % (world * accumulation):
        fits = [str(n) for n in range(1, identities + 1) if identities % (n * accumulation) == 0]
        ways = f"run on {', '.join(fits)} ranks, or" if fits else "lower gradient_accumulation_steps, or"
        raise UserError(
            f"P = {identities} identities a batch must be a multiple of ranks x gradient_accumulation_steps = "
            f"{world} x {accumulation}; {ways} change --batch_size or data.pictures_per_identity"
        )
