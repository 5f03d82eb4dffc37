"""``python docs/results/collect.py OUT``: what the runs below OUT measured, as one JSON on standard output."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from vmreid.run_folder import RunFolder
from vmreid.versions import versions


def main(out: Path) -> None:
    """Every run that has been evaluated, in the order of its name."""
    evaluated = [path.parent for path in out.rglob("metrics.json") if "mlartifacts" not in path.parts]
    folders = sorted(path for path in evaluated if (path / "recipe.yaml").is_file())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = {"device": device, "versions": versions(), "runs": {str(path.relative_to(out)): facts_of(path) for path in folders}}
    print(json.dumps(facts, indent=1))


def facts_of(path: Path) -> dict[str, Any]:
    """Settings, scores beside their floors, speed, memory, and the mean loss of each epoch."""
    folder = RunFolder(path)
    recipe, log, metrics = folder.recipe(), folder.log(), folder.metrics()
    losses: dict[int, list[float]] = {}
    for entry in log:
        losses.setdefault(entry["epoch"], []).append(entry["loss"])
    return {
        "backbone": recipe.model.backbone,
        "lr": recipe.optim.lr,
        "batch_size": recipe.train.batch_size,
        "epochs": recipe.train.epochs,
        "steps": len(log),
        "seed": recipe.seed,
        "weights": recipe.model.weights and "transfer",
        **{key: value for key, value in metrics.items() if key not in ("cmc", "protocol")},
        "image_size": metrics["protocol"]["image_size"],
        "data_digest": metrics["protocol"]["data_digest"],
        "non_finite_stops": len(folder.non_finite()),
        "median_images_per_s": statistics.median(entry["images_per_s"] for entry in log),
        "peak_bytes": max(entry["peak_bytes"] for entry in log),
        "loss_by_epoch": [round(statistics.mean(values), 4) for _, values in sorted(losses.items())],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
