"""The runs behind vit-vs-mamba.md: ``python docs/results/vit_vs_mamba.py DATA OUT GPUS JOBS SECONDS``.

DATA holds the sets ``khoa`` and ``synthetic``. Trains every run of ``vit_vs_mamba_runs.py``, first seeds first, JOBS at a time on
each of GPUS, for at most so many seconds; what is there already is left alone, and what OUT/vit_vs_mamba.json has a row of.
Then probes the trained backbones, and keeps in that file what the runs have scored and seen.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vit_vs_mamba_runs import RUNS, Run

from vmreid.evaluation.query_scores import QueryScores
from vmreid.evaluation.uncertainty import paired
from vmreid.report.convergence import loss_spikes
from vmreid.report.rows import gradient_tail
from vmreid.run_folder import RunFolder
from vmreid.versions import versions

HERE = Path(__file__).parent
SECONDS_TO_SAVE = 25.0
ROWS = "vit_vs_mamba.json"
LAYERS = ("delta_median", "delta_A_high", "decay", "memory_tokens", "gradient_norm")
SCORES = ("step", "epochs", "mAP", "mINP", "rank1", "mean")


def main() -> None:
    data, out = (Path(word).resolve() for word in sys.argv[1:3])
    gpus, jobs, seconds = sys.argv[3].split(","), int(sys.argv[4]), float(sys.argv[5])
    out.mkdir(parents=True, exist_ok=True)
    noclip = {"zero_optimization": {"stage": 0}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}, "gradient_clipping": 0}
    (out / "noclip.json").write_text(json.dumps(noclip))
    before = json.loads((out / ROWS).read_text()) if (out / ROWS).is_file() else {"rows": [], "over_queries": []}
    kept, compared = ({(row["run"], row["seed"]): row for row in before[name]} for name in ("rows", "over_queries"))
    waiting = [run for run in RUNS if (run.name, run.seed) not in kept and result(run, out) is None]
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
    rows = [row for run in RUNS if (row := kept.get((run.name, run.seed)) or result(run, out))]
    setting = {"versions": versions(), "runs": {run.name: run.words() for run in RUNS}}
    compared |= {(row["run"], row["seed"]): row for row in over_queries(out)}
    (out / ROWS).write_text(json.dumps({"setting": setting, "rows": rows, "over_queries": [*compared.values()]}) + "\n")
    there = {(row["run"], row["seed"]) for row in rows}
    missing = [run.folder for run in RUNS if (run.name, run.seed) not in there]
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
        command += f" && {shlex.join([sys.executable, '-m', 'launcher.evaluate', '--run', str(out / run.folder)])}"
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
        "evaluations": [{key: e[key] for key in e if key.partition("/")[0] in SCORES} for e in folder.evaluations()],
        "steps": len(steps),
        "losses": [round(statistics.fmean(losses[at : at + 25]), 3) for at in range(0, len(losses), 25)],
        "spikes": loss_spikes(losses),
        "gradient_p99_over_median": gradient_tail(steps),
        "peak_bytes": max(entry["peak_bytes"] for entry in steps),
        "warnings": _warnings(looks),
        "looks": [{"step": look["step"], "layers": {key: look["layers"][key] for key in LAYERS if key in look["layers"]}}
                  for look in (looks[0], looks[-1])],
        **({"probes": json.loads(probes.read_text())} if probes.is_file() else {}),
    }  # fmt: skip


def _warnings(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """How many looks had any, and the first and the last."""
    found = [{"step": look["step"], "words": look["warnings"]} for look in looks if look["warnings"]]
    return {"looks": len(found), **({"first": found[0], "last": found[-1]} if found else {})}


def over_queries(out: Path) -> list[dict[str, Any]]:
    """Of runs whose queries' scores are there: intervals of the mAP, and of how far it is above VIT-S's of the same seed."""
    found = []
    for run in RUNS:
        own, other = (RunFolder(out / folder).queries_file for folder in (run.folder, run.folder.replace(run.backbone, "VIT-S")))
        if own.is_file() and other.is_file():
            scores, base = QueryScores.from_npz(own.read_bytes()), QueryScores.from_npz(other.read_bytes())
            less = None if own == other else asdict(paired(scores.pid, scores.ap, base.ap))
            found.append({"run": run.name, "seed": run.seed, "mAP": scores.intervals()["mAP"], "less VIT-S": less})
    return found


if __name__ == "__main__":
    main()
