"""The note's remedies, each alone, on the small real vehicle set: ``python docs/results/remedies.py DATA OUT JOBS SECONDS``.

Trains every variant with every seed, JOBS at a time on one GPU, seed by seed, for at most so many seconds, then keeps in
OUT/remedies.json what the runs that came to their end have scored and seen. Recipe ``vehicle_khoa`` with 40 epochs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vmreid.run_folder import RunFolder
from vmreid.versions import versions

SEEDS = (0, 1, 2)
EPOCHS = 40
COMMON = [f"train.epochs={EPOCHS}", f"train.checkpoint_epochs={EPOCHS}", "evaluation.every_epochs=4", "train.monitor_steps=31"]
MILD = ["data.augment.crop_scale=[0.8,1.0]", "data.augment.colour_jitter=0.1"]
NONE = ["data.augment.crop_scale=[1.0,1.0]", "data.augment.colour_jitter=0", "data.augment.flip=0"]
VARIANTS = {
    "MAMBA-V2": [],
    "MAMBA-V2 A one": ["model.start.A=one"],
    "MAMBA-V2 A normal": ["model.start.A=normal"],
    "MAMBA-V2 delta x 100": ["model.start.delta=[0.1,10.0]"],
    "MAMBA-V2 delta / 100": ["model.start.delta=[1e-5,1e-3]"],
    "MAMBA-V2 tokens zero": ["model.start.token_std=0"],
    "MAMBA-V2 rate 1e-4": ["optim.lr=1e-4"],
    "MAMBA-V2 rate 1e-3": ["optim.lr=1e-3"],
    "MAMBA-V2 rate 1e-2": ["optim.lr=1e-2"],
    "MAMBA-V2 no warm-up": ["optim.warmup_epochs=0"],
    "MAMBA-V2 warm-up 10": ["optim.warmup_epochs=10"],
    "MAMBA-V2 no clipping": ["deepspeed_config=noclip.json"],
    "MAMBA-V2 batch 16": ["train.batch_size=16"],
    "MAMBA-V2 depth 4 6 8": ["model.depth_schedule=[[0,4],[13,6],[27,8]]"],
    "MAMBA-V2 mild augmentation": MILD,
    "MAMBA-V2 no augmentation": NONE,
    "VIT-S": [],
    "VIT-S rate 1e-4": ["optim.lr=1e-4"],
    "VIT-S rate 1e-2": ["optim.lr=1e-2"],
    "VIT-S SGD 1e-2": ["optim.lr=1e-2", "optim.name=sgd"],
    "VIT-S mild augmentation": MILD,
    "VIT-S no augmentation": NONE,
}


def main() -> None:
    data, out, jobs, seconds = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3]), float(sys.argv[4])
    out.mkdir(parents=True, exist_ok=True)
    noclip = {"zero_optimization": {"stage": 0}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}, "gradient_clipping": 0}
    (out / "noclip.json").write_text(json.dumps(noclip))
    waiting = [(name, seed) for seed in SEEDS for name in VARIANTS]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    end = time.monotonic() + seconds
    while (waiting or running) and time.monotonic() < end:
        running = {run: process for run, process in running.items() if process.poll() is None}
        while waiting and len(running) < jobs:
            run = waiting.pop(0)
            running[run] = start(*run, data, out)
        time.sleep(0.2)
    for process in running.values():
        process.kill()
    rows = [row for seed in SEEDS for name in VARIANTS if (row := result(name, seed, out))]
    setting = {"versions": versions(), "epochs": EPOCHS, "variants": VARIANTS}
    (out / "remedies.json").write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    print(len(rows), "runs came to their end,", len(waiting) + len(running), "did not")


def start(name: str, seed: int, data: Path, out: Path) -> subprocess.Popen[bytes]:
    folder = place(out, name, seed)
    words = ["--recipe", "vehicle_khoa", "--backbone", name.split()[0], "--data", str(data), "--out", str(folder)]
    settings = ["deepspeed_config=zero0_bf16", *COMMON, f"seed={seed}", *VARIANTS[name]]
    words += [word for setting in settings for word in ("--set", setting)]
    log = out / f"{folder.name}.log"
    return subprocess.Popen(
        [sys.executable, "-m", "launcher.train", *words], stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=out,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{out}/{folder.name}.db"},
    )  # fmt: skip


def place(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(' ', '_').replace('/', 'by')}-{seed}"


def result(name: str, seed: int, out: Path) -> dict[str, Any] | None:
    """What a run has come to; None where it has not come to its end, or says why it ended."""
    folder = RunFolder(place(out, name, seed))
    row: dict[str, Any] = {"variant": name, "seed": seed}
    if stops := folder.non_finite():
        return {**row, "non_finite": stops[0]}
    if not folder.evaluations() or folder.evaluations()[-1]["epochs"] != EPOCHS:
        log = out / f"{folder.path.name}.log"
        last = log.read_text().splitlines()[-1:] if log.is_file() else []
        return {**row, "error": last[0]} if last and last[0].startswith("error") else None
    steps = folder.log()
    norms = sorted(entry["grad_norm"] for entry in steps)
    return {
        **row,
        "evaluations": folder.evaluations(),
        "loss": [statistics.fmean(entry["loss"] for entry in steps[at : at + 31]) for at in range(0, len(steps), 31)],
        "gradient_p99_over_median": norms[int(0.99 * len(norms))] / statistics.median(norms),
        "warnings": [{"step": look["step"], "words": look["warnings"]} for look in folder.monitors() if look["warnings"]],
        "looks": [folder.monitors()[0], folder.monitors()[-1]],
    }


if __name__ == "__main__":
    main()
