"""What the head and the losses take on every rank for a global batch: ``python docs/results/head_time.py OUT.json``.

Forward and backward of BNNeck, classifier, cross entropy and batch-hard triplets, which each rank does for all ranks' features.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch

from vmreid.engine.training_module import judge
from vmreid.models.reid import Head
from vmreid.timing import device_name
from vmreid.versions import versions

DIM, K, ROUNDS = 384, 4, 10


def measured(batch: int, classes: int) -> dict[str, float]:
    head = Head(DIM, classes).cuda()
    feature_BF = torch.randn(batch, DIM, device="cuda", requires_grad=True)
    ids_B = torch.arange(batch, device="cuda") // K % classes
    events = [torch.cuda.Event(enable_timing=True) for _ in range(ROUNDS + 1)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for turn in range(-2, ROUNDS):
        identity, triplet, _ = judge(head, feature_BF, ids_B, 0.1, 0.3)
        (identity + triplet).backward()
        if turn >= -1:
            events[turn + 1].record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in itertools.pairwise(events))
    peak = torch.cuda.max_memory_allocated() - before
    return {"batch": batch, "classes": classes, "median_ms": times[len(times) // 2], "peak_bytes": peak}


if __name__ == "__main__":
    rows = [measured(batch, classes) for classes in (1000, 10_000) for batch in (64, 512, 4096, 16_384, 32_768)]
    setting = {"device": device_name(torch.device("cuda")), "versions": versions()}
    Path(sys.argv[1]).write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)
