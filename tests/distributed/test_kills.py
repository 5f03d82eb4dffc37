"""SIGKILL of a random rank at a random moment, saving included: the job ends, goes on, and is what an undisturbed run is.

``VMREID_KILLS`` and ``VMREID_EXITS`` say how many, as docs/results/survival.md has it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny import SMALL, read_json_lines, set_words, write_set

from vmreid.distributed import free_port
from vmreid.engine.checkpoint import newest_sound
from vmreid.run_folder import WEIGHTS, RunFolder

KILLS, EXITS = (int(os.environ.get(name, default)) for name, default in (("VMREID_KILLS", 8), ("VMREID_EXITS", 10)))
CONFIGS = ("zero0_fp32", "zero1_fp32", "zero2_fp32", "zero3_fp32")
SECONDS_TO_END = 60  # for the ranks that are left; a limit against hangs
STEPS = 24


def one_rank(folder: Path, rank: int, port: int, words: list[str]) -> None:
    """A process of its own, as a launcher starts it, with the imports already done."""
    os.chdir(folder)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with Path("out").open("a") as out:
        for number in (1, 2):
            os.dup2(out.fileno(), number)
    torch.set_num_threads(1)
    sys.argv = ["launcher.train", *words]
    from launcher import train
    from vmreid.command import run

    run(train.main)


@pytest.fixture(scope="module")
def server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "mlflow", "vmreid.engine.trainer", "launcher.train", "test_kills"])
    return context


def started(server: Any, folder: Path, words: list[str]) -> list[ForkServerProcess]:
    port = free_port()
    ranks = [server.Process(target=one_rank, args=(folder, rank, port, words)) for rank in range(2)]
    for each in ranks:
        each.start()
    return ranks


def ended(ranks: list[ForkServerProcess], seconds: float) -> list[int | None]:
    """Exit codes; None where a rank still runs after so long."""
    end = time.monotonic() + seconds
    for each in ranks:
        each.join(max(0.0, end - time.monotonic()))
    return [each.exitcode for each in ranks]


def kill_one(ranks: list[ForkServerProcess], draw: random.Random) -> float:
    """SIGKILL one, and end the others as srun and the deepspeed launcher do; the moment."""
    victim = draw.choice(ranks)
    victim.kill()
    moment = time.monotonic()
    if ended(ranks, 1) != [0, 0]:
        for each in ranks:
            each.terminate()
    return moment


def training(config: str) -> list[str]:
    settings = [*SMALL["VIT-S"], f"train.epochs={STEPS}", "train.checkpoint_steps=1"]
    return ["--recipe", "demo", "--data", "data", "--out", "run", "--deepspeed_config", config, *set_words(*settings)]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_killed_ranks_change_nothing(server: Any, tmp_path: Path, config: str) -> None:
    draw, words = random.Random(CONFIGS.index(config)), training(config)
    (tmp_path / "whole").mkdir()
    write_set(tmp_path / "whole/data")
    begin = time.monotonic()
    assert ended(started(server, tmp_path / "whole", words), 300) == [0, 0], (tmp_path / "whole/out").read_text()
    whole_s = time.monotonic() - begin
    expected = safetensors.torch.load_file(RunFolder(tmp_path / "whole/run").checkpoint(None) / WEIGHTS)
    kills, runs, slowest = 0, 0, 0.0
    while kills < -(-KILLS // len(CONFIGS)):
        folder = tmp_path / f"broken-{runs}"
        folder.mkdir()
        (folder / "data").symlink_to(tmp_path / "whole/data")
        codes: list[int | None] = [None]
        while codes != [0, 0]:
            ranks = started(server, folder, [*words, "--resume", "auto"])
            codes = ended(ranks, draw.uniform(0, whole_s))
            assert set(codes) <= {None, 0}, f"ended before anybody was killed: {codes}\n{(folder / 'out').read_text()}"
            if codes != [0, 0]:
                struck = kill_one(ranks, draw)
                codes = ended(ranks, SECONDS_TO_END)
                slowest = max(slowest, time.monotonic() - struck)
                assert None not in codes, f"a rank hangs: {codes}\n{(folder / 'out').read_text()}"
                kills += codes != [0, 0]
                if (folder / "run").is_dir():
                    assert newest_sound(RunFolder(folder / "run"))[1] == [], "what latest names is whole at any moment"
        runs += 1
        weights = safetensors.torch.load_file(RunFolder(folder / "run").checkpoint(None) / WEIGHTS)
        assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)
        assert read_json_lines(folder / "run/log.jsonl") == read_json_lines(tmp_path / "whole/run/log.jsonl")
    print(f"{config}: {kills} kills over {runs} runs of {whole_s:.0f} s, the others ended within {slowest:.1f} s")


@pytest.mark.slow
def test_clean_exits(server: Any, tmp_path: Path) -> None:
    write_set(tmp_path / "data")
    words = training("zero1_fp32")
    for number in range(EXITS):
        again = ["--out", f"run-{number}", "--epochs", "1"]
        assert ended(started(server, tmp_path, [*words, *again]), 120) == [0, 0], f"{number}: {(tmp_path / 'out').read_text()}"
