"""The protocol ledger: what a score was measured on and how. It stands as ``protocol`` in every file of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vmreid.distributed import concatenate_over_ranks, from_rank_0, rank, sum_over_ranks
from vmreid.evaluation.distances import Metric
from vmreid.evaluation.features import JUNK, Features
from vmreid.evaluation.protocols import EXCLUDED
from vmreid.recipes.schema import Protocol
from vmreid.versions import commit, package_versions

# what tells one result from another under the same protocol; scores may be compared where all other keys agree
OF_ONE_RESULT = (
    "backbone", "checkpoint", "weights_sha256", "features_sha256", "per_query", "world", "commit", "versions",
)  # fmt: skip
DISTANCES: dict[Metric, str] = {"euclidean": "squared Euclidean, float64", "cosine": "1 - cosine, float64"}
NORMALISATIONS: dict[Metric, str] = {"euclidean": "none", "cosine": "unit length"}


def ledger(
    query: Features,
    scores: Mapping[str, Any],
    gallery_part: Features,
    metric: Metric,
    protocol: Protocol,
    conditions: Mapping[str, Any],
) -> dict[str, Any]:
    """All ranks. The ledger of ``scores``; the other arguments as ``scores_by``, which gave them, took them.

    The counts are of what was scored, junk apart. ``conditions``: what the caller alone knows, such as ``image_size``.
    """
    made_with = from_rank_0({"commit": commit(), "versions": package_versions()} if rank() == 0 else None)
    junk = gallery_part.pids == JUNK
    return {
        "metric": metric,
        "distance": DISTANCES[metric],
        "normalisation": NORMALISATIONS[metric],
        "rule": protocol,
        "excluded": EXCLUDED[protocol],
        "query": {**_counts(query[:0] if rank() else query), "invalid": scores["invalid_queries"]},
        "gallery": {**_counts(gallery_part[~junk]), "junk": int(sum_over_ranks(junk.sum()))},
        **conditions,
        **made_with,
    }


def _counts(part: Features) -> dict[str, int]:
    """All ranks. Of a side whose parts lie on the ranks."""

    def distinct(ids: torch.Tensor) -> int:
        return len(torch.unique(concatenate_over_ranks(torch.unique(ids))))

    pictures = torch.tensor(len(part), device=part.pids.device)
    return {
        "pictures": int(sum_over_ranks(pictures)),
        "identities": distinct(part.pids),
        "cameras": distinct(part.camids),
    }
