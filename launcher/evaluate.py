"""``python -m launcher.evaluate --run RUN``: exact mAP, CMC and mINP of a run's newest checkpoint, in a pass of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmreid.command import Parser, run

if TYPE_CHECKING:
    from vmreid.evaluation.evaluate import EvaluationPlan
    from vmreid.run_folder import RunFolder
    from vmreid.tracking import MlflowRun


def main(words: Sequence[str]) -> None:
    """All ranks."""
    parser = Parser(prog="python -m launcher.evaluate", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="folder that launcher.train wrote")
    given = parser.parse_args(words)

    from vmreid.distributed import from_rank_0, place_from_environment, start_process_group, stop_process_group
    from vmreid.evaluation.evaluate import evaluate
    from vmreid.run_folder import RunFolder, write_atomically
    from vmreid.versions import versions

    place = place_from_environment()
    folder, plan, tracker = RunFolder(given.run), None, None
    if place.rank == 0:
        plan, tracker = _prepare(folder)
    start_process_group(place)
    metrics = evaluate(from_rank_0(plan), place)
    if plan and tracker:
        metrics["protocol"] |= {"world": place.world, "versions": versions()}
        write_atomically(folder.metrics_file, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
        step = int(plan.checkpoint.name.removeprefix("step-"))
        tracker.log_results(step, {key: metrics[key] for key in ("mAP", "mINP", "rank1", "rank5", "rank10")})
        floors = {f"floors/{name}_{key}": value for name, floor in metrics["baselines"].items() for key, value in floor.items()}
        tracker.log_results(step, floors)
        tracker.log_artifact(folder.metrics_file)
        tracker.close(finished=True)
        print(_table(plan.recipe.model.backbone, metrics), f"\n{folder.metrics_file}", sep="")
    stop_process_group()


def _prepare(folder: RunFolder) -> tuple[EvaluationPlan, MlflowRun]:
    """Rank 0. Check the run, its data and its checkpoint; open its MLflow run again."""
    import torch

    from vmreid.data.manifest import read_manifest, require_splits
    from vmreid.errors import UserError
    from vmreid.evaluation.evaluate import EvaluationPlan, load_model
    from vmreid.kernels import choose_backend
    from vmreid.tracking import MlflowRun

    recipe = folder.recipe()
    checkpoint = folder.latest()
    if checkpoint is None:
        raise UserError(f"{folder.path}: has no checkpoint yet; train on with launcher.train --out {folder.path} --resume auto")
    assert recipe.data.shards is not None, "launcher.train records the data"
    data = Path(recipe.data.shards)
    manifest = read_manifest(data)
    require_splits(manifest, data, ("query", "gallery"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend, _ = choose_backend(recipe.model.scan_backend, device)
    plan = EvaluationPlan(recipe, data, manifest, checkpoint, backend)
    load_model(plan)
    return plan, MlflowRun(folder, recipe.model.backbone, "launcher.train")


def _table(backbone: str, metrics: dict[str, Any]) -> str:
    rows = {backbone: metrics, **metrics["baselines"]}
    lines = [f"{'':12} {'mAP':>7} {'Rank-1':>7}"]
    lines += [f"{name:12} {row['mAP']:7.3f} {row['rank1']:7.3f}" for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
