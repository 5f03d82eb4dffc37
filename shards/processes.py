"""Processes that share a command's work."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from vmreid.errors import UserError


@contextlib.contextmanager
def processes(workers: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of ``workers`` that have ``module`` imported. What is not begun yet when the block ends is not done.

    Raises UserError where one of them is killed.
    """
    context = multiprocessing.get_context("forkserver")  # forks of this process could inherit another thread's locks
    context.set_forkserver_preload([module])
    pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))  # Ctrl-C ends this one alone
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError(
            f"a process of {workers} was killed, perhaps for want of memory; start again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
