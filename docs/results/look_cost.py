"""What a look into the layers costs: ``python docs/results/look_cost.py OUT.json [LAUNCH…]``, eager and compiled.

Steps of 64 pictures of 256×128 in the engine, waiting for the loss as training does, with nothing else on the machine: medians of
steps without and with a look, in turns, and what that is of the steps from one look to the next at the recipe's interval.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch

from vmreid.benchmarks.loops import Launch, Setup, deepspeed_loop, random_batch
from vmreid.distributed import place_from_environment, start_process_group, stop_process_group
from vmreid.engine.deepspeed_config import read_deepspeed_config
from vmreid.engine.monitors import Monitor
from vmreid.engine.training_module import TrainingModule
from vmreid.kernels import choose_backend
from vmreid.models.registry import scans_maps
from vmreid.recipes import find_recipe, load_recipe
from vmreid.timing import device_name
from vmreid.versions import versions

BACKBONES, BATCH = ("VIT-S", "MAMBA-S", "MAMBA-V2", "VMAMBA-T", "VIM-S"), 64
WARM, ROUNDS, PLAIN = 8, 20, 4  # rounds of so many steps without a look and one with


def measure(backbone: str, launch: Launch, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step and of one with a look."""
    sizes = ["data.image_size=[256,128]", f"train.batch_size={BATCH}"]
    recipe = load_recipe("note", {"model.backbone": ("--backbone", backbone)}, sizes)
    _, deepspeed = read_deepspeed_config("zero0_bf16", find_recipe("note"))
    scan, _ = choose_backend(recipe.model.scan_backend, device, scans_maps(recipe.model))
    setup = Setup(recipe, deepspeed, scan, device)
    loop, batch = deepspeed_loop(setup, launch), random_batch(setup)

    def step(look: bool) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        monitor = Monitor(cast(TrainingModule, loop.module), setup.autocast()) if look else None
        if monitor:
            monitor.forward(batch)
        loss = loop.forward()
        loss.item()
        loop.backward(loss)
        if monitor:
            monitor.backward()
        loop.update()
        if monitor:
            monitor.after()
            monitor.numbers()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin)

    for number in range(WARM):
        step(look=number % 4 == 3)
    plain, looked = [], []
    for _ in range(ROUNDS):
        plain += [step(look=False) for _ in range(PLAIN)]
        looked.append(step(look=True))
    loop.close()
    without, within = statistics.median(plain), statistics.median(looked)
    every = recipe.train.monitor_steps
    assert every
    share = (within - without) / (every * without)
    return {"backbone": backbone, "launch": launch, "ms": without, "ms with a look": within, "every": every, "share": share}


def main() -> None:
    out, launches = Path(sys.argv[1]), sys.argv[2:] or ["eager", "compiled"]
    place = place_from_environment()
    start_process_group(place)
    rows = []
    for launch in launches:
        for backbone in BACKBONES:
            rows.append(measure(backbone, cast(Launch, launch), place.device))
            print(rows[-1], flush=True)
            setting = {"device": device_name(place.device), "versions": versions(), "tokens": 129, "batch": BATCH}
            out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    stop_process_group()


if __name__ == "__main__":
    main()
