"""The fused kernels under every ZeRO stage, by their own source on the CPU: the same training as with the torch scan."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import differences, plan_run, train_on_ranks, write_set

from tests.kernels.emulated import COMPILER, run_emulated
from vmreid.distributed import rank
from vmreid.engine.prepare import Plan
from vmreid.kernels import fused

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")


def train_fused(plan: Plan, folder: Path) -> dict[str, torch.Tensor]:
    """All ranks. As ``train_on_ranks``, with libraries in ``folder``."""
    run = fused._run
    fused._run = functools.partial(run_emulated, folder / str(rank()))
    try:
        return train_on_ranks(replace(plan, scan_backend="fused"))
    finally:
        fused._run = run


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_same_is_trained_as_with_the_torch_scan(ranks, tmp_path, stage):
    data = write_set(tmp_path / "data")
    settings = ["train.epochs=1", "optim.name=sgd", "optim.lr=1", f"deepspeed_config=zero{stage}_fp32"]
    plans = [plan_run(tmp_path / name, data, settings, backbone="VMAMBA-T", world=2) for name in ("torch", "fused")]
    still = plan_run(tmp_path / "still", data, [*settings, "optim.lr=1e-30"], backbone="VMAMBA-T")
    start = ranks.run(1, train_on_ranks, still)[0]
    by_torch = ranks.run(2, train_on_ranks, plans[0])[0]
    by_kernels = ranks.run(2, train_fused, plans[1], tmp_path / "libraries")[0]
    moved = differences(start, by_torch)
    scans = [move for name, move in moved.items() if name.endswith(("A_log", "dt_bias_KD", "x_proj_KED"))]
    assert sum(move > 1e-4 for move in scans) > len(scans) / 4, "the steps must move what the kernels learn"
    for name, difference in differences(by_torch, by_kernels).items():
        assert difference <= 1e-3 * moved[name] + 1e-7, name
