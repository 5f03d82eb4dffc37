"""The separate pass over query and gallery: features by all ranks, exact scores, and the floors beside them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist

from vmreid.data.manifest import Manifest, sha256_of
from vmreid.data.streams import evaluation_batches
from vmreid.distributed import Place, concatenate_over_ranks
from vmreid.errors import UserError
from vmreid.evaluation.baselines import chance, colour_histogram
from vmreid.evaluation.extraction import Extracted, FeatureFunction, extract
from vmreid.evaluation.protocol import summarise
from vmreid.evaluation.ranking import Features, rank_queries
from vmreid.models import ReIDModel, build_backbone
from vmreid.progress import Reporter
from vmreid.recipes import Recipe
from vmreid.run_folder import WEIGHTS


@dataclass(frozen=True)
class EvaluationPlan:
    """All that every rank needs to evaluate; made on rank 0 and sent to the others."""

    recipe: Recipe
    data: Path
    manifest: Manifest
    checkpoint: Path
    scan_backend: str


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


def evaluate(plan: EvaluationPlan, place: Place) -> dict[str, Any]:
    """All ranks. ``metrics.json``'s content, the same on every rank."""
    model, untrained = (each.to(place.device) for each in load_model(plan))
    functions: dict[str, FeatureFunction] = {"model": model, "untrained": untrained, "histogram": colour_histogram}
    query, gallery = (_extract_split(plan, split, functions, place) for split in ("query", "gallery"))
    scores = {name: _score(query[name], gallery[name], plan.recipe.evaluation.metric) for name in functions}
    return {
        **scores["model"],
        "baselines": {
            "chance": _chance(query["model"].features, gallery["model"].features),
            **{name: {key: scores[name][key] for key in ("mAP", "mINP", "rank1")} for name in ("untrained", "histogram")},
        },
        "protocol": {
            "metric": plan.recipe.evaluation.metric,
            "feature": "after BNNeck, fp32",
            "excluded": "junk (pid -1); gallery pictures of the query's identity and camera",
            "image_size": list(plan.recipe.data.image_size),
            "data_digest": plan.manifest.digest,
            "checkpoint": plan.checkpoint.name,
            "weights_sha256": sha256_of(plan.checkpoint / WEIGHTS),
            "backbone": plan.recipe.model.backbone,
        },
    }


def _extract_split(plan: EvaluationPlan, name: str, functions: dict[str, FeatureFunction], place: Place) -> dict[str, Extracted]:
    recipe, split = plan.recipe, plan.manifest.splits[name]
    own = sum(shard.pictures for shard in split.shards[place.rank :: place.world])
    batches = evaluation_batches(
        plan.data, split, recipe.data.image_size, recipe.evaluation.batch_size,
        rank=place.rank, world=place.world, workers=recipe.data.workers,
    )  # fmt: skip
    if place.rank:
        return extract(batches, functions, place.device, None)
    with Reporter(f"features of {name}, batch", -(-own // recipe.evaluation.batch_size)) as progress:
        return extract(batches, functions, place.device, progress)


def _score(query: Extracted, gallery: Extracted, metric: Any) -> dict[str, Any]:
    """All ranks. Queries brought together in index order; the gallery stays where it is."""
    width = torch.tensor([max(query.features.features.shape[1], gallery.features.features.shape[1])])
    dist.all_reduce(width, op=dist.ReduceOp.MAX)
    query, gallery = (_widened(part, int(width)) for part in (query, gallery))
    order = concatenate_over_ranks(query.rows).argsort()
    whole = Features(*(concatenate_over_ranks(part)[order] for part in vars(query.features).values()))
    return summarise(rank_queries(whole, gallery.features, gallery.rows, metric))


def _widened(part: Extracted, width: int) -> Extracted:
    """A rank without pictures does not know how wide a feature is."""
    if len(part.rows):
        return part
    features = Features(torch.zeros(0, width), part.features.pids, part.features.camids)
    return Extracted(features, part.rows)


def _chance(query: Features, gallery: Features) -> dict[str, float]:
    """All ranks."""
    pids, camids = concatenate_over_ranks(query.pids), concatenate_over_ranks(query.camids)
    same_QG = pids[:, None] == gallery.pids
    positives = (same_QG & (camids[:, None] != gallery.camids)).sum(dim=1)
    excluded = (same_QG & (camids[:, None] == gallery.camids)).sum(dim=1)
    counts = torch.stack([positives, (gallery.pids != -1).sum() - excluded])
    dist.all_reduce(counts)
    return chance(*counts)
