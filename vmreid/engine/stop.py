"""A wish to stop, from a scheduler's signal to any rank: all ranks end after the same step, with a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopWish:
    """All ranks. Within the context SIGTERM and SIGUSR1 are wishes; once a step ``vote`` begins to tell the others of it,
    and ``agreed`` says whether any rank had one. The vote is on its way while the step is taken, over the CPU's group.
    """

    def __init__(self) -> None:
        self._mine = 0
        self._before: dict[signal.Signals, Any] = {}
        self._vote = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None

    def __enter__(self) -> StopWish:
        try:
            self._before = {number: signal.signal(number, self._wish) for number in SIGNALS}
        except ValueError:  # not the main thread, which alone has signals
            self._before = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        self._mine = number

    def vote(self) -> None:
        """All ranks, once a step."""
        self._vote.fill_(self._mine)
        if dist.get_world_size() > 1:
            self._work = dist.all_reduce(self._vote, op=dist.ReduceOp.MAX, async_op=True)

    def agreed(self) -> str:
        """All ranks, after ``vote``. The same everywhere: the name of a signal that some rank got, or nothing."""
        if self._work:
            self._work.wait()
        number = int(self._vote)
        return signal.Signals(number).name if number else ""
