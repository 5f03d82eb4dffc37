"""What this machine has and lacks for training, and the line that brings what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from vmreid.distributed import own_device
from vmreid.kernels import BACKENDS, choose_backend
from vmreid.precision import computes_bf16

NEEDED = ("deepspeed", "timm", "webdataset", "mlflow", "safetensors", "pydantic")
INSTALL = "pip install --no-build-isolation -c constraints.txt -e ."
LITTLE_SHARED_GIB = 1.0  # of /dev/shm: loader workers hand their batches over in it
GIB = 2**30


@dataclass(frozen=True)
class Fact:
    """One line; ``fine`` False: nothing trains without it, None: nothing is lost but speed."""

    name: str
    fine: bool | None
    words: str


def facts() -> Iterator[Fact]:
    """In the order in which a reader wants to know them."""
    device = own_device()
    yield Fact("Python", True, f"{platform.python_version()}, {len(os.sched_getaffinity(0))} cores")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
    yield Fact("torch", True, f"{torch.__version__}, {built}")
    yield _gpus()
    bf16 = computes_bf16(device)
    yield Fact("bf16", bf16 or None, "at full speed" if bf16 else "this CPU has no bf16 instructions: bf16 configs train in fp32")
    yield from map(_package, NEEDED)
    yield from (_backend(name, device) for name in BACKENDS if name not in ("auto", "reference"))
    if torch.cuda.is_available():
        nccl = torch.distributed.is_nccl_available()
        yield Fact("NCCL", nccl, "is there" if nccl else "torch was built without it; install torch from its CUDA wheels")
    yield _space("this folder", Path())
    yield _space("/dev/shm", Path("/dev/shm"))
    store = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite in runs/mlflow.db (MLFLOW_TRACKING_URI is not set)"
    yield Fact("runs are logged to", True, store)


def _gpus() -> Fact:
    if not torch.cuda.is_available():
        reason = "torch is built for the CPU" if not torch.version.cuda else "torch sees none: is the driver there (nvidia-smi)?"
        return Fact("GPU", None, f"none ({reason}); training runs on the CPU, on gloo ranks")
    each = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    words = (f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}" for gpu in each)
    return Fact("GPU", True, "; ".join(words))


def _package(name: str) -> Fact:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Fact(name, False, f"is not installed; {INSTALL}")
    return Fact(name, True, version)


def _backend(name: str, device: torch.device) -> Fact:
    """Maps in four directions are what a backend may know of more; sequences where it does not."""
    hindrance = ""
    for maps in (True, False):
        try:
            backend, reason = choose_backend(name, device, maps)
        except Exception as error:  # a UserError, or what a broken build raises: told, never a traceback
            hindrance = hindrance or " ".join(str(error).split()).partition("cannot run: ")[2]
        else:
            return Fact(f"scan: {backend}", True, reason.partition(": ")[2])
    return Fact(f"scan: {name}", None, hindrance)


def _space(name: str, folder: Path) -> Fact:
    if not folder.exists():
        return Fact(name, None, "is not there")
    free = shutil.disk_usage(folder).free / GIB
    if str(folder) == "/dev/shm" and free < LITTLE_SHARED_GIB:
        return Fact(
            name, None, f"{free:.2f} GiB free: little for loader workers; give the container --shm-size, or data.workers=0"
        )
    return Fact(name, True, f"{free:.1f} GiB free")
