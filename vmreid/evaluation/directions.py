"""One direction of an evaluation, queries against a gallery, and the mean of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vmreid.distributed import concatenate_over_ranks, sum_over_ranks
from vmreid.evaluation.baselines import chance
from vmreid.evaluation.distances import Metric
from vmreid.evaluation.extraction import Extracted
from vmreid.evaluation.features import JUNK, Features
from vmreid.evaluation.precision_recall import precision_by_recall
from vmreid.evaluation.protocol import QueryRanks, summarise
from vmreid.evaluation.protocols import scores_by
from vmreid.evaluation.query_scores import QueryScores
from vmreid.evaluation.ranking import CPU, rank_queries
from vmreid.evaluation.rerank import rerank
from vmreid.recipes.schema import MEMORY_GIB, Protocol, Rerank

QUERIES = 64  # that are held against the gallery together: their pairs would fill the memory
SCORES = ("mAP", "mINP", "rank1", "rank5", "rank10")
FLOOR_SCORES = ("mAP", "mINP", "rank1")


@dataclass(frozen=True)
class Direction:
    """The model's features of all queries, the ``kinds`` of those (``Extracted``) and their ``ranks``; by name the scores of
    the ``model``, of the model ``reranked`` where that was asked for, and of each floor, each with its ``cmc``, and by name
    what ``precision_by_recall`` gives of the model and the floors, but for chance. Where galleries are ``drawn``, ``ranks`` are
    not those of the scores, and there are no ``precisions``."""

    query: Features
    kinds: dict[str, torch.Tensor]
    ranks: QueryRanks
    scores: dict[str, dict[str, Any]]
    precisions: dict[str, list[float]]

    @property
    def drawn(self) -> bool:
        """Whether scores are means over drawn galleries, so that no query has one of its own."""
        return "spread" in self.scores["model"]

    def metrics(self) -> dict[str, Any]:
        """The model's scores with intervals and by camera, view and type, the floors' below ``baselines``, and the re-ranked
        ones below ``reranked``."""
        queries = self.query_scores()
        by_query = {} if self.drawn else {"intervals": queries.intervals(), "breakdown": queries.breakdown()}
        floors = {name: scores for name, scores in self.scores.items() if name not in ("model", "reranked")}
        return {
            **self.model_scores(),
            **by_query,
            "baselines": {
                name: {key: scores[key] for key in FLOOR_SCORES if key in scores}  # nobody knows chance's mINP
                for name, scores in floors.items()
            },
        }

    def model_scores(self) -> dict[str, Any]:
        """What ``metrics`` says of the model without floors and without query by query."""
        reranked = {name: scores for name, scores in self.scores.items() if name == "reranked"}
        return {**self.scores["model"], **reranked, "baselines": {}}

    def query_scores(self) -> QueryScores:
        """The model's, query by query."""
        return QueryScores.of(self.query, self.ranks, {name: values.cpu().numpy() for name, values in self.kinds.items()})

    def curves(self) -> dict[str, list[float]]:
        """CMC by name."""
        return {name: scores["cmc"] for name, scores in self.scores.items()}


def direction(
    query: Mapping[str, Extracted],
    gallery: Mapping[str, Extracted],
    metric: Metric,
    protocol: Protocol = "market1501",
    device: torch.device = CPU,
    memory_gib: float = MEMORY_GIB,
    settings: Rerank | None = None,
) -> Direction:
    """All ranks. Score ``query`` against ``gallery``, both as they lie on the ranks, by each of their feature functions.

    ``protocol`` is that of ``scores_by``, ``device`` and ``memory_gib`` are those of ``rank_queries``.
    ``settings``: re-rank the model's too.
    """

    def scored(name: str) -> tuple[Features, QueryRanks, dict[str, Any]]:
        """The whole query side, its ranks against the gallery as it lies, and its scores."""
        whole, part = _together(query[name]), gallery[name]
        ranks = rank_queries(whole, part.features, part.rows, metric, device, memory_gib)
        return whole, ranks, scores_by(protocol, ranks, whole, part.features, part.rows, metric, device, memory_gib)

    model, ranks, own = scored("model")
    scores = {"model": own}
    if settings:
        sides = (model, gallery["model"].features, gallery["model"].rows, metric)
        reranked = rank_queries(*sides, device, memory_gib, rerank(*sides, settings, device))
        scores["reranked"] = {**summarise(reranked), "protocol": settings.protocol()}
    drawn = "spread" in own
    # a drawn gallery holds one picture of each query's identity
    one_match = (torch.tensor([1]), torch.tensor([own["gallery"]]))
    scores["chance"] = chance(*one_match) if drawn else _chance(model, gallery["model"].features)
    found = {"model": ranks}
    for name in query:  # a dict's order is the same on all ranks
        if name != "model":
            _, found[name], scores[name] = scored(name)
    kinds = {name: _in_order(query["model"], values) for name, values in query["model"].kinds.items()}
    precisions = {} if drawn else {name: precision_by_recall(each) for name, each in found.items()}
    return Direction(model, kinds, ranks, scores, precisions)


def _together(part: Extracted) -> Features:
    """All ranks. A whole side's features, in index order."""
    return Features(*(_in_order(part, values) for values in vars(part.features).values()))


def _in_order(part: Extracted, values: torch.Tensor) -> torch.Tensor:
    """All ranks. What the parts have for each picture, together, in index order."""
    return concatenate_over_ranks(values)[concatenate_over_ranks(part.rows).argsort()]


def mean(forward: Mapping[str, Any], reverse: Mapping[str, Any]) -> dict[str, Any]:
    """Means of two directions' ``metrics()``."""
    floors = {
        name: {key: (value + reverse["baselines"][name][key]) / 2 for key, value in scores.items()}
        for name, scores in forward["baselines"].items()
    }
    means = {key: (forward[key] + reverse[key]) / 2 for key in SCORES}
    if "reranked" in forward:
        pair = (forward["reranked"], reverse["reranked"])
        means["reranked"] = {key: (pair[0][key] + pair[1][key]) / 2 for key in SCORES}
    return {**means, "baselines": floors}


def named(metrics: Mapping[str, Any]) -> dict[str, float]:
    """``SCORES`` by the names that MLflow shows: what stands before a slash is a group on its page."""
    groups = by_direction(metrics)
    groups |= {f"{name} reranked".strip(): each["reranked"] for name, each in groups.items() if "reranked" in each}
    return {f"{group}/{key}" if group else key: scores[key] for group, scores in groups.items() for key in SCORES}


def by_direction(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Forward by no name, and where both directions were asked for, ``reverse`` and ``mean``."""
    return {"": metrics, **{name: metrics[name] for name in ("reverse", "mean") if name in metrics}}


def _chance(query: Features, gallery_part: Features) -> dict[str, Any]:
    """All ranks. ``query``: all of them; this rank's part of the gallery."""
    gallery = gallery_part[gallery_part.pids != JUNK]
    counts = []
    for some in torch.split(torch.arange(len(query)), QUERIES):
        same_QG = query.pids[some, None] == gallery.pids
        own_QG = same_QG & (query.camids[some, None] == gallery.camids)
        counts.append(torch.stack([(same_QG & ~own_QG).sum(dim=1), len(gallery) - own_QG.sum(dim=1)]))
    return chance(*sum_over_ranks(torch.cat(counts, dim=1)))
