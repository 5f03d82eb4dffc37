"""The real ``deepspeed`` launcher on two ranks: an error told once, a rank that raises or dies, and going on after it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny import SMALL, command_on_ranks, plan_run, read_json_lines, set_words, train_on_ranks, write_set

from vmreid.command import TO_GO_ON
from vmreid.distributed import free_port

HERE = Path(__file__).parent
SECONDS_TO_END = 10


def start(folder: Path, module: str, *words: str, ranks: tuple[str, ...] = ("--num_gpus", "2")) -> subprocess.Popen[str]:
    """``deepspeed RANKS --module MODULE …`` in ``folder``, standard error within standard output."""
    command = [str(Path(sys.executable).parent / "deepspeed"), *ranks]
    if "--master_port" not in ranks:
        command += ["--master_port", str(free_port())]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.getcwd(), os.environ.get("PYTHONPATH", "")]),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command += ["--module", module, *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def words_for(folder: Path, *more: str) -> list[str]:
    words = ["--recipe", "demo", "--data", str(folder / "data"), "--out", "runs/run", *set_words(*SMALL["VIT-S"])]
    return [*words, *more]


def wait_for_steps(folder: Path, steps: int) -> Path:
    """Until the run's log has more than so many; the log."""
    log, deadline = folder / "runs/run/log.jsonl", time.time() + 90
    while not (log.is_file() and log.read_text().count("\n") > steps):
        assert time.time() < deadline, "no steps within 90 s"
        time.sleep(0.05)
    return log


def assert_a_resumed_run_equals_the_undisturbed(ranks, folder: Path, words: list[str]) -> None:
    ranks.run(2, command_on_ranks, "launcher.train", [*words, "--resume", "auto"], folder)
    undisturbed = ["runs/undisturbed" if word == "runs/run" else word for word in words]
    ranks.run(2, command_on_ranks, "launcher.train", undisturbed, folder)
    assert read_json_lines(folder / "runs/run/log.jsonl") == read_json_lines(folder / "runs/undisturbed/log.jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "data")
    return tmp_path


def test_bad_input_is_told_once(folder):
    shard = sorted((folder / "data").glob("train-*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-700])
    process = start(folder, "launcher.train", *words_for(folder))
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 2
    assert printed.count("error: ") == 1
    assert re.search(rf"^error: .*{shard.name}: .*truncated", printed, re.MULTILINE)
    assert "Traceback" not in printed


def test_a_rank_that_raises_ends_the_job_with_its_cause(folder):
    process = start(folder, "raising_train", *words_for(folder, "--epochs", "6"))
    printed, _ = process.communicate(timeout=90)
    ended = time.time()
    assert process.returncode == 1
    raised = float(re.search(r"raising at ([\d.]+)", printed)[1])
    assert ended - raised < SECONDS_TO_END
    assert "[rank 1] Traceback" in printed
    assert "ArithmeticError: the cause to be shown" in printed
    assert printed.count("Traceback") == 1, "the ranks that were left behind have no cause of their own"


def test_a_killed_rank_ends_the_job_and_a_resumed_one_equals_the_undisturbed(folder, ranks):
    words = words_for(folder, "--epochs", "30", "--deepspeed_config", "zero1_fp32")
    process = start(folder, "launcher.train", *words)
    log = wait_for_steps(folder, 3)
    ranks_running = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "--local_rank=1" in child.cmdline()
    ]
    os.kill(ranks_running[0].pid, signal.SIGKILL)
    killed = time.time()
    process.communicate(timeout=90)
    assert process.returncode != 0
    assert time.time() - killed < SECONDS_TO_END
    assert len(log.read_text().splitlines()) < 30
    assert_a_resumed_run_equals_the_undisturbed(ranks, folder, words)
    assert json.loads((folder / "runs/run/mlflow.json").read_text())["run_id"]


@pytest.mark.slow
def test_ctrl_c_twice_ends_all_and_a_resumed_run_equals_the_undisturbed(folder, ranks):
    """As a terminal gives it: to the launcher and all ranks, which have its process group, and again in the midst of the end."""
    words = words_for(folder, "--epochs", "30", "--deepspeed_config", "zero1_fp32", "--set", "train.checkpoint_epochs=2")
    process = start(folder, "launcher.train", *words)
    wait_for_steps(folder, 5)
    everybody = psutil.Process(process.pid).children(recursive=True)
    began = time.time()
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    printed, _ = process.communicate(timeout=90)
    assert time.time() - began < SECONDS_TO_END
    assert process.returncode != 0
    assert printed.count("interrupted") <= 1, "one rank tells it, if the launcher lets it"
    assert not [each for each in everybody if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert_a_resumed_run_equals_the_undisturbed(ranks, folder, words)


@pytest.mark.slow
def test_sigterm_to_workers_too_saves_and_goes_on(folder):
    """What ``timeout`` and ``scancel`` do."""
    words = words_for(folder, "--epochs", "200", "--set", "data.workers=2", "--set", "train.checkpoint_epochs=200")
    command = [sys.executable, "-m", "launcher.train", *words]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
    log = wait_for_steps(folder, 3)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(SECONDS_TO_END) == TO_GO_ON, (folder / "said.txt").read_text()
    steps = len(log.read_text().splitlines())
    assert (folder / "runs/run/checkpoints/latest").read_text().strip() == f"step-{steps:06d}"
    assert not [each for each in workers if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_hostfile_of_two_nodes(ranks, folder):
    """As slurm/README.md has it: one launcher a node, here two on loopback."""
    (folder / "hostfile").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    meet = ("--master_addr", "127.0.0.1", "--master_port", str(free_port()))
    words = words_for(folder, "--epochs", "3", "--deepspeed_config", "zero1_fp32")
    nodes = [
        start(folder, "launcher.train", *words, ranks=("--hostfile", "hostfile", "--no_ssh", "--node_rank", number, *meet))
        for number in ("0", "1")
    ]
    printed = [node.communicate(timeout=180)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert "on 2 ranks x 1 accumulation steps" in printed[0]
    assert "on 2 ranks" not in printed[1], "rank 0 alone tells"
    undisturbed = plan_run(folder / "whole", folder / "data", ["train.epochs=3", "deepspeed_config=zero1_fp32"], world=2)
    ranks.run(2, train_on_ranks, undisturbed)
    assert read_json_lines(folder / "runs/run/log.jsonl") == read_json_lines(folder / "whole/log.jsonl")
