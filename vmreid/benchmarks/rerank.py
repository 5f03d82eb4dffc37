"""Plain and re-ranked scores of synthetic features of MSMT17's size: time, peak memory, and what re-ranking gives."""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vmreid.engine.memory import peak_bytes
from vmreid.evaluation.distances import Metric
from vmreid.evaluation.features import Features
from vmreid.evaluation.protocol import QueryRanks, summarise
from vmreid.evaluation.ranking import rank_queries
from vmreid.evaluation.rerank import check_settings, rerank
from vmreid.recipes.schema import Rerank
from vmreid.text_table import aligned
from vmreid.timing import device_name, now
from vmreid.versions import versions

IDENTITIES, QUERIES, GALLERY, CAMERAS = 3060, 11659, 82161, 15  # MSMT17's test set
FEATURES = 384
METRIC: Metric = "cosine"
FACTORS = 64  # dimensions that the features vary in
ALIKE = 8  # identities that share a look, of spread 1
IDENTITY, CAMERA, PICTURE = 0.5, 0.4, 1.0  # spreads: mAP about 0.4, after re-ranking 0.6
SEED = 0


@dataclass(frozen=True)
class RerankFigures:
    """Seconds of ranking by the metric, of sets and vectors, of ranking by them; ``peak_bytes``: allocated on the GPU, or
    resident in the whole process; scores of both."""

    plain_s: float
    rerank_s: float
    ranking_s: float
    peak_bytes: int
    plain: dict[str, float]
    reranked: dict[str, float]


def synthetic_features(share: float) -> tuple[Features, Features]:
    """Queries and gallery of ``share`` of MSMT17's identities, by one seed on the CPU: the same for every device."""
    generator = torch.Generator().manual_seed(SEED)
    identities, queries, items = (max(2, round(number * share)) for number in (IDENTITIES, QUERIES, GALLERY))
    pids = torch.randint(identities, (queries + items,), generator=generator)
    camids = torch.randint(CAMERAS, (queries + items,), generator=generator)
    drawn = functools.partial(torch.randn, generator=generator)
    factor_ND = drawn(identities, FACTORS)[pids // ALIKE] + IDENTITY * drawn(identities, FACTORS)[pids]
    factor_ND += CAMERA * drawn(CAMERAS, FACTORS)[camids] + PICTURE * drawn(queries + items, FACTORS)
    feature_NF = factor_ND @ drawn(FACTORS, FEATURES)
    both = Features(feature_NF, pids, camids)
    return both[:queries], both[queries:]


class RerankBenchmark:
    """One measurement. ``share``: of MSMT17's identities and pictures. Raises UserError for too few."""

    def __init__(self, share: float, settings: Rerank, device: torch.device) -> None:
        query, gallery = synthetic_features(share)
        check_settings(settings, len(query) + len(gallery))
        self.query, self.gallery, self.settings, self.device = query, gallery, settings, device

    def measure(self) -> RerankFigures:
        """Rank, re-rank, and time both."""
        sides = (self.query, self.gallery, torch.arange(len(self.gallery)), METRIC)
        if self.device.type == "cuda":
            rank_queries(self.query[:1], *sides[1:], self.device)  # what starts at the first call is not what is timed
            torch.cuda.reset_peak_memory_stats(self.device)
        times = [now(self.device)]
        plain = rank_queries(*sides, self.device)
        times.append(now(self.device))
        reranking = rerank(*sides, self.settings, self.device)
        times.append(now(self.device))
        reranked = rank_queries(*sides, self.device, reranking=reranking)
        times.append(now(self.device))
        plain_s, rerank_s, ranking_s = (end - begin for begin, end in itertools.pairwise(times))
        return RerankFigures(plain_s, rerank_s, ranking_s, peak_bytes(), _scores(plain), _scores(reranked))

    def setting(self, command: str) -> dict[str, Any]:
        """What the figures hold for."""
        return {
            "command": command,
            "device": device_name(self.device),
            "versions": versions(),
            "queries": len(self.query),
            "gallery": len(self.gallery),
            "features": FEATURES,
            "metric": METRIC,
            "rerank": self.settings.protocol(),
        }


def as_json(setting: dict[str, Any], figures: RerankFigures) -> dict[str, Any]:
    """Setting and figures."""
    return {"setting": setting, **asdict(figures)}


def as_text(figures: RerankFigures) -> str:
    """Times, memory and scores."""
    lines = [
        ("plain", f"{figures.plain_s:.2f}", *(f"{value:.4f}" for value in figures.plain.values())),
        ("re-ranked", f"{figures.rerank_s + figures.ranking_s:.2f}", *(f"{value:.4f}" for value in figures.reranked.values())),
    ]
    table = aligned(("", "seconds", "mAP", "Rank-1", "mINP"), lines)
    return f"{table}\n\nsets and vectors {figures.rerank_s:.2f} s, ranking by them {figures.ranking_s:.2f} s"


def _scores(ranks: QueryRanks) -> dict[str, float]:
    scores = summarise(ranks)
    return {key: float(scores[key]) for key in ("mAP", "rank1", "mINP")}  # type: ignore[arg-type]
