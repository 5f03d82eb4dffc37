"""A rank dies while the others wait for what does not tell them: they end by themselves. Leaving in peace ends nobody."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from vmreid.lifeline import GRACE_S, RANK_LOST

RANK = """
import os, signal, socket, sys, time
from multiprocessing import get_context
from vmreid.lifeline import hold

rank, port, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
place = ("127.0.0.1", port)

def share(value):
    if value is None:
        for _ in range(100):
            try:
                with socket.create_connection(place) as end:
                    return int(end.makefile().readline())
            except OSError:
                time.sleep(0.05)
    with socket.create_server(place) as server:
        for _ in range(2):
            end, _ = server.accept()
            end.sendall(f"{value}\\n".encode())
            end.close()

let_go = hold(rank, 3, "127.0.0.1", share)
if how == "in peace":
    time.sleep(0.3 * rank)
    let_go()
    time.sleep(0.5 if rank == 0 else 7.0)  # rank 0's process is gone long before the others'
    os._exit(0)
if rank == int(how):
    get_context("fork").Process(target=time.sleep, args=(30,), daemon=True).start()  # as a loader's worker, which lives on
    time.sleep(0.5)
    print("dies at", time.time(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
time.sleep(60)  # as in a collective of NCCL
"""


def ends_of_three(how: str) -> tuple[list[int], list[str]]:
    """Statuses and what the ranks have printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), port, how], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        for rank in range(3)
    ]  # fmt: skip
    statuses = [rank.wait(40) for rank in ranks]
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)  # the dead rank's worker
    return statuses, [rank.stdout.read() for rank in ranks]


@pytest.mark.parametrize("dead", [0, 2])
def test_all_end_when_one_dies(dead: int) -> None:
    statuses, printed = ends_of_three(str(dead))
    ended = time.time()
    died = float(re.search(r"dies at ([\d.]+)", printed[dead])[1])
    assert statuses == [-signal.SIGKILL if rank == dead else RANK_LOST for rank in range(3)]
    assert GRACE_S - 0.5 < ended - died < GRACE_S + 3
    told = [text for text in printed if f"rank {dead} is gone without a word" in text]
    assert len(told) in (1, 2), "rank 0 tells, or those that saw rank 0 go"


def test_ranks_that_leave_in_peace_end_nobody() -> None:
    assert ends_of_three("in peace")[0] == [0, 0, 0]
