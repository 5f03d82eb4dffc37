"""From finished runs to the rows of the comparison: every number read or measured, none expected."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vmreid.errors import UserError
from vmreid.kernels import choose_backend
from vmreid.models import build_backbone, scans_maps
from vmreid.progress import Reporter
from vmreid.report.measure import peak_bytes_per_picture, seconds_by_tokens
from vmreid.report.pairs import Pair, pairs_of
from vmreid.report.protocols import Protocol, marked, number_of, protocols_of, warnings_of
from vmreid.run_folder import RunFolder
from vmreid.timing import device_name, fitted_exponent

FIRST_STEPS_LEFT_OUT = 3  # of the throughput: caches and allocators warm up


@dataclass(frozen=True)
class Row:
    """One run. ``protocol``: number of the one it was evaluated under. Scores are fractions; ``seconds_by_tokens`` is
    forward + backward of two pictures on the comparing machine. ``intervals``: as evaluation wrote them; None before it did."""

    name: str
    protocol: int
    backbone: str
    parameters: int
    steps: int
    exponent: float
    seconds_by_tokens: dict[int, float]
    mAP: float
    rank1: float
    mINP: float
    intervals: dict[str, Any] | None
    nonfinite_steps: int
    gradient_tail: float
    bytes_per_picture: float
    images_per_s: float
    final_loss: float


@dataclass(frozen=True)
class Comparison:
    """Rows, the floors beside them, what they were measured on, and what a reader must know before comparing."""

    rows: list[Row]
    floors: dict[str, dict[str, float]]
    protocols: list[Protocol]
    pairs: list[Pair]
    setting: dict[str, Any]
    warnings: list[str]
    curves: dict[str, dict[str, list[float]]]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return asdict(self)


def compare_runs(folders: list[RunFolder], device: torch.device) -> Comparison:
    """Read runs and measure their backbones on ``device``. Raises UserError for a run that was not trained or evaluated."""
    names = run_names(folders)
    metrics = {name: folder.metrics() for name, folder in zip(names, folders, strict=True)}
    logs = {name: folder.log() for name, folder in zip(names, folders, strict=True)}
    for name, folder in zip(names, folders, strict=True):
        if not logs[name]:
            raise UserError(
                f"{folder.path}: no step in log.jsonl; train it first with python -m launcher.train --out {folder.path}"
            )
    ledgers = {name: metrics[name]["protocol"] for name in names}
    protocols = protocols_of(ledgers)
    rows = []
    with Reporter("measuring", len(names)) as reporter:
        for name, folder in zip(names, folders, strict=True):
            rows.append(_row(name, number_of(name, protocols), folder, metrics[name], logs[name], device))
            reporter.advance(name)
    floors: dict[str, dict[str, float]] = {}
    for row in rows:
        for floor, scores in metrics[row.name]["baselines"].items():
            floor_name = f"untrained {row.name}" if floor == "untrained" else floor
            floors[marked(floor_name, row.protocol, protocols)] = scores
    pairs = pairs_of(dict(zip(names, folders, strict=True)), metrics, protocols)
    setting = {
        "device": device_name(device),
        "torch": torch.__version__,
        "protocols": ledgers,
    }
    curves = {
        name: {key: [entry[key] for entry in log] for key in ("step", "loss", "grad_norm", "lr")} for name, log in logs.items()
    }
    return Comparison(rows, floors, protocols, pairs, setting, warnings_of(protocols), curves)


def _row(
    name: str, protocol: int, folder: RunFolder, metrics: dict[str, Any], log: list[dict[str, Any]], device: torch.device
) -> Row:
    recipe = folder.recipe()
    model = recipe.model.from_scratch()
    backend, _ = choose_backend(recipe.model.scan_backend, device, scans_maps(recipe.model))
    size = recipe.data.image_size
    seconds = seconds_by_tokens(model, backend, device)
    return Row(
        name=name,
        protocol=protocol,
        backbone=recipe.model.backbone,
        parameters=sum(p.numel() for p in build_backbone(model, size, backend).parameters()),
        steps=len(log),
        exponent=fitted_exponent(seconds),
        seconds_by_tokens=seconds,
        mAP=metrics["mAP"],
        rank1=metrics["rank1"],
        mINP=metrics["mINP"],
        intervals=metrics.get("intervals"),
        nonfinite_steps=len(folder.non_finite()),
        gradient_tail=gradient_tail(log),
        bytes_per_picture=peak_bytes_per_picture(model, size, backend, device),
        images_per_s=images_per_s(log),
        final_loss=log[-1]["loss"],
    )


def images_per_s(log: list[dict[str, Any]]) -> float:
    """Median over the steps, the first ones left out where there are more."""
    return float(statistics.median(entry["images_per_s"] for entry in log[FIRST_STEPS_LEFT_OUT:] or log[-1:]))


def gradient_tail(log: list[dict[str, Any]]) -> float:
    """99th percentile over median of the gradient norms before clipping."""
    norms = torch.tensor([entry["grad_norm"] for entry in log], dtype=torch.float64)
    return float(norms.quantile(0.99) / norms.quantile(0.5))


def run_names(folders: list[RunFolder]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart. Raises UserError for a run given twice."""
    paths = [folder.path.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path}: given {paths.count(path)} times; name each run once")
    depth = next(depth for depth in itertools.count(1) if len({path.parts[-depth:] for path in paths}) == len(paths))
    return ["/".join(path.parts[-depth:]) for path in paths]
