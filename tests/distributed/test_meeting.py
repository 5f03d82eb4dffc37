"""Ranks that wait for one another to begin: one whose node never started, or has ended with an error, cannot say so itself."""

from __future__ import annotations

import os
import subprocess
import sys

from vmreid.distributed import free_port

ALONE = """
from vmreid import distributed
from vmreid.command import run
distributed.SECONDS_TO_BEGIN, distributed.SECONDS_BEFORE_A_WORD = 1.5, 0.5
run(lambda _: distributed.start_process_group(distributed.place_from_environment()))
"""


def test_a_rank_says_what_it_waits_for_and_ends() -> None:
    """Ranks 0 and 2 of three, each as if it were alone."""
    awaited = {0: "the other 2 ranks to come to", 2: "rank 0 to answer at"}
    started = {}
    for rank in awaited:
        port = str(free_port())
        environment = {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = subprocess.Popen(
            [sys.executable, "-c", ALONE], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
        )
        started[rank] = process, f"{awaited[rank]} 127.0.0.1:{port}"
    try:
        for process, words in started.values():
            _, told = process.communicate(timeout=60)
            assert process.returncode == 2, told
            assert f"waiting for {words}" in told.splitlines()
            error = next(line for line in told.splitlines() if "error: " in line)
            assert f"error: waited 2 s for {words}; see what the other nodes have printed" in error
    finally:
        for process, _ in started.values():
            process.kill()
