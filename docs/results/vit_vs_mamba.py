"""The runs behind vit-vs-mamba.md: ``python docs/results/vit_vs_mamba.py DATA OUT GPUS JOBS SECONDS``.

DATA holds the sets ``khoa`` and ``synthetic``. Trains every run of ``vit_vs_mamba_runs.py``, first seeds first, JOBS at a time on
each of GPUS, for at most so many seconds; what is there already is left alone. Then probes the trained backbones, and keeps
in OUT/vit_vs_mamba.json what the runs have scored and seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vit_vs_mamba_runs import RUNS, Run

from vmreid.report.convergence import loss_spikes
from vmreid.report.rows import gradient_tail
from vmreid.run_folder import RunFolder
from vmreid.versions import versions

HERE = Path(__file__).parent
SECONDS_TO_SAVE = 25.0


def main() -> None:
    data, out = (Path(word).resolve() for word in sys.argv[1:3])
    gpus, jobs, seconds = sys.argv[3].split(","), int(sys.argv[4]), float(sys.argv[5])
    out.mkdir(parents=True, exist_ok=True)
    noclip = {"zero_optimization": {"stage": 0}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}, "gradient_clipping": 0}
    (out / "noclip.json").write_text(json.dumps(noclip))
    waiting = [run for run in RUNS if result(run, out) is None]
    running: list[tuple[Run, str, subprocess.Popen[bytes]]] = []
    end = time.monotonic() + seconds
    while (waiting or running) and time.monotonic() < end:
        running = [each for each in running if each[2].poll() is None]
        load = {gpu: sum(run.weight for run, at, _ in running if at == gpu) for gpu in gpus}
        gpu = min(load, key=load.__getitem__)
        if waiting and load[gpu] < jobs:
            run = waiting.pop(0)
            running.append((run, gpu, start(run, data, out, gpu)))
        else:
            time.sleep(0.2)
    stop([process for _, _, process in running])
    rows = [row for run in RUNS if (row := result(run, out))]
    setting = {"versions": versions(), "runs": {run.name: run.words() for run in RUNS}}
    (out / "vit_vs_mamba.json").write_text(json.dumps({"setting": setting, "rows": rows}) + "\n")
    missing = [run.folder for run in RUNS if result(run, out) is None]
    print(len(rows), "runs came to their end,", len(missing), "did not:", *missing)


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Let what trains save a checkpoint, from which the same command goes on."""
    for number, seconds in ((signal.SIGUSR1, SECONDS_TO_SAVE), (signal.SIGKILL, 0)):
        end = time.monotonic() + seconds
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(0.2)


def start(run: Run, data: Path, out: Path, gpu: str) -> subprocess.Popen[bytes]:
    """Train, or go on, then probe where the run is to be probed. The shell waits for what it has started."""
    words = ["launcher.train", *run.words(), "--data", str(data / run.data), "--out", str(out / run.folder), "--resume", "auto"]
    command = f"trap : USR1; {shlex.join([sys.executable, '-m', *words])}"
    if run.probed:
        command += f" && {shlex.join([sys.executable, str(HERE / 'probes.py'), str(out / run.folder)])}"
    log = out / f"{run.folder}.log"
    return subprocess.Popen(
        ["bash", "-c", command], stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=out, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpu},
    )  # fmt: skip


def result(run: Run, out: Path) -> dict[str, Any] | None:
    """What a run has come to; None where it has not come to its end, or says why it ended."""
    folder = RunFolder(out / run.folder)
    row: dict[str, Any] = {"run": run.name, "seed": run.seed}
    if stops := folder.non_finite():
        return {**row, "non_finite": stops[0]}
    probes = folder.path / "probes.json"
    if not folder.evaluations() or folder.evaluations()[-1]["epochs"] != run.epochs or (run.probed and not probes.is_file()):
        return None
    steps, looks = folder.log(), folder.monitors()
    losses = [entry["loss"] for entry in steps]
    return {
        **row,
        "evaluations": folder.evaluations(),
        "steps": len(steps),
        "losses": [statistics.fmean(losses[at : at + 25]) for at in range(0, len(losses), 25)],
        "spikes": loss_spikes(losses),
        "gradient_p99_over_median": gradient_tail(steps),
        "peak_bytes": max(entry["peak_bytes"] for entry in steps),
        "warnings": [{"step": look["step"], "words": look["warnings"]} for look in looks if look["warnings"]],
        "looks": [looks[0], looks[-1]],
        **({"probes": json.loads(probes.read_text())} if probes.is_file() else {}),
    }


if __name__ == "__main__":
    main()
