"""``python -m launcher.evaluate --run RUN``: exact mAP, CMC and mINP of a run's newest checkpoint, in a pass of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmreid.command import Parser, run
from vmreid.text_table import aligned, markdown

if TYPE_CHECKING:
    from vmreid.evaluation.evaluate import Evaluation, EvaluationPlan
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

    place = place_from_environment()
    folder, plan, tracker = RunFolder(given.run), None, None
    if place.rank == 0:
        plan, tracker = _prepare(folder)
    start_process_group(place)
    found = evaluate(from_rank_0(plan), place)
    if plan and tracker:
        metrics = found.metrics
        write_atomically(folder.queries_file, found.queries)  # before what names its digest
        write_atomically(folder.metrics_file, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
        table = aligned(*_table(plan.recipe.model.backbone, metrics))
        print(table, _uncertainty(metrics), folder.metrics_file, sep="\n", flush=True)
        try:
            tracker.log_results(int(plan.checkpoint.name.removeprefix("step-")), _named_for_mlflow(metrics))
            for path in (folder.metrics_file, folder.queries_file):
                tracker.log_artifact(path)
            tracker.describe(_description(plan, metrics))
            _draw(plan, found, folder, tracker)
        finally:
            tracker.close(finished=True)
    stop_process_group()


def _prepare(folder: RunFolder) -> tuple[EvaluationPlan, MlflowRun]:
    """Rank 0. Check the run, its data and its checkpoint; open its MLflow run again."""
    import torch

    from vmreid.data.sets import evaluation_set
    from vmreid.errors import UserError
    from vmreid.evaluation.evaluate import EvaluationPlan, load_model
    from vmreid.kernels import choose_backend
    from vmreid.models import scans_maps
    from vmreid.tracking import MlflowRun

    recipe = folder.recipe()
    checkpoint = folder.latest()
    if checkpoint is None:
        raise UserError(
            f"{folder.path}: has no checkpoint yet; train on with python -m launcher.train --out {folder.path} --resume auto"
        )
    data = evaluation_set(recipe.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend, _ = choose_backend(recipe.model.scan_backend, device, scans_maps(recipe.model))
    plan = EvaluationPlan(recipe, data.folder, data.manifest, checkpoint, backend)
    load_model(plan)
    return plan, MlflowRun(folder, recipe.model.backbone, "launcher.train")


def _directions(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Forward, and where both were asked for, reverse and mean."""
    return {"": metrics, **{name: metrics[name] for name in ("reverse", "mean") if name in metrics}}


def _table(backbone: str, metrics: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: the model, then its floors; each direction has its columns."""
    names = {"": "query → gallery", "reverse": "gallery → query", "mean": "mean"}
    directions = _directions(metrics)
    behind = {key: f", {names[key]}" if len(directions) > 1 else "" for key in directions}
    headings = ("", *(f"{score}{text}" for text in behind.values() for score in ("mAP", "Rank-1")))
    rows = []
    for name in (backbone, *metrics["baselines"]):
        scores = [each if name == backbone else each["baselines"][name] for each in directions.values()]
        rows.append((name, *(f"{each[key]:.3f}" for each in scores for key in ("mAP", "rank1"))))
    return headings, rows


def _uncertainty(metrics: dict[str, Any]) -> str:
    """One line: intervals of the first direction's scores."""
    intervals = metrics["intervals"]
    about = f"{intervals['confidence']:.0%} intervals over {intervals['identities']} query identities"
    if intervals["mAP"] is None:
        return f"{about}: none of so few"
    limits = ("{}: {:.3f} to {:.3f}".format(name, *intervals[key]) for key, name in (("mAP", "mAP"), ("rank1", "Rank-1")))
    return f"{about}: {', '.join(limits)}"


def _description(plan: EvaluationPlan, metrics: dict[str, Any]) -> str:
    """What MLflow shows above a run's metrics."""
    about = (
        f"{plan.checkpoint.name} on `{plan.data.name}`: {metrics['queries']} queries, {metrics['gallery']} gallery pictures, "
        f"{plan.recipe.evaluation.metric} distance. {_uncertainty(metrics)}. Pictures: Artifacts, folder `pictures`."
    )
    return f"{markdown(*_table(plan.recipe.model.backbone, metrics))}\n\n{about}"


def _named_for_mlflow(metrics: dict[str, Any]) -> dict[str, float]:
    """What stands before a slash is a group on MLflow's page. The floors, which no training moves, are in the description."""
    from vmreid.evaluation.directions import SCORES

    return {
        f"{direction}/{key}" if direction else key: scores[key]
        for direction, scores in _directions(metrics).items()
        for key in SCORES
    }


def _draw(plan: EvaluationPlan, found: Evaluation, folder: RunFolder, tracker: MlflowRun) -> None:
    from vmreid.report.curves import curves_as_json, draw_cmc, draw_distances, draw_precision_recall
    from vmreid.report.galleries import draw_galleries
    from vmreid.run_folder import write_atomically

    title = f"{folder.path.resolve().name} · {plan.checkpoint.name} · {plan.recipe.evaluation.metric} distance"
    pictures: dict[str, bytes | str] = {
        "galleries.png": draw_galleries(found.examples, plan.data, plan.manifest, title),
        "cmc.png": draw_cmc(found.curves, title),
        "precision_recall.png": draw_precision_recall(found.precisions, title),
        "distances.png": draw_distances(found.distances, title),
        "curves.json": curves_as_json(found),
    }
    folder.pictures.mkdir(exist_ok=True)
    for name, content in pictures.items():
        write_atomically(folder.pictures / name, content)
        tracker.log_artifact(folder.pictures / name, "pictures")


if __name__ == "__main__":
    run(main)
