"""Ranks that wait for one another to begin: one whose node never started, or has ended with an error, cannot say so itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vmreid.distributed import free_port

ALONE = """
from vmreid import distributed
from vmreid.command import run
distributed.SECONDS_TO_MEET, distributed.SECONDS_BEFORE_A_WORD = 2.0, 0.5
run(lambda _: distributed.start_process_group(distributed.place_from_environment()))
"""


@pytest.mark.parametrize(("rank", "awaited"), [(0, "the other 2 ranks to come to"), (2, "rank 0 to answer at")])
def test_a_rank_says_what_it_waits_for_and_ends(rank: int, awaited: str) -> None:
    port = str(free_port())
    environment = {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ended = subprocess.run(
        [sys.executable, "-c", ALONE], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2, ended.stderr
    told = ended.stderr.splitlines()
    assert f"waiting for {awaited} 127.0.0.1:{port}" in told
    error = next(line for line in told if "error: " in line)
    assert f"error: waited 2 s for {awaited} 127.0.0.1:{port}; see what the other nodes have printed" in error
