"""What one training does on 4 GPUs of a host, or 2: ``python docs/results/several_gpus.py DATA OUT [PART…]``.

DATA is a set of shards. On all and on one; on two "nodes" of half the GPUs, which NCCL takes for two hosts, started as srun does
it and by a hostfile; with a rank killed inside a collective, and on from there on one and on all again. Writes
OUT/several_gpus.json, how each compares with the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from vmreid.distributed import free_port
from vmreid.run_folder import RunFolder
from vmreid.versions import versions

HERE, GPUS = Path(__file__).parent, [str(number) for number in range(torch.cuda.device_count())]
HALF = len(GPUS) // 2
SETTINGS = (
    "data.image_size=[256,128]", "train.batch_size=64", "optim.lr=3e-4", "train.checkpoint_steps=20", "evaluation.every_epochs=8",
)  # fmt: skip
STEPS_ON_ONE = 50  # with what it had before, after which the run is asked to stop there
SECONDS = 150.0


class Driver:
    """Starts ``launcher.train`` on one set in many ways, each into a folder of its own."""

    def __init__(self, data: Path, out: Path) -> None:
        self.out = out
        sets = [word for each in SETTINGS for word in ("--set", each)]
        self.words = ["--recipe", "note", "--backbone", "MAMBA-V2", "--data", str(data), "--epochs", "8", *sets]
        self.words += ["--deepspeed_config", "zero0_bf16", "--resume", "auto"]

    def command(self, name: str) -> list[str]:
        return ["launcher.train", *self.words, "--out", str(self.out / name)]

    def start(self, name: str, words: list[str], log: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """A process with its log in OUT."""
        return subprocess.Popen(
            words, env={**os.environ, **environment}, start_new_session=True,
            stdout=(self.out / f"{name}{log}.log").open("ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def on_all(self, name: str, module: str = "") -> subprocess.Popen[bytes]:
        command = self.command(name)
        where = [
            "--include",
            f"localhost:{','.join(GPUS)}",
            "--master_port",
            str(free_port()),
            "--module",
            *([module, *command[1:]] if module else command),
        ]
        return self.start(name, ["deepspeed", *where])

    def on_one(self, name: str) -> subprocess.Popen[bytes]:
        return self.start(name, [sys.executable, "-m", *self.command(name)], CUDA_VISIBLE_DEVICES="0")

    def as_srun(self, name: str) -> list[subprocess.Popen[bytes]]:
        """One process a rank with Slurm's variables."""
        halves = [",".join(GPUS[:HALF]), ",".join(GPUS[HALF:])]
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(len(GPUS))}
        return [
            self.start(
                name, [sys.executable, "-m", *self.command(name)], f"-{rank}", **meet, **node(rank // HALF),
                SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank % HALF), CUDA_VISIBLE_DEVICES=halves[rank // HALF],
            )
            for rank in range(len(GPUS))
        ]  # fmt: skip

    def by_hostfile(self, name: str) -> list[subprocess.Popen[bytes]]:
        """One launcher a node."""
        (self.out / "hosts").write_text(f"127.0.0.1 slots={len(GPUS)}\nlocalhost slots={len(GPUS)}\n")
        meet = [
            "--hostfile",
            str(self.out / "hosts"),
            "--include",
            f"127.0.0.1:{','.join(GPUS[:HALF])}@localhost:{','.join(GPUS[HALF:])}",
            "--no_ssh",
        ]
        meet += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
        return [
            self.start(
                name,
                ["deepspeed", *meet, "--node_rank", str(number), "--module", *self.command(name)],
                f"-{number}",
                **node(number),
            )
            for number in range(2)
        ]

    def stop_after(self, name: str, steps: int, process: subprocess.Popen[bytes]) -> int:
        """SIGUSR1 to a rank; the status."""
        log, end = RunFolder(self.out / name), time.monotonic() + SECONDS
        while time.monotonic() < end and process.poll() is None and len(log.log()) < steps:
            time.sleep(0.1)
        if process.poll() is not None:
            return process.returncode
        ranks = [each for each in psutil.Process(process.pid).children(recursive=True) if "--local_rank=0" in each.cmdline()]
        os.kill(ranks[0].pid if ranks else process.pid, signal.SIGUSR1)
        return process.wait(SECONDS)

    def compared(self, name: str, first: str = "all") -> dict[str, Any]:
        """How the log of a run differs from that of the first."""
        one, other = ({entry["step"]: entry["loss"] for entry in RunFolder(self.out / each).log()} for each in (name, first))
        away = {step: abs(one[step] - other[step]) / abs(other[step]) for step in sorted(one.keys() & other)}
        maps = [RunFolder(self.out / each).evaluations()[-1]["mAP"] for each in (name, first)]
        early = max((value for step, value in away.items() if step <= 10), default=None)
        return {
            "steps": len(away),
            "loss away, 10 steps": early,
            "loss away, all": max(away.values()),
            "mAP": maps[0],
            "first mAP": maps[1],
        }


def node(number: int) -> dict[str, str]:
    """NCCL talks over sockets to what has another host's name."""
    return {"NCCL_HOSTID": f"node{number}", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}


def ended(*processes: subprocess.Popen[bytes]) -> list[int]:
    """Their statuses; killed where they take too long."""
    try:
        return [process.wait(SECONDS) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return [process.wait() for process in processes]


def killed(driver: Driver) -> dict[str, Any]:
    """On all until a rank dies in a collective; then on one, until it is asked to stop; then on all again."""
    found: dict[str, Any] = {"status": ended(driver.on_all("killed", "killed_in_a_collective"))}
    now, died = time.time(), re.search(r"dies at ([\d.]+)", (driver.out / "killed.log").read_text())
    found |= {"seconds to the end": died and now - float(died[1]), "steps": len(RunFolder(driver.out / "killed").log())}
    print(found, flush=True)
    found["status on one"] = driver.stop_after("killed", STEPS_ON_ONE, driver.on_one("killed"))
    found["steps on one"] = len(RunFolder(driver.out / "killed").log())
    print(found, flush=True)
    found["status on all"] = ended(driver.on_all("killed"))
    return {**found, **driver.compared("killed")}


def main() -> None:
    data, out = (Path(word).resolve() for word in sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    driver = Driver(data, out)
    found: dict[str, Any] = {
        "versions": versions(),
        "command": "python docs/results/several_gpus.py DATA OUT",
    }
    parts = {
        "all": lambda: {"status": ended(driver.on_all("all"))},
        "again": lambda: {"status": ended(driver.on_all("again")), **driver.compared("again")},
        "one": lambda: {"status": ended(driver.on_one("one")), **driver.compared("one")},
        "killed": lambda: killed(driver),
        "srun": lambda: {"status": ended(*driver.as_srun("srun")), **driver.compared("srun")},
        "hostfile": lambda: {"status": ended(*driver.by_hostfile("hostfile")), **driver.compared("hostfile")},
    }
    for name in sys.argv[3:] or parts:
        begin = time.monotonic()
        try:
            found[name] = parts[name]()
        except Exception as error:  # the others are still worth having
            found[name] = {"error": repr(error)}
        found[name]["seconds"] = time.monotonic() - begin
        print(name, found[name], flush=True)
        (out / "several_gpus.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
