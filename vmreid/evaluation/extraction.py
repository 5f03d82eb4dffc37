"""Features of a split, taken by all ranks: each streams its shards once, several feature functions look at each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from vmreid.data.streams import Batch
from vmreid.evaluation.ranking import Features
from vmreid.progress import Reporter

FeatureFunction = Callable[[torch.Tensor], torch.Tensor]  # uint8 [B, 3, H, W] to float [B, F]


@dataclass(frozen=True)
class Extracted:
    """One feature function's part on this rank: features, and the pictures' index rows int64 [n]."""

    features: Features
    rows: torch.Tensor


@torch.no_grad()
def extract(
    batches: Iterable[Batch], functions: Mapping[str, FeatureFunction], device: torch.device, progress: Reporter | None
) -> dict[str, Extracted]:
    """This rank's features by every function, in float32 on the CPU, in index order; none where there are no batches."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in functions}
    ids, camids, rows = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)], []
    for batch in batches:
        image_BCHW = batch.images_BCHW.to(device, non_blocking=True)
        for name, function in functions.items():
            parts[name].append(function(image_BCHW).float().cpu())
        ids.append(batch.ids_B)
        camids.append(batch.camids_B)
        rows.append(batch.rows_B)
        if progress:
            progress.advance()
    row = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
    order = row.argsort()
    result = {}
    for name, features in parts.items():
        feature_NF = torch.cat(features)[order] if features else torch.zeros(0, 0)
        result[name] = Extracted(Features(feature_NF, torch.cat(ids)[order], torch.cat(camids)[order]), row[order])
    return result
