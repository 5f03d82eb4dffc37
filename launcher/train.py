"""``python -m launcher.train --out RUN``: train a backbone on a shard folder with DeepSpeed, log to MLflow, resume."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmreid.command import TO_GO_ON, Parser, run

if TYPE_CHECKING:
    import argparse

    from vmreid.engine.prepare import Plan
    from vmreid.engine.trainer import Trainer
    from vmreid.recipes import Recipe
    from vmreid.tracking import MlflowRun

FLAGS = {
    "--backbone": "model.backbone",
    "--data": "data.shards",
    "--deepspeed_config": "deepspeed_config",
    "--lr": "optim.lr",
    "--batch_size": "train.batch_size",
    "--epochs": "train.epochs",
}


def main(words: Sequence[str]) -> int:
    """All ranks. 0, or ``TO_GO_ON`` where a signal ended it early."""
    parser = Parser(prog="python -m launcher.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--recipe", help="name such as note, or YAML file; default: the run's own on a resume, else note")
    for flag, key in FLAGS.items():
        parser.add_argument(flag, help=f"{key} of the recipe")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="any other value of the recipe")
    parser.add_argument("--resume", choices=["auto"], help="go on from RUN's newest checkpoint, or begin where there is none")
    parser.add_argument(
        "--dry-run", type=int, nargs="?", const=0, metavar="RANKS",
        help="train and write nothing: print every value with its origin, batch, steps and a rank's memory, on so many ranks",
    )  # fmt: skip
    given = parser.parse_args(words)

    from vmreid.distributed import from_rank_0, place_from_environment, start_process_group, stop_process_group
    from vmreid.engine.trainer import Trainer

    place = place_from_environment()
    if given.dry_run is not None:
        if place.rank == 0:
            _look(given, given.dry_run or place.world)
        return 0
    plan, tracker = None, None
    if place.rank == 0:
        plan, tracker = _prepare(given, place.world)
    try:
        start_process_group(place)
        plan = from_rank_0(plan)
        trainer = Trainer(plan, place)
        if place.rank == 0:
            print("\n".join(trainer.description()), flush=True)
            if tracker:
                _describe(tracker, plan, trainer, words)
        asked = trainer.train(tracker)
    except BaseException:
        if tracker:
            with contextlib.suppress(Exception):  # what happened first is what must be told
                tracker.close("FAILED")
        raise
    if tracker:
        tracker.log_artifact(plan.folder.log_file)
        _show_layers(tracker, plan)
        tracker.close("KILLED" if asked else "FINISHED")
        last = plan.folder.latest()
        goes_on = f"{asked}: stopped at {last}; the same command with --resume auto goes on from there"
        print(goes_on if asked else f"{last}\nevaluate it: python -m launcher.evaluate --run {plan.folder.path}", flush=True)
    stop_process_group()
    return TO_GO_ON if asked else 0


def _prepare(given: argparse.Namespace, world: int) -> tuple[Plan, MlflowRun]:
    """Rank 0. Check everything, write the synthetic set where no data is named, open the MLflow run."""
    from vmreid.distributed import own_device
    from vmreid.engine.prepare import prepare
    from vmreid.recipes import find_recipe, load_recipe
    from vmreid.tracking import MlflowRun

    name, flags = _recipe_name(given), _flags(given)
    recipe = _with_data(load_recipe(name, flags, given.set), given.out.parent)
    plan = prepare(recipe, find_recipe(name), given.out, given.resume == "auto", world, own_device())
    title = given.out.name if recipe.model.backbone in given.out.name else f"{recipe.model.backbone} {given.out.name}"
    return plan, MlflowRun(plan.folder, title, "launcher.train")


def _look(given: argparse.Namespace, world: int) -> None:
    """One rank. Say what ``_prepare`` for ``world`` ranks and training would do, and leave nothing behind."""
    from vmreid.distributed import own_device
    from vmreid.engine.dry_run import describe_plan
    from vmreid.engine.prepare import flat, make_plan
    from vmreid.recipes import find_recipe, load_recipe, value_origins

    name, flags = _recipe_name(given), _flags(given)
    recipe = load_recipe(name, flags, given.set)
    origins = value_origins(name, flags, given.set, list(flat(recipe.model_dump())))
    with tempfile.TemporaryDirectory() as folder:
        whole = _with_data(recipe, Path(folder))
        plan = make_plan(whole, find_recipe(name), given.out, given.resume == "auto", world, own_device())
        print(describe_plan(plan, recipe, origins, world))


def _recipe_name(given: argparse.Namespace) -> str:
    from vmreid.run_folder import RunFolder

    own = RunFolder(given.out).recipe_file
    return given.recipe or (str(own) if given.resume == "auto" and own.is_file() else "note")


def _flags(given: argparse.Namespace) -> dict[str, tuple[str, str]]:
    values = vars(given)
    return {key: (flag, values[flag[2:]]) for flag, key in FLAGS.items() if values[flag[2:]] is not None}


def _with_data(recipe: Recipe, parent: Path) -> Recipe:
    """The recipe; where it names no shards, with the synthetic set, written into ``parent`` where it is not there yet."""
    from vmreid.models.registry import check_backbone

    check_backbone(recipe.model)
    if recipe.data.shards is not None:
        return recipe
    from shards.sources import synthetic
    from shards.writer import write_shards

    settings = recipe.synthetic.model_dump()
    folder = parent / ("synthetic-" + "-".join(str(value) for value in settings.values()))
    if not (folder / "manifest.json").is_file():
        print(f"no --data: rendering the synthetic set into {folder}", flush=True)
        write_shards(synthetic(**settings), folder, {"name": "synthetic", **settings})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"shards": str(folder)})})


def _describe(tracker: MlflowRun, plan: Plan, trainer: Trainer, words: Sequence[str]) -> None:
    from vmreid.engine.deepspeed_config import precision_name, zero_stage
    from vmreid.engine.prepare import flat
    from vmreid.precision import computes_bf16
    from vmreid.versions import versions

    recipe = flat(plan.recipe.model_dump())
    tracker.log_parameters(
        {
            **{key: value for key, value in recipe.items() if value is not None},
            "deepspeed.stage": zero_stage(plan.deepspeed),
            "deepspeed.precision": precision_name(plan.deepspeed, computes_bf16(trainer.place.device)),
            **{f"deepspeed.{key}": value for key, value in flat(plan.deepspeed).items()},
            "data.digest": plan.data_digest,
            "weights": trainer.weights_report,
            "world": trainer.place.world,
            "device": str(trainer.place.device),
            **{f"version.{key}": value for key, value in versions().items()},
        }
    )
    tracker.set_tags(
        {
            "command": shlex.join(["python", "-m", "launcher.train", *words]),
            "run_folder": str(plan.folder.path.resolve()),
        }
    )
    tracker.describe("\n".join(f"- {line}" for line in trainer.description()))
    for each in plan.sets:
        tracker.log_dataset(each.folder.name, each.folder.uri, each.manifest.digest)
    for path in (plan.folder.recipe_file, plan.folder.deepspeed_file):
        tracker.log_artifact(path)
    if plan.checkpoint is None:
        _show_data(tracker, plan)


def _show_data(tracker: MlflowRun, plan: Plan) -> None:
    from vmreid.data.contact_sheet import draw_contact_sheet
    from vmreid.run_folder import write_atomically

    plan.folder.pictures.mkdir(exist_ok=True)
    for number, each in enumerate(plan.sets, 1):
        path = plan.folder.pictures / ("data.png" if len(plan.sets) == 1 else f"data-{number}.png")
        write_atomically(path, draw_contact_sheet(each.folder, each.manifest))
        tracker.log_artifact(path, "pictures")


def _show_layers(tracker: MlflowRun, plan: Plan) -> None:
    from vmreid.run_folder import write_atomically

    looks = plan.folder.monitors()
    if not looks:
        return
    from vmreid.report.heat_maps import draw_layers

    plan.folder.pictures.mkdir(exist_ok=True)
    write_atomically(plan.folder.pictures / "layers.png", draw_layers(looks, f"{plan.recipe.model.backbone}: blocks over steps"))
    tracker.log_artifact(plan.folder.pictures / "layers.png", "pictures")
    tracker.log_artifact(plan.folder.monitors_file)


if __name__ == "__main__":
    run(main)
