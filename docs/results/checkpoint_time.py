"""Seconds to save and load a checkpoint, and its size: ``python docs/results/checkpoint_time.py OUT.json BACKBONE... ``

One rank, ZeRO-1, an untrained model at 256 x 128 with AdamW's state; each save writes, syncs and digests every file.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from shards.sources import synthetic
from shards.writer import write_shards
from vmreid.distributed import place_from_environment, start_process_group
from vmreid.engine.checkpoint import TrainingState, load_checkpoint, newest_sound, save_checkpoint
from vmreid.engine.prepare import prepare
from vmreid.engine.trainer import Trainer
from vmreid.recipes import find_recipe, load_recipe
from vmreid.timing import device_name
from vmreid.versions import versions

ROUNDS = 3


def measured(backbone: str, folder: Path) -> dict[str, object]:
    place = place_from_environment()
    start_process_group(place)
    flags = {"model.backbone": ("", backbone), "data.shards": ("", str(folder / "data"))}
    recipe = load_recipe("note", flags, ["train.epochs=1", "data.image_size=[256,128]", "train.batch_size=16"])
    plan = prepare(recipe, find_recipe("note"), folder / backbone, False, 1, place.device)
    trainer = Trainer(plan, place)
    trainer.train(None)
    save_s, verify_s, load_s = [], [], []
    for step in range(100, 100 + ROUNDS):
        begin = time.perf_counter()
        save_checkpoint(trainer.engine, plan.folder, TrainingState(step, 1, plan.data_digest), 2)
        save_s.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        checkpoint, _ = newest_sound(plan.folder)
        verify_s.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        load_checkpoint(trainer.engine, checkpoint, None)
        load_s.append(time.perf_counter() - begin)
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    return {"backbone": backbone, "bytes": size, "save_s": save_s, "verify_s": verify_s, "load_s": load_s}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        write_shards(synthetic(16, 2, 4, 0), Path(name) / "data", {"name": "synthetic"})
        rows = [measured(backbone, Path(name)) for backbone in sys.argv[2:]]
    setting = {"device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")), "versions": versions()}
    Path(sys.argv[1]).write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
