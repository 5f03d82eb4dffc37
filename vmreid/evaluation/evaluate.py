"""The separate pass over query and gallery: features by all ranks, exact scores, and the floors beside them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist

from vmreid.data.folder import ShardFolder
from vmreid.data.manifest import Manifest, Shard, sha256_of
from vmreid.data.streams import evaluation_batches
from vmreid.distributed import Place
from vmreid.errors import UserError
from vmreid.evaluation.baselines import colour_histogram, rgb_histogram
from vmreid.evaluation.directions import direction, mean
from vmreid.evaluation.distances import Metric
from vmreid.evaluation.extraction import Extracted, FeatureFunction, extract
from vmreid.evaluation.feature_cache import FeatureCache
from vmreid.evaluation.features import Features
from vmreid.evaluation.histogram import Histogram, distance_histogram
from vmreid.evaluation.ledger import ledger
from vmreid.evaluation.nearest import Example, examples
from vmreid.graphs import as_graphs
from vmreid.models import ReIDModel, build_backbone
from vmreid.progress import Reporter
from vmreid.recipes import Recipe
from vmreid.recipes.schema import Protocol, Rerank
from vmreid.run_folder import QUERIES, WEIGHTS
from vmreid.versions import code_digest, package_versions

SHARDS_AT_ONCE = 32  # whose features are kept together: so much is lost where a pass is interrupted


@dataclass(frozen=True)
class EvaluationPlan:
    """All that every rank needs to evaluate; made on rank 0 and sent to the others."""

    recipe: Recipe
    data: ShardFolder
    manifest: Manifest
    checkpoint: Path
    scan_backend: str
    features: Path | None = None  # folder to keep features in
    compiled: bool = False  # the backbone as compiled CUDA graphs


@dataclass(frozen=True)
class Evaluation:
    """``metrics.json``'s content; what each query scored, as the file that the ledger names; CMC and
    precision over recall by direction, then by model and floor; distances of the model's pairs; example queries with what
    lies nearest. Where galleries are drawn, no query has one score: no ``queries``, ``precisions`` and ``examples``."""

    metrics: dict[str, Any]
    queries: bytes | None
    curves: dict[str, dict[str, list[float]]]
    precisions: dict[str, dict[str, list[float]]]
    distances: Histogram
    examples: list[Example]


def check_compiled(device: torch.device) -> None:
    """Raise UserError where a compiled pass cannot be had."""
    if device.type != "cuda":
        raise UserError("--compiled: makes CUDA graphs, and torch sees no GPU here; leave it out")


def load_model(plan: EvaluationPlan) -> tuple[ReIDModel, ReIDModel]:
    """The checkpoint's model and the same model untrained, both in evaluation mode. Raises UserError where they differ."""
    path = plan.checkpoint / WEIGHTS
    weights = safetensors.torch.load_file(path)
    torch.manual_seed(plan.recipe.seed)
    backbone = build_backbone(plan.recipe.model.from_scratch(), plan.recipe.data.image_size, plan.scan_backend)
    classifier = weights.get("head.classifier.weight")
    if classifier is None:
        raise UserError(f"{path}: holds no re-ID head; give a run that launcher.train wrote")
    untrained = ReIDModel(backbone, len(classifier), plan.recipe.data.mean, plan.recipe.data.std)
    model = copy.deepcopy(untrained)
    own = {name: value.shape for name, value in model.state_dict().items()}
    given = {name: value.shape for name, value in weights.items()}
    different = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if different:
        raise UserError(
            f"{path}: is of another architecture than {plan.recipe.model.backbone} in the run's recipe.yaml "
            f"({len(different)} tensors differ, first {different[0]}); evaluate it in the run that it belongs to"
        )
    model.load_state_dict(weights)
    return model.float().eval(), untrained.eval()


def evaluate(plan: EvaluationPlan, place: Place) -> Evaluation:
    """All ranks. The same on every rank."""
    model, untrained = (each.to(place.device) for each in load_model(plan))
    functions: dict[str, FeatureFunction] = {
        "model": features_by(model, plan),
        "untrained": features_by(untrained, plan),
        "histogram": colour_histogram,
        "rgb_histogram": rgb_histogram,
    }
    weights_sha256 = sha256_of(plan.checkpoint / WEIGHTS)
    cache = _cache(plan, weights_sha256, place) if plan.features else None
    query, gallery = (_extract_split(plan, split, functions, place, cache) for split in ("query", "gallery"))
    asked = plan.recipe.evaluation
    metric, rule, ranking = asked.metric, asked.protocol, _ranking(plan, place)
    forward = direction(query, gallery, *ranking)
    metrics, name = forward.metrics(), "query to gallery"
    curves, precisions = {name: forward.curves()}, {} if forward.drawn else {name: forward.precisions}
    if asked.both_directions:
        reverse = direction(gallery, query, *ranking)
        metrics |= {"reverse": reverse.metrics(), "mean": mean(metrics, reverse.metrics())}
        name = "gallery to query"
        curves[name] = reverse.curves()
        if not reverse.drawn:
            precisions[name] = reverse.precisions
    part = gallery["model"]
    queries = None if forward.drawn else forward.query_scores().as_npz()
    conditions: dict[str, Any] = {
        "feature": "after BNNeck",
        "precision": asked.precision,
        "flip": asked.flip,
        "compiled": plan.compiled,
        "image_size": list(plan.recipe.data.image_size),
        "data_digest": plan.manifest.digest,
        "checkpoint": plan.checkpoint.name,
        "weights_sha256": weights_sha256,
        "backbone": plan.recipe.model.backbone,
        "world": place.world,
    }
    if queries:
        conditions["per_query"] = {"file": QUERIES, "sha256": hashlib.sha256(queries).hexdigest()}
    metrics["protocol"] = ledger(forward.query, metrics, part.features, metric, rule, conditions)
    shown = [] if forward.drawn else examples(forward.ranks, forward.query, part.features, part.rows, metric)
    distances = distance_histogram(forward.query, part.features, metric)
    return Evaluation(metrics, queries, curves, precisions, distances, shown)


def evaluate_model(
    plan: EvaluationPlan, place: Place, change: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> dict[str, Any]:
    """All ranks. The checkpoint's scores alone, without floors, intervals and pictures; the same on every rank. What it has of
    ``evaluate``'s metrics is equal to those. ``change``: what is done to uint8 pictures [B, 3, H, W] before the model sees them,
    to find out what it looks at."""
    features = features_by(load_model(plan)[0].to(place.device), plan)
    functions = {"model": (lambda image_BCHW: features(change(image_BCHW))) if change else features}
    query, gallery = (_extract_split(plan, split, functions, place, None) for split in ("query", "gallery"))
    ranking = _ranking(plan, place)
    metrics = direction(query, gallery, *ranking).model_scores()
    if plan.recipe.evaluation.both_directions:
        reverse = direction(gallery, query, *ranking).model_scores()
        metrics |= {"reverse": reverse, "mean": mean(metrics, reverse)}
    return metrics


def _ranking(plan: EvaluationPlan, place: Place) -> tuple[Metric, Protocol, torch.device, float, Rerank | None]:
    """What ``direction`` wants beside the features."""
    asked = plan.recipe.evaluation
    return asked.metric, asked.protocol, place.device, asked.memory_gib, asked.rerank


def features_by(model: ReIDModel, plan: EvaluationPlan) -> FeatureFunction:
    """The model's features as the plan wants them; with ``flip`` the mean of those of a picture and of its mirror image.

    Every pass has the same shape, filled up with black, since a product's bits may depend on its shape: so a picture's
    features do not depend on how many others come with it, which varies with ranks and workers.
    """
    evaluation = plan.recipe.evaluation
    bf16 = evaluation.precision == "bf16"
    forward = as_graphs(model) if plan.compiled else model

    def whole(image_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image_BCHW.device.type, dtype=torch.bfloat16, enabled=bf16):
            feature_BF: torch.Tensor = forward(image_BCHW)
        return feature_BF.clone() if plan.compiled else feature_BF

    def features(image_BCHW: torch.Tensor) -> torch.Tensor:
        missing = evaluation.batch_size - len(image_BCHW)
        filled_BCHW = torch.cat([image_BCHW, image_BCHW.new_zeros(missing, *image_BCHW.shape[1:])])
        feature_BF = whole(filled_BCHW)
        if evaluation.flip:
            feature_BF = (feature_BF + whole(filled_BCHW.flip(-1))) / 2
        return feature_BF[: len(image_BCHW)]

    return features


def _cache(plan: EvaluationPlan, weights_sha256: str, place: Place) -> FeatureCache:
    assert plan.features
    recipe = plan.recipe
    facts = {
        "weights": weights_sha256,
        "data": plan.manifest.digest,
        "model": recipe.model.model_dump(),
        "seed": recipe.seed,
        "pixels": [recipe.data.image_size, recipe.data.mean, recipe.data.std],
        "pass": [recipe.evaluation.batch_size, recipe.evaluation.precision, recipe.evaluation.flip],
        "machine": [plan.scan_backend, plan.compiled, place.device.type],
        "versions": package_versions(),
        "code": code_digest(),
    }
    return FeatureCache(plan.features, facts)


def _extract_split(
    plan: EvaluationPlan, name: str, functions: dict[str, FeatureFunction], place: Place, cache: FeatureCache | None
) -> dict[str, Extracted]:
    """All ranks. This rank's part of a split, by each feature function; what ``cache`` has is not taken again."""
    split = plan.manifest.splits[name]
    own = split.shards[place.rank :: place.world]
    if cache is None:
        parts = _extract_shards(plan, name, own, functions, place)
    else:
        missing = cache.missing(own)
        for begin in range(0, len(missing), SHARDS_AT_ONCE):
            few = missing[begin : begin + SHARDS_AT_ONCE]
            cache.write(split, few, _extract_shards(plan, name, few, functions, place))
        parts = cache.read(own, functions)
    return {function: _widened(part) for function, part in parts.items()}


def _extract_shards(
    plan: EvaluationPlan, name: str, shards: list[Shard], functions: dict[str, FeatureFunction], place: Place
) -> dict[str, Extracted]:
    recipe, split = plan.recipe, plan.manifest.splits[name]
    size = recipe.evaluation.batch_size
    batches = evaluation_batches(
        plan.data, split.model_copy(update={"shards": shards}), recipe.data.image_size, size,
        rank=0, world=1, workers=recipe.data.workers, device=place.device,
    )  # fmt: skip
    if place.rank:
        return extract(batches, functions, place.device, size, None)
    pictures = sum(shard.pictures for shard in shards)
    with Reporter(f"features of {name}, batch", -(-pictures // size)) as progress:
        return extract(batches, functions, place.device, size, progress)


def _widened(part: Extracted) -> Extracted:
    """All ranks. A rank without pictures does not know how wide a feature is."""
    width = torch.tensor([part.features.features.shape[1]])
    dist.all_reduce(width, op=dist.ReduceOp.MAX)
    if len(part.rows):
        return part
    features = Features(torch.zeros(0, int(width)), part.features.pids, part.features.camids)
    return Extracted(features, part.rows, part.kinds)
