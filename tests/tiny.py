"""Small real runs for the tests: a rendered shard set, recipes that train in seconds, and the calls that train them."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shards.sources import synthetic
from shards.writer import write_shards
from vmreid.digests import DIGESTS, as_text, entries_of
from vmreid.distributed import Place, rank, world_size
from vmreid.engine.prepare import Plan, prepare
from vmreid.engine.trainer import StepLogger, Trainer
from vmreid.recipes import find_recipe, load_recipe

if TYPE_CHECKING:
    from mlflow.entities import Run

SMALL = {
    "VIT-S": ["model.dim=48", "model.depth=2", "model.heads=3"],
    "MAMBA-S": ["model.dim=48", "model.depth=2"],
    "MAMBA-V2": ["model.dim=48", "model.depth=2", "model.d_state=4"],
    "VMAMBA-T": ["model.dim=8", "model.depth=1"],
    "VIM-T": ["model.dim=48", "model.depth=2", "model.d_state=4"],
}
BASE = [
    "data.image_size=[64, 32]", "data.pictures_per_identity=2", "train.batch_size=12", "optim.warmup_epochs=0",
    "train.checkpoint_epochs=1", "data.workers=0",
]  # fmt: skip
LINEAR = torch.nn.functional.linear


def write_set(folder: Path, identities: int = 12, pictures: int = 4) -> Path:
    """A synthetic set: half of ``identities`` train. With 12, an epoch of P = 6 is one step."""
    write_shards(synthetic(identities, 2, pictures, 0), folder, {"name": "synthetic"})
    return folder


def plan_run(
    out: Path, data: Path | str, settings: list[str], *, backbone: str = "VIT-S", world: int = 1, resume: bool = False
) -> Plan:
    """What rank 0 does before the process group starts."""
    flags = {"model.backbone": ("--backbone", backbone), "data.shards": ("--data", str(data))}
    recipe = load_recipe("demo", flags, [*BASE, *SMALL[backbone], *settings])
    return prepare(recipe, find_recipe("demo"), out, resume, world, torch.device("cpu"))


def train_on_ranks(plan: Plan, fail_at: int | None = None, logger: StepLogger | None = None) -> dict[str, torch.Tensor]:
    """All ranks, inside a process group: train a plan; rank 0 returns the whole weights, the others nothing.

    ``fail_at``: every rank raises before that step (counted from 0), as a crash of the job would stop it there.
    """
    from vmreid.engine import trainer as module
    from vmreid.engine.checkpoint import consolidated_weights

    os.environ.setdefault("LOCAL_RANK", str(rank()))
    forget_deepspeed_groups()
    runner = Trainer(plan, Place(rank(), world_size(), rank()))
    if fail_at is not None:
        seed = module.seed_everything

        def seed_or_fail(*numbers: int) -> None:
            if len(numbers) > 1 and numbers[1] == fail_at:
                raise Interrupted
            seed(*numbers)

        module.seed_everything = seed_or_fail
        try:
            runner.train(logger)
        except Interrupted:
            return {}
        finally:
            module.seed_everything = seed
    runner.train(logger)
    return consolidated_weights(runner.engine)


def command_on_ranks(module: str, words: list[str], folder: Path) -> str:
    """All ranks of a pool: run a launcher module's ``main`` in ``folder`` and return what rank 0 printed."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    forget_deepspeed_groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        importlib.import_module(module).main(words)
    return printed.getvalue()


def runs_of(project: Path) -> list[Run]:
    """What MLflow holds of the runs below ``project``."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{project / 'runs/mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "vmreid"]
    return client.search_runs([experiment.experiment_id])


def seal(checkpoint: Path) -> None:
    """Make a folder with files a whole checkpoint."""
    (checkpoint / DIGESTS).write_text(as_text(entries_of(checkpoint.iterdir())))


def set_words(*settings: str) -> list[str]:
    """``--set`` words for a run that trains in seconds."""
    return [word for setting in (*BASE, *settings) for word in ("--set", setting)]


def forget_deepspeed_groups() -> None:
    """DeepSpeed keeps process groups in modules, for a process's whole life; the pool makes a new one for each call."""
    if "deepspeed" in sys.modules:
        import deepspeed

        deepspeed.comm.comm.cdb = None
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.runtime.zero.partition_parameters import Init

        # ZeRO-3 numbers modules and parameters over all engines of a process; a pool's ranks have run unlike many
        torch.nn.functional.linear = LINEAR  # ZeRO-3 leaves its own in its place, which rounds in another way
        DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
        Init.param_id = 0
        groups = deepspeed.utils.groups
        for name in ("_WORLD_GROUP", "_DATA_PARALLEL_GROUP", "_ZERO_PARAM_INTRA_PARALLEL_GROUP", "mesh_device"):
            setattr(groups, name, None)


def with_gradient(x: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``x`` itself, whose gradient is changed on its way back."""
    x = x.clone()
    if x.requires_grad:
        x.register_hook(change)
    return x


class Interrupted(Exception):
    """The crash that a test asks for."""


def differences(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest absolute difference by tensor name; the names must agree."""
    assert left.keys() == right.keys()
    return {name: float((left[name].double() - right[name].double()).abs().max()) for name in left}


def read_json_lines(path: Path, *, without: tuple[str, ...] = ("images_per_s", "peak_bytes")) -> list[dict[str, Any]]:
    """Entries of a log, less what depends on the machine's speed."""
    import json

    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in without} for entry in entries]
