"""A pool of processes that run a function on 1 to 4 gloo ranks.

Starting a process and importing torch takes seconds, so the processes stay. Each call gets a process group of its own
over a file store, which takes no port. The function must be a module's own (it travels by name), and so must what it
gets and returns be picklable.
"""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

RANKS = 4
COLLECTIVE_SECONDS = 60  # a collective that others do not join
CALL_SECONDS = 120
GRACE_SECONDS = 5  # for the other ranks, after one has failed


class PoolFailure(Exception):
    """A call that did not end, or a process that ended by itself; tells what each process had printed."""


class Pool:
    """``run(world, function, *args)`` calls ``function(*args)`` on ``world`` ranks and returns their results in order.

    What a rank raises is raised here too (what was raised first), with that rank's traceback as a note. A process that
    hangs or dies takes the pool with it; the next call starts a fresh one.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._calls = 0

    def run(self, world: int, function: Callable[..., Any], *args: Any, seconds: float = CALL_SECONDS) -> list[Any]:
        """Call ``function(*args)`` on all ranks 0 .. world - 1 at once."""
        if not 1 <= world <= RANKS:
            raise ValueError(f"world {world} is not within 1 .. {RANKS}")
        if not self._processes:
            self._start()
        self._calls += 1
        store = os.path.join(self._folder.name, f"store-{self._calls}")
        call = (list(sys.path), world, store, pickle.dumps((function, args)))
        pipes = self._pipes[:world]
        for pipe in pipes:
            pipe.send(call)
        answers: dict[int, Any] = {}
        failures: list[tuple[float, int, BaseException]] = []
        end = time.monotonic() + seconds
        while len(answers) < world:
            ready = wait([pipe for r, pipe in enumerate(pipes) if r not in answers], timeout=end - time.monotonic())
            if not ready:
                break
            for number in [r for r, pipe in enumerate(pipes) if pipe in ready]:
                try:
                    good, answers[number], moment = pickle.loads(pipes[number].recv())
                except (EOFError, ConnectionError):
                    raise PoolFailure(f"rank {number} of {world} ended by itself\n{self._dump()}") from None
                if not good:
                    failures.append((moment, number, answers[number]))
                    end = min(end, time.monotonic() + GRACE_SECONDS)
        missing = [r for r in range(world) if r not in answers]
        report = self._dump() if missing else ""
        if failures:
            cause = min(failures)[2]
            if missing:
                cause.add_note(f"ranks {missing} of {world} did not follow\n{report}")
            raise cause
        if missing:
            raise PoolFailure(f"ranks {missing} of {world} did not end within {seconds:g} s\n{report}")
        return [answers[r] for r in range(world)]

    def close(self) -> None:
        """End the processes and remove what they wrote."""
        self._kill()
        self._folder.cleanup()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for number in range(RANKS):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(number, there, self._log(number)), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def _log(self, number: int) -> str:
        return os.path.join(self._folder.name, f"rank-{number}.log")

    def _dump(self) -> str:
        """Kill the processes; return the stack of each and what it printed in this call."""
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.5)
        self._kill()
        logs = [(n, Path(self._log(n))) for n in range(RANKS)]
        return "\n".join(f"--- rank {n} ---\n{log.read_text(errors='replace')}" for n, log in logs if log.exists())

    def _kill(self) -> None:
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._processes, self._pipes = [], []


def _work(number: int, pipe: Connection, log: str) -> None:
    """A process of the pool: take calls until the pipe closes."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which closes the pool
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            paths, world, store, call = pipe.recv()
        except EOFError:
            return
        os.ftruncate(output, 0)
        sys.path[:] = paths
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world))
        pipe.send(_answer(number, world, store, call))


def _answer(number: int, world: int, store: str, call: bytes) -> bytes:
    """Run one call in a process group of its own; pickled: success, result or exception, and when it came."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    good, result = True, None
    try:
        function, args = pickle.loads(call)
        distributed_c10d._world.group_count = 0  # torch has counted groups that failed to form, and ranks must count alike
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=number,
            world_size=world,
            timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS),
        )
        result = function(*args)
    except BaseException as error:
        error.add_note(f"on rank {number} of {world}:\n{traceback.format_exc()}")
        good, result = False, error
    moment = time.monotonic()  # one clock for all processes: a rank that lost its neighbour fails later than that
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        blob = pickle.dumps((good, result, moment))
        pickle.loads(blob)  # some exceptions can be pickled, but not read again
    except Exception as error:
        text = f"{type(result)}: {error}" if good else "".join(traceback.format_exception(result))
        wrapped = RuntimeError(f"rank {number} of {world} gave what cannot be pickled:\n{text}")
        blob = pickle.dumps((False, wrapped, moment))
    return blob
