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

from vmreid.models.registry import weights_file

pytestmark = pytest.mark.gpu
SETTINGS = ["data.image_size=[128,64]", "data.pictures_per_identity=4", "optim.warmup_epochs=2", "train.checkpoint_epochs=3"]
# commands one after the other in one process: on a GPU machine the imports alone take many seconds
RUN_ALL = """
import importlib, json, sys
from tiny import forget_deepspeed_groups
for module, words in json.loads(sys.stdin.read()):
    forget_deepspeed_groups()
    importlib.import_module(module).main(words)
"""


def launch(folder: Path, commands: list[tuple[str, list[str]]], settings: list[str]) -> str:
    """Run launcher modules in ``folder``, those that train with ``settings``, and return what they printed."""
    assignments = [word for setting in settings for word in ("--set", setting)]
    listed = [(module, [*words, *assignments] if module == "launcher.train" else words) for module, words in commands]
    paths = [os.getcwd(), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(listed), cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("backbone", "compiled"), [("VIT-S", False), ("MAMBA-S", False), ("MAMBA-V2", False), ("VMAMBA-T", True)]
)
def test_bf16_training_resumes_bit_for_bit_and_evaluates(tmp_path, backbone, compiled):
    write_set(tmp_path / "data", identities=16)
    words = ["--recipe", "demo", "--backbone", backbone, "--data", "data", "--epochs", "6", "--batch_size", "16"]
    settings = [*SETTINGS, "train.deterministic=true", f"train.compile={str(compiled).lower()}"]
    whole, again = ([*words, "--out", run] for run in ("whole", "again"))
    trained = [("launcher.train", whole), ("launcher.train", again), ("launcher.evaluate", ["--run", "whole"])]
    printed = launch(tmp_path, trained, settings)
    assert "bf16 autocast" in printed
    assert "cuda" in printed
    if "MAMBA-S" != backbone != "VIT-S":
        assert "selective scan: " in printed
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    assert json.loads((tmp_path / "whole/metrics.json").read_text())["queries"] > 0
    # the same run, thrown back to the checkpoint of epoch 3
    (tmp_path / "again/checkpoints/latest").write_text(sorted(p.name for p in (tmp_path / "again/checkpoints").glob("step-*"))[0])
    launch(tmp_path, [("launcher.train", [*again, "--resume", "auto"])], settings)
    weights = [safetensors.torch.load_file(weights_file(str(tmp_path / run))) for run in ("whole", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])


def test_without_mamba_ssm_the_plain_scan_trains_on_cuda_and_the_log_says_so(tmp_path):
    write_set(tmp_path / "data", identities=16)
    words = ["--recipe", "demo", "--backbone", "MAMBA-V2", "--data", "data", "--epochs", "2", "--out", "run"]
    settings = [*SETTINGS, "model.scan_backend=torch", "optim.warmup_epochs=0"]
    assert "selective scan: torch" in launch(tmp_path, [("launcher.train", words)], settings)
