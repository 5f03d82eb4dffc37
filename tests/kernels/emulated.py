"""The CUDA kernels' own source on the CPU, each thread a fiber, memory full of NaN."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vmreid.kernels import fused

EMULATOR = Path(__file__).parent / "emulator"
COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.fixture(scope="session")
def emulator_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulator")


@pytest.fixture
def emulated(emulator_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``fused`` runs on the CPU."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setattr(fused, "_run", functools.partial(run_emulated, emulator_folder))
    torch.use_deterministic_algorithms(True)  # fills what is empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


def run_emulated(
    folder: Path, name: str, layout: Any, x_BLD: torch.Tensor, across: int, down: int, packed: ctypes.Array[Any]
) -> None:
    """What ``fused._run`` does, with libraries in ``folder``."""
    assert x_BLD.dtype == torch.float32
    shared_bytes = layout.bytes_of(4)[name == "ss2d_backward"]
    getattr(_library(folder, layout), name.replace("ss2d", "run"))(across, down, shared_bytes, packed)


@functools.cache
def _library(folder: Path, layout: Any) -> ctypes.CDLL:
    own = folder / f"states{layout.d_state}warps{layout.WARPS}"
    own.mkdir(parents=True)
    (own / "layout.h").write_text(layout.defines(4))
    source, library = EMULATOR / "ss2d_on_cpu.cpp", own / "ss2d.so"
    kernels = Path(fused.__file__).parent / "cuda"
    includes = [f"-I{folder}" for folder in (own, EMULATOR, kernels)]
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", f'-DKERNELS="{layout.file}"', *includes]
    subprocess.run([str(COMPILER), *options, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
