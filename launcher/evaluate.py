"""``python -m launcher.evaluate --run RUN``: exact mAP, CMC and mINP of a run's newest checkpoint, in a pass of its own.

With ``--checkpoint`` or ``--data``: of several, each on each set, into ``RUN/evaluations/CHECKPOINT/SET/``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.rerank_option import add_rerank_option
from vmreid.command import Parser, run
from vmreid.run_folder import RunFolder, write_atomically
from vmreid.text_table import aligned, markdown

if TYPE_CHECKING:
    from vmreid.evaluation.evaluate import Evaluation, EvaluationPlan
    from vmreid.recipes.schema import Data, Rerank
    from vmreid.tracking import MlflowRun

UNNAMEABLE = re.compile(r"[^\w. -]")  # what MLflow refuses in a metric's name, and the slash that groups them


@dataclass(frozen=True)
class Job:
    """One checkpoint on one set. ``out``: where the results go; ``prefix``: of their names in MLflow, none on the run's own set;
    ``below``: the folder of its artifacts there, None for the run's own."""

    plan: EvaluationPlan
    out: RunFolder
    prefix: str
    below: str | None


def main(words: Sequence[str]) -> None:
    """All ranks."""
    parser = Parser(prog="python -m launcher.evaluate", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="folder that launcher.train wrote")
    parser.add_argument("--checkpoint", nargs="+", metavar="NAME", help="of RUN/checkpoints; default: the newest")
    parser.add_argument("--data", nargs="+", metavar="DIR", help="sets of shards, or their URLs; default: the run's")
    parser.add_argument("--compiled", action="store_true", help="the backbone as CUDA graphs: half a minute at the start")
    add_rerank_option(parser, "as the run's recipe has it")
    given = parser.parse_args(words)

    from vmreid.distributed import from_rank_0, place_from_environment, start_process_group, stop_process_group
    from vmreid.evaluation.evaluate import evaluate

    place = place_from_environment()
    folder, jobs, tracker = RunFolder(given.run), None, None
    if place.rank == 0:
        jobs, tracker = _prepare(folder, given.checkpoint, given.data, given.rerank, given.compiled)
    try:
        start_process_group(place)
        for job in from_rank_0(jobs):
            found = evaluate(job.plan, place)
            if tracker:
                _keep(job, found, tracker)
    finally:
        if tracker:
            tracker.close("FINISHED")
    stop_process_group()


def _prepare(
    folder: RunFolder,
    checkpoints: Sequence[str] | None,
    places: Sequence[str] | None,
    rerank: Rerank | None,
    compiled: bool,
) -> tuple[list[Job], MlflowRun]:
    """Rank 0. Check the run, the sets and the checkpoints; open its MLflow run again. ``rerank`` stands in for the recipe's."""
    from vmreid.data.sets import evaluation_set
    from vmreid.distributed import own_device
    from vmreid.errors import UserError
    from vmreid.evaluation.evaluate import EvaluationPlan, check_compiled, load_model
    from vmreid.evaluation.rerank import check_settings
    from vmreid.kernels import choose_backend
    from vmreid.models import scans_maps
    from vmreid.tracking import MlflowRun

    recipe = folder.recipe()
    if rerank:
        recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"rerank": rerank})})
    device = own_device()
    if compiled:
        check_compiled(device)
    backend, _ = choose_backend(recipe.model.scan_backend, device, scans_maps(recipe.model))
    wanted: Sequence[str | None] = checkpoints or [None]
    chosen = [folder.checkpoint(name) for name in dict.fromkeys(wanted)]
    sets = [evaluation_set(data) for data in _places(recipe.data, places)]
    names = [each.folder.name for each in sets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--data: {names.count(name)} sets are called {name}, so their results would be; give one at a time")
    if recipe.evaluation.rerank:
        for each in sets:
            rows = sum(each.manifest.splits[side].pictures for side in ("query", "gallery"))
            check_settings(recipe.evaluation.rerank, rows, recipe.evaluation.protocol)
    features = folder.features if recipe.evaluation.keep_features else None
    jobs = []
    for checkpoint in chosen:
        then = recipe.model_copy(update={"model": folder.model_of(checkpoint)})
        for each in sets:
            plan = EvaluationPlan(then, each.folder, each.manifest, checkpoint, backend, features, compiled)
            below = f"evaluations/{checkpoint.name}/{each.folder.name}" if checkpoints or places else None
            prefix = f"{UNNAMEABLE.sub('_', each.folder.name)}/" if places else ""
            jobs.append(Job(plan, RunFolder(folder.path / below) if below else folder, prefix, below))
        load_model(jobs[-1].plan)
    return jobs, MlflowRun(folder, recipe.model.backbone, "launcher.train")


def _places(data: Data, places: Sequence[str] | None) -> list[Data]:
    """The recipe's section once for each set."""
    from vmreid.data.sets import with_whole_paths

    return [with_whole_paths(data.model_copy(update={"shards": place})) for place in places] if places else [data]


def _keep(job: Job, found: Evaluation, tracker: MlflowRun) -> None:
    """Rank 0. Write, print and log what was found."""
    from vmreid.evaluation.directions import named

    plan, out, metrics = job.plan, job.out, found.metrics
    out.path.mkdir(parents=True, exist_ok=True)
    if found.queries:
        write_atomically(out.queries_file, found.queries)  # before what names its digest
    write_atomically(out.metrics_file, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    if job.below:
        print(f"{plan.checkpoint.name} on {plan.data.name}")
    table = aligned(*_table(plan.recipe.model.backbone, metrics))
    print(table, _uncertainty(metrics), out.metrics_file, sep="\n", flush=True)
    by_name = {f"{job.prefix}{name}": value for name, value in named(metrics).items()}
    tracker.log(int(plan.checkpoint.name.removeprefix("step-")), by_name)
    for path in (out.metrics_file, *([out.queries_file] if found.queries else [])):
        tracker.log_artifact(path, job.below)
    if not job.below:
        tracker.describe(_description(plan, metrics))
    _draw(job, found, tracker)


def _table(backbone: str, metrics: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: the model, then its floors; each direction has its columns."""
    from vmreid.evaluation.directions import by_direction

    names = {"": "query → gallery", "reverse": "gallery → query", "mean": "mean"}
    directions = by_direction(metrics)
    behind = {key: f", {names[key]}" if len(directions) > 1 else "" for key in directions}
    headings = ("", *(f"{score}{text}" for text in behind.values() for score in ("mAP", "Rank-1")))
    named = {backbone: list(directions.values())}
    if "reranked" in metrics:
        named[f"{backbone}, re-ranked"] = [each["reranked"] for each in directions.values()]
    named |= {floor: [each["baselines"][floor] for each in directions.values()] for floor in metrics["baselines"]}
    return headings, [
        (name, *(f"{each[key]:.3f}" for each in scores for key in ("mAP", "rank1"))) for name, scores in named.items()
    ]


def _uncertainty(metrics: dict[str, Any]) -> str:
    """One line: intervals of the first direction's scores, or their spread over drawn galleries."""
    if "spread" in metrics:
        return "standard deviation over drawn galleries: mAP {mAP:.3f}, Rank-1 {rank1:.3f}".format(**metrics["spread"])
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


def _draw(job: Job, found: Evaluation, tracker: MlflowRun) -> None:
    from vmreid.report.curves import curves_as_json, draw_cmc, draw_distances, draw_precision_recall
    from vmreid.report.galleries import draw_galleries

    plan, folder = job.plan, job.out.pictures
    name = job.out.path.resolve().name if not job.below else plan.data.name
    title = f"{name} · {plan.checkpoint.name} · {plan.recipe.evaluation.metric} distance"
    pictures: dict[str, bytes | str] = {
        "cmc.png": draw_cmc(found.curves, title),
        "distances.png": draw_distances(found.distances, title),
        "curves.json": curves_as_json(found),
    }
    if found.precisions:
        pictures["precision_recall.png"] = draw_precision_recall(found.precisions, title)
        pictures["galleries.png"] = draw_galleries(found.examples, plan.data, plan.manifest, title)
    folder.mkdir(exist_ok=True)
    for file, content in pictures.items():
        write_atomically(folder / file, content)
        tracker.log_artifact(folder / file, f"{job.below}/pictures" if job.below else "pictures")


if __name__ == "__main__":
    run(main)
