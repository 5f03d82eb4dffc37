"""Bytes of every collective in one training step, by ZeRO stage and backbone, counted on two gloo ranks.

python docs/results/bytes_a_step.py OUT.json VIT-S MAMBA-V2 VMAMBA-T

A message's size does not depend on the number of ranks, but for what the head gathers, which is left out. What a rank sends
of N bytes over W ranks: 2 (W - 1) / W N for an all-reduce, (W - 1) / W N for an all-gather or a reduce-scatter (N: whole).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WHOLE = {  # which argument holds the whole message
    "all_reduce": 0, "reduce": 0, "broadcast": 0, "all_gather_into_tensor": 0, "reduce_scatter_tensor": 1, "all_gather": 0,
    "reduce_scatter": 1, "_all_gather_base": 0, "_reduce_scatter_base": 1,
}  # fmt: skip
CONFIGS = ("zero0_bf16", "zero1_bf16", "zero2_bf16", "zero3_bf16")


def main() -> None:
    out, backbones = Path(sys.argv[1]), sys.argv[2:]
    results = {}
    for backbone in backbones:
        for config in CONFIGS:
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(one_rank, (backbone, config, folder), nprocs=2)
                results[f"{backbone} {config}"] = json.loads((Path(folder) / "counts.json").read_text())
            print(backbone, config, results[f"{backbone} {config}"], flush=True)
            out.write_text(json.dumps(results, indent=1) + "\n")


def one_rank(rank: int, backbone: str, config: str, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    watch(counts)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    from vmreid.data.streams import Batch
    from vmreid.engine.deepspeed_config import read_deepspeed_config, with_derived_keys
    from vmreid.engine.start import make_engine, take_step
    from vmreid.engine.training_module import TrainingModule
    from vmreid.models import ReIDModel, build_backbone
    from vmreid.optim import build_optimizer
    from vmreid.recipes import find_recipe, load_recipe

    recipe = load_recipe("note", {"model.backbone": ("--backbone", backbone)}, ["data.image_size=[64,32]"])
    model = ReIDModel(build_backbone(recipe.model, recipe.data.image_size, "torch"), 16, recipe.data.mean, recipe.data.std)
    module = TrainingModule(model, recipe.loss, False)
    deepspeed = with_derived_keys(read_deepspeed_config(config, find_recipe("note"))[1], 16, 2, native_bf16=True)
    engine = make_engine(module, build_optimizer(module, recipe.optim), deepspeed)
    rows = torch.arange(8) + 8 * rank
    pictures = torch.randint(0, 255, (8, 3, 64, 32), dtype=torch.uint8)
    batch = Batch(pictures, rows // 4, rows % 4, rows, rows, 0 * rows, 0 * rows, 0 * rows)
    for step in range(3):  # ZeRO-3 learns the order of parameters in the first
        if step == 2:
            counts.clear()
        result = engine(batch)
        engine.backward(result.loss)
        take_step(engine, 1.0)
    if rank == 0:
        parameters = sum(getattr(each, "ds_numel", each.numel()) for each in model.parameters())
        (Path(folder) / "counts.json").write_text(json.dumps({"parameters": parameters, **counts}))
    dist.barrier()
    os._exit(0)


def watch(counts: Counter[str]) -> None:
    """Count the bytes of torch's collectives from now on; those of the head are too few to tell."""
    for name, place in WHOLE.items():
        if not hasattr(dist, name):
            continue
        setattr(dist, name, counting(getattr(dist, name), name, place, counts))


def counting(collective: Any, name: str, place: int, counts: Counter[str]) -> Any:
    def counted(*given: Any, **named: Any) -> Any:
        values = [*given, *named.values()]
        message = values[place] if place < len(values) else values[0]
        message = message if isinstance(message, list) else [message]
        counts[name] += sum(each.nbytes for each in message if isinstance(each, torch.Tensor))
        counts[f"{name} calls"] += 1
        return collective(*given, **named)

    return counted


if __name__ == "__main__":
    main()
