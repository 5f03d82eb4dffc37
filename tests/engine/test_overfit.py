"""Each backbone, as defined, learns 16 identities by heart: the loss, the optimizer and the features work together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import forget_deepspeed_groups, write_set

from vmreid.data.streams import evaluation_batches
from vmreid.distributed import Place
from vmreid.engine.prepare import Plan, prepare
from vmreid.engine.trainer import Trainer
from vmreid.evaluation.evaluate import Extracted
from vmreid.evaluation.extraction import extract
from vmreid.evaluation.protocol import summarise
from vmreid.evaluation.ranking import rank_queries
from vmreid.recipes import find_recipe, load_recipe

IDENTITIES = 16
SETTINGS = [
    "data.image_size=[64, 32]", "train.batch_size=32", "optim.warmup_epochs=5", "optim.weight_decay=0",
    "train.checkpoint_epochs=1000", "data.augment.colour_jitter=0", "data.augment.crop_scale=[1, 1]",
    "deepspeed_config=zero1_fp32",
]  # fmt: skip
EPOCHS = {"VIT-S": 40, "MAMBA-S": 40, "MAMBA-V2": 60, "VMAMBA-T": 30, "VIM-T": 30}
RATE = {"VIT-S": 3e-4, "MAMBA-S": 3e-4, "MAMBA-V2": 1e-3, "VMAMBA-T": 1e-3, "VIM-T": 1e-3}


def training_set_map(plan: Plan, train: bool) -> float:
    """On a rank of the pool: train, then score the training pictures among themselves."""
    forget_deepspeed_groups()
    torch.set_num_threads(2)
    trainer = Trainer(plan, Place(0, 1, 0))
    if train:
        trainer.train(None)
    model = trainer.engine.module.model.eval()
    (data,) = plan.sets
    split = data.manifest.splits["train"]
    batches = evaluation_batches(data.folder, split, plan.recipe.data.image_size, 64, rank=0, world=1, workers=0)
    found: Extracted = extract(batches, {"model": model}, torch.device("cpu"), 64, None)["model"]
    return float(summarise(rank_queries(found.features, found.features, found.rows, "cosine"))["mAP"])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", list(EPOCHS))
def test_overfits_16_identities(ranks, tmp_path: Path, backbone: str):
    data = write_set(tmp_path / "data", identities=2 * IDENTITIES)
    flags = {
        "model.backbone": ("--backbone", backbone),
        "data.shards": ("--data", str(data)),
        "train.epochs": ("--epochs", str(EPOCHS[backbone])),
        "optim.lr": ("--lr", str(RATE[backbone])),
    }
    recipe = load_recipe("demo", flags, SETTINGS)
    untrained, trained = (
        prepare(recipe, find_recipe("demo"), tmp_path / name, False, 1, torch.device("cpu")) for name in ("untrained", "trained")
    )
    assert ranks.run(1, training_set_map, untrained, False, seconds=60)[0] < 0.5
    assert ranks.run(1, training_set_map, trained, True, seconds=900)[0] > 0.9
