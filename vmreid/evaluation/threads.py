"""Jobs shared out among the threads of a process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

J = TypeVar("J")


def on_threads(jobs: Generator[J, None, None], work: Callable[[Iterator[J]], None], threads: int) -> None:
    """Let ``work`` on so many threads, this one among them, each with its share of torch's threads, take ``jobs`` as they come.

    A job is made by the thread that takes it, one at a time. An error in making or doing one ends all, and is raised.
    """
    lock = threading.Lock()

    def taken() -> Iterator[J]:
        while True:
            with lock:
                try:
                    job = next(jobs)
                except StopIteration:
                    return
            yield job

    def one() -> None:
        try:
            with torch.inference_mode():  # a new thread would ask for gradients
                work(taken())
        finally:
            with lock:
                jobs.close()

    with _torch_threads(torch.get_num_threads() // threads), ThreadPoolExecutor(threads) as pool:
        others = [pool.submit(one) for _ in range(threads - 1)]
        one()
    for other in others:
        other.result()


@contextlib.contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
