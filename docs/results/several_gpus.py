"""What one training does on 4 GPUs of a host: ``python docs/results/several_gpus.py DATA OUT``, DATA a set of shards.

On all and on one; on two "nodes" of two GPUs that NCCL takes for two hosts, started as srun does it and by a hostfile; from all
to one and back; with a rank killed inside a collective. Writes OUT/several_gpus.json, how each compares with the first.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from vmreid.run_folder import RunFolder
from vmreid.versions import versions

HERE, ALL = Path(__file__).parent, "localhost:0,1,2,3"
SETTINGS = (
    "data.image_size=[256,128]", "train.batch_size=64", "optim.lr=3e-4", "train.checkpoint_steps=20", "evaluation.every_epochs=8",
)  # fmt: skip
STOPS = (30, 60)  # steps after which the run is asked to stop, to go on elsewhere
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
        where = ["--include", ALL, "--master_port", free_port(), "--module", *([module, *command[1:]] if module else command)]
        return self.start(name, ["deepspeed", *where])

    def on_one(self, name: str) -> subprocess.Popen[bytes]:
        return self.start(name, [sys.executable, "-m", *self.command(name)], CUDA_VISIBLE_DEVICES="0")

    def as_srun(self, name: str) -> list[subprocess.Popen[bytes]]:
        """One process a rank with Slurm's variables."""
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}
        return [
            self.start(
                name, [sys.executable, "-m", *self.command(name)], f"-{rank}", **meet, **node(rank // 2),
                SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank % 2), CUDA_VISIBLE_DEVICES=("0,1", "2,3")[rank // 2],
            )
            for rank in range(4)
        ]  # fmt: skip

    def by_hostfile(self, name: str) -> list[subprocess.Popen[bytes]]:
        """One launcher a node."""
        (self.out / "hostfile").write_text("127.0.0.1 slots=4\nlocalhost slots=4\n")
        meet = ["--hostfile", str(self.out / "hostfile"), "--include", "127.0.0.1:0,1@localhost:2,3", "--no_ssh"]
        meet += ["--master_addr", "127.0.0.1", "--master_port", free_port()]
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


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def ended(*processes: subprocess.Popen[bytes]) -> list[int]:
    """Their statuses; killed where they take too long."""
    try:
        return [process.wait(SECONDS) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
        return [process.wait() for process in processes]


def killed(driver: Driver) -> dict[str, Any]:
    process = driver.on_all("killed", str(HERE / "killed_in_a_collective.py").removesuffix(".py").rpartition("/")[2])
    status = ended(process)
    now = time.time()
    died = re.search(r"dies at ([\d.]+)", (driver.out / "killed.log").read_text())
    steps = len(RunFolder(driver.out / "killed").log())
    return {"status": status, "seconds to the end": died and now - float(died[1]), "steps": steps,
            "then": ended(driver.on_all("killed")), **driver.compared("killed")}  # fmt: skip


def moved(driver: Driver) -> dict[str, Any]:
    statuses = [driver.stop_after("moved", STOPS[0], driver.on_all("moved"))]
    statuses += [driver.stop_after("moved", STOPS[1], driver.on_one("moved")), *ended(driver.on_all("moved"))]
    return {"statuses": statuses, **driver.compared("moved")}


def main() -> None:
    data, out = (Path(word).resolve() for word in sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    driver = Driver(data, out)
    found: dict[str, Any] = {
        "versions": versions(),
        "command": " ".join(["python", "docs/results/several_gpus.py", "DATA", "OUT"]),
    }
    parts = {
        "all": lambda: {"status": ended(driver.on_all("all"))},
        "again": lambda: {"status": ended(driver.on_all("again")), **driver.compared("again")},
        "one": lambda: {"status": ended(driver.on_one("one")), **driver.compared("one")},
        "killed": lambda: killed(driver),
        "moved": lambda: moved(driver),
        "srun": lambda: {"status": ended(*driver.as_srun("srun")), **driver.compared("srun")},
        "hostfile": lambda: {"status": ended(*driver.by_hostfile("hostfile")), **driver.compared("hostfile")},
    }
    for name, part in parts.items():
        begin = time.monotonic()
        try:
            found[name] = part()
        except Exception as error:  # the others are still worth having
            found[name] = {"error": repr(error)}
        found[name]["seconds"] = time.monotonic() - begin
        print(name, found[name], flush=True)
        (out / "several_gpus.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
