"""One training step on several GPUs of one host.

``deepspeed --num_gpus N docs/results/scaling.py OUT.json SECONDS LAUNCH``, which is eager or compiled.

Weak (64 and 256 pictures a GPU) and strong (512 in all) batches of random pictures through the engine as training steps it, for
each backbone and ZeRO stage, as many as fit into the time. Rank 0 writes OUT.json with what there is.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, cast, get_args

import torch
import torch.distributed as dist

from vmreid.benchmarks.loops import Launch, Setup, deepspeed_loop
from vmreid.distributed import Place, place_from_environment, start_process_group, stop_process_group
from vmreid.engine.deepspeed_config import read_deepspeed_config
from vmreid.kernels import choose_backend
from vmreid.models.registry import scans_maps
from vmreid.recipes import find_recipe, load_recipe
from vmreid.timing import device_name
from vmreid.versions import versions

WEAK, STRONG = (64, 256), 512
CASES = [
    *((backbone, 0, batch) for batch in (*WEAK, STRONG) for backbone in ("VIT-S", "MAMBA-V2", "VIT-B")),
    *((backbone, stage, 64) for stage in (1, 2, 3) for backbone in ("VIT-S", "MAMBA-V2", "VIT-B")),
    *((backbone, stage, 256) for stage in (1, 2, 3) for backbone in ("VIT-S", "MAMBA-V2", "VIT-B")),
]
WARM, STEPS, PROFILED = 6, 20, 4


def main() -> None:
    out, seconds, launch = Path(sys.argv[-3]), float(sys.argv[-2]), cast(Launch, sys.argv[-1])
    if launch not in get_args(Launch):
        sys.exit(f"{launch}: LAUNCH must be one of {', '.join(get_args(Launch))}")
    place = place_from_environment()
    start_process_group(place)
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    for backbone, stage, batch in CASES:
        late = torch.tensor([float(time.monotonic() > end)])
        dist.all_reduce(late)
        if late:
            break
        local = batch // place.world if batch == STRONG else batch
        row = {
            "backbone": backbone,
            "zero": stage,
            "pictures a GPU": local,
            "GPUs": place.world,
            "strong": batch == STRONG,
            "launch": launch,
        }
        row |= measure(backbone, stage, local, launch, place)
        rows.append(row)
        gc.collect()
        torch.cuda.empty_cache()
        if place.rank == 0:
            print(row, flush=True)
            setting = {"device": device_name(place.device), "versions": versions(), "tokens": 129}
            out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    stop_process_group()


def measure(backbone: str, stage: int, local: int, launch: Launch, place: Place) -> dict[str, float]:
    """All ranks. Of whole steps: median milliseconds, pictures in a second over all GPUs, peak GiB, NCCL's share of the time."""
    device = place.device
    flags = {"model.backbone": ("--backbone", backbone)}
    recipe = load_recipe("note", flags, ["data.image_size=[256,128]", f"train.batch_size={local}"])
    _, deepspeed = read_deepspeed_config(f"zero{stage}_bf16", find_recipe("note"))
    scan, _ = choose_backend(recipe.model.scan_backend, device, scans_maps(recipe.model))
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats(device)
    loop = deepspeed_loop(Setup(recipe, deepspeed, scan, device), launch)
    for _ in range(WARM):
        loop.step()
    took = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        loop.step()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        begin = time.perf_counter()
        for _ in range(PROFILED):
            loop.step()
        torch.cuda.synchronize()
        profiled = time.perf_counter() - begin
    nccl = sum(event.device_time_total for event in profile.key_averages() if "nccl" in event.key.lower()) / 1e6
    loop.close()
    milliseconds = 1e3 * statistics.median(took)
    return {
        "ms": milliseconds,
        "pictures/s": 1e3 * local * place.world / milliseconds,
        "peak GiB": peak / 2**30,
        "NCCL's share": nccl / profiled,
    }


if __name__ == "__main__":
    main()
