"""The exact metric with its gallery shared out: ``deepspeed --num_gpus N docs/results/metric_on_ranks.py OUT.json``.

MSMT17's size and a gallery of ten million; the features are a function of their numbers, whatever N is. Rank 0 writes OUT.json:
seconds, peaks, mAP, and a digest of all ranks of right pictures, which must not depend on N.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vmreid.benchmarks.rerank import GALLERY, QUERIES
from vmreid.benchmarks.synthetic_features import CAMERAS, HIDDEN, PICTURES
from vmreid.distributed import place_from_environment, start_process_group, stop_process_group
from vmreid.evaluation.features import Features
from vmreid.evaluation.protocol import summarise
from vmreid.evaluation.ranking import rank_queries
from vmreid.timing import device_name
from vmreid.versions import versions

CASES = ((QUERIES, GALLERY, 384), (QUERIES, GALLERY, 2048), (1_000, 10_000_000, 384))
CHUNK, NOISE = 20_000, 0.9
ROUNDS = 2


def part(
    number: int, dim: int, identities: int, seed: int, rank: int, world: int, device: torch.device
) -> tuple[Features, torch.Tensor]:
    """Every ``world``-th chunk of ``number`` items, on the CPU, and the items' indices."""
    random = torch.Generator(device).manual_seed(0)
    basis_HF = torch.randn(HIDDEN, dim, generator=random, device=device)
    identity_PH = torch.randn(identities, HIDDEN, generator=random, device=device)
    parts: list[tuple[torch.Tensor, ...]] = []
    for start in range(rank * CHUNK, number, world * CHUNK):
        random.manual_seed(1 + seed + start)
        size = min(CHUNK, number - start)
        pid_N, camid_N = (torch.randint(high, (size,), generator=random, device=device) for high in (identities, CAMERAS))
        hidden_NH = identity_PH[pid_N] + NOISE * torch.randn(size, HIDDEN, generator=random, device=device)
        feature_NF = torch.nn.functional.normalize(hidden_NH @ basis_HF)
        parts.append((feature_NF.cpu(), pid_N.cpu(), camid_N.cpu(), torch.arange(start, start + size)))
    if not parts:
        parts.append((torch.empty(0, dim), *(torch.empty(0, dtype=torch.int64) for _ in range(3))))
    feature_NF, pid_N, camid_N, index_N = (torch.cat(each) for each in zip(*parts, strict=True))
    return Features(feature_NF, pid_N, camid_N), index_N


def measure(queries: int, gallery: int, dim: int, rank: int, world: int, device: torch.device) -> dict[str, Any]:
    """All ranks. One case, the second of two rounds."""
    identities = gallery // PICTURES
    query, _ = part(queries, dim, identities, gallery, 0, 1, device)
    own, index_N = part(gallery, dim, identities, 0, rank, world, device)
    for _ in range(ROUNDS):
        torch.cuda.reset_peak_memory_stats(device)
        dist.barrier()
        begin = time.perf_counter()
        ranks = rank_queries(query, own, index_N, "cosine", device)
        seconds = time.perf_counter() - begin
    return {
        "queries": queries, "gallery": gallery, "dimensions": dim, "GPUs": world, "seconds": seconds,
        "peak GiB on the GPU": torch.cuda.max_memory_allocated(device) / 2**30,
        "peak GiB of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "mAP": summarise(ranks)["mAP"],
        "digest of the ranks": hashlib.sha256(json.dumps(ranks.ranks).encode()).hexdigest(),
    }  # fmt: skip


def main() -> None:
    out, place = Path(sys.argv[-1]), place_from_environment()
    start_process_group(place)
    rows = []
    for case in CASES:
        rows.append(measure(*case, place.rank, place.world, place.device))
        if place.rank == 0:
            print(rows[-1], flush=True)
            setting = {"device": device_name(place.device), "versions": versions()}
            out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    stop_process_group()


if __name__ == "__main__":
    main()
