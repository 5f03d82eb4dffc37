"""A launcher module on ranks of this machine, which may be asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from vmreid.distributed import free_port
from vmreid.lifeline import RANK_LOST

SECONDS_TO_FOLLOW = 30.0  # that ranks have to end by themselves after one has failed
OTHERS = ("EXPECT_WORLD_SIZE", "SLURM_STEP_ID", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # what says otherwise how many there are


class Ranks:
    """Processes of one module; their output is appended to ``log``."""

    def __init__(self, module: str, words: Sequence[str], ranks: int, log: Path) -> None:
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        environment = {key: value for key, value in os.environ.items() if key not in OTHERS} | meet
        environment["PYTHONUNBUFFERED"] = "1"
        if not torch.cuda.is_available():
            environment.setdefault("DS_ACCELERATOR", "cpu")
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
        with log.open("a") as output:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, "-m", module, *words], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
                for rank in range(ranks)
            ]  # fmt: skip

    def code(self) -> int | None:
        """None while they run; then the exit code of the one that says most: a failure before a lost rank, that before 0."""
        codes = [process.poll() for process in self._processes]
        failed = [code for code in codes if code not in (None, 0)]
        if failed and None in codes:
            self._end(SECONDS_TO_FOLLOW)
            codes = [process.poll() for process in self._processes]
        if None in codes:
            return None
        return next((code for code in (*failed, *codes) if code not in (0, RANK_LOST)), max(code or 0 for code in codes))

    def ask_to_stop(self) -> None:
        """USR1 to all: a training saves a checkpoint after its step and ends with TO_GO_ON."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR1)

    def _end(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for process in self._processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
