"""Training, resume and evaluation on a CUDA device, in bf16 from the DeepSpeed JSON, with the fastest scan that is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import write_set

pytestmark = pytest.mark.gpu
SETTINGS = ["data.image_size=[128,64]", "data.pictures_per_identity=4", "optim.warmup_epochs=2", "train.checkpoint_epochs=3"]


def launch(folder: Path, module: str, *words: str, settings: list[str] | None = None) -> str:
    """Run a launcher module in ``folder`` and return what it printed."""
    assignments = [word for setting in settings or [] for word in ("--set", setting)]
    command = [sys.executable, "-m", module, *words, *assignments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("backbone", ["VIT-S", "MAMBA-S", "MAMBA-V2"])
def test_bf16_training_resumes_bit_for_bit_and_evaluates(tmp_path, backbone):
    write_set(tmp_path / "data", identities=16)
    words = ["--recipe", "demo", "--backbone", backbone, "--data", "data", "--epochs", "6", "--batch_size", "16"]
    settings = [*SETTINGS, "train.deterministic=true"]
    printed = launch(tmp_path, "launcher.train", *words, "--out", "whole", settings=settings)
    assert "bf16 autocast" in printed
    assert "cuda" in printed
    if backbone == "MAMBA-V2":
        assert "selective scan: " in printed
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    # the same run, thrown back to the checkpoint of epoch 3
    launch(tmp_path, "launcher.train", *words, "--out", "again", settings=settings)
    (tmp_path / "again/checkpoints/latest").write_text(sorted(p.name for p in (tmp_path / "again/checkpoints").glob("step-*"))[0])
    launch(tmp_path, "launcher.train", *words, "--out", "again", "--resume", "auto", settings=settings)
    whole, again = (
        safetensors.torch.load_file(
            tmp_path / run / "checkpoints" / (tmp_path / run / "checkpoints/latest").read_text().strip() / "weights.safetensors"
        )
        for run in ("whole", "again")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole | again)
    launch(tmp_path, "launcher.evaluate", "--run", "whole")
    assert json.loads((tmp_path / "whole/metrics.json").read_text())["queries"] > 0


def test_without_mamba_ssm_the_plain_scan_trains_on_cuda_and_the_log_says_so(tmp_path):
    write_set(tmp_path / "data", identities=16)
    words = ["--recipe", "demo", "--backbone", "MAMBA-V2", "--data", "data", "--epochs", "2", "--out", "run"]
    printed = launch(
        tmp_path, "launcher.train", *words, settings=[*SETTINGS, "model.scan_backend=torch", "optim.warmup_epochs=0"]
    )
    assert "selective scan: torch" in printed
