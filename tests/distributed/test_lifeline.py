"""A rank dies while the others wait for what does not tell them: they end by themselves. Leaving in peace ends nobody."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmreid.lifeline import GRACE_S, RANK_LOST

RANK = """
import os, signal, sys, time
from multiprocessing import get_context
from pathlib import Path
from vmreid.lifeline import hold

rank, told, how = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def share(port):
    if port is not None:
        told.with_suffix(".new").write_text(str(port))
        told.with_suffix(".new").rename(told)
    while not told.is_file():
        time.sleep(0.05)
    return int(told.read_text())

let_go = hold(rank, 3, "127.0.0.1", share)
if how == "in peace":
    time.sleep((0.0, 0.3, 6.5)[rank])  # rank 0's process is gone long before rank 2 leaves, and rank 1 ends
    let_go()
    time.sleep((0.5, 7.0, 0.5)[rank])
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: None)  # as training does, whose step is to end first, and does not
if rank == int(how):
    get_context("fork").Process(target=time.sleep, args=(30,), daemon=True).start()  # as a loader's worker, which lives on
    time.sleep(0.5)
    print("dies at", time.time(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
DEAD = (0, 2)


@dataclass(frozen=True)
class Ends:
    """Of three ranks: statuses, what each has printed, and when the last one ended."""

    statuses: list[int]
    printed: list[str]
    moment: float


def ends_of_three(how: str, folder: Path) -> Ends:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(folder / how), how], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        for rank in range(3)
    ]  # fmt: skip
    if how != "in peace":
        ranks[int(how)].wait(40)
        for rank in ranks:
            rank.terminate()  # as a launcher does
    statuses = [rank.wait(40) for rank in ranks]
    moment = time.time()
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)  # the dead rank's worker
    return Ends(statuses, [rank.stdout.read() for rank in ranks], moment)


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[str, Ends]:
    """Of each way, by name; all at once, since they wait most of the time."""
    folder, ways = tmp_path_factory.mktemp("lifeline"), ("in peace", *map(str, DEAD))
    with ThreadPoolExecutor() as pool:
        return dict(zip(ways, pool.map(lambda how: ends_of_three(how, folder), ways), strict=True))


@pytest.mark.parametrize("dead", DEAD)
def test_all_end_when_one_dies(dead: int, ends: dict[str, Ends]) -> None:
    found = ends[str(dead)]
    died = float(re.search(r"dies at ([\d.]+)", found.printed[dead])[1])
    assert found.statuses == [-signal.SIGKILL if rank == dead else RANK_LOST for rank in range(3)]
    assert GRACE_S - 0.5 < found.moment - died < GRACE_S + 3
    told = [text for text in found.printed if f"rank {dead} is gone without a word" in text]
    assert len(told) in (1, 2), "rank 0 tells, or those that saw rank 0 go"


def test_ranks_that_leave_in_peace_end_nobody(ends: dict[str, Ends]) -> None:
    assert ends["in peace"].statuses == [0, 0, 0]
