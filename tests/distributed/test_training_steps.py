"""Steps do not depend on the number of ranks or the ZeRO stage, and a resumed run is the undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import differences, forget_deepspeed_groups, plan_run, read_json_lines, train_on_ranks, write_set

from vmreid.distributed import Place
from vmreid.engine.prepare import Plan
from vmreid.engine.trainer import Trainer
from vmreid.errors import UserError
from vmreid.run_folder import RunFolder

# A step sums gradients in another order for another number of ranks. In fp32 that changes a weight's step by less than
# this share of the largest step in its tensor, and rounds the weight itself (below 2) by at most ROUNDING. At its start
# MAMBA-V2 gives all pictures nearly the same feature, which BNNeck then spreads: the gradients of the tokens that all
# pictures share nearly cancel, and fp32 keeps two digits of them (in float64, mixing the batch moves them by 4e-11).
TOLERANCE = {"VIT-S": 2e-3, "MAMBA-S": 2e-3, "MAMBA-V2": 0.1, "VMAMBA-T": 2e-3, "VIM-T": 2e-3}
ROUNDING = 1e-6
SGD = ["optim.name=sgd", "optim.lr=1", "optim.weight_decay=0.01", "train.epochs=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data")


@pytest.mark.parametrize(
    ("backbone", "stage"),
    [
        *(("VIT-S", 0), ("VIT-S", 1), ("MAMBA-S", 1), ("MAMBA-V2", 1), ("VIT-S", 2)),
        *((name, 3) for name in ("VIT-S", "MAMBA-V2", "VMAMBA-T", "VIM-T")),
    ],
)
def test_one_step_is_the_same_on_1_2_and_3_ranks(ranks, data, tmp_path, backbone, stage):
    settings = [*SGD, f"deepspeed_config=zero{stage}_fp32"]
    plans = {world: plan_run(tmp_path / str(world), data, settings, backbone=backbone, world=world) for world in (1, 2, 3)}
    weights = {world: ranks.run(world, train_on_ranks, plan)[0] for world, plan in plans.items()}
    start = ranks.run(1, train_on_ranks, plan_run(tmp_path / "0", data, [*settings, "optim.lr=1e-30"], backbone=backbone))[0]
    moved = differences(start, weights[1])
    assert sum(move > 10 * ROUNDING for move in moved.values()) > 0.6 * len(moved), "the step must move what is compared"
    for world in (2, 3):
        for name, difference in differences(weights[1], weights[world]).items():
            assert difference <= TOLERANCE[backbone] * moved[name] + ROUNDING, name
        first, other = (read_json_lines(plans[w].folder.log_file)[0] for w in (1, world))
        assert first["batch_digest"] == other["batch_digest"]
        assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(first["grad_norm"], rel=TOLERANCE[backbone])


def test_accumulation_takes_the_mean_of_its_micro_batches(ranks, data, tmp_path):
    (tmp_path / "two.json").write_text(
        '{"zero_optimization": {"stage": 1}, "gradient_accumulation_steps": 2, "gradient_clipping": 0}'
    )
    plans = [plan_run(tmp_path / str(w), data, [*SGD, f"deepspeed_config={tmp_path / 'two.json'}"], world=w) for w in (1, 3)]
    one, three = (ranks.run(w, train_on_ranks, plan)[0] for w, plan in zip((1, 3), plans, strict=True))
    assert max(differences(one, three).values()) < 1e-5  # the steps reach 1 to 3; over seeds, rounding gave at most 4e-6


def identity_loss_by_hand(plan: Plan) -> float:
    """On a rank of the pool: cross entropy of the first batch with the targets (1 - s) one-hot + s / C, in float64."""
    forget_deepspeed_groups()
    trainer = Trainer(plan, Place(0, 1, 0))
    batch, model = next(trainer.stream.loader(0)), trainer.engine.module.model
    _, logits_BC = model.head(model.backbone(model.normalise(batch.images_BCHW)))
    log_share_BC = logits_BC.double().log_softmax(dim=1)
    own_B = log_share_BC[torch.arange(len(batch.ids_B)), batch.ids_B]
    smoothing = plan.recipe.loss.label_smoothing
    return -float(((1 - smoothing) * own_B + smoothing * log_share_BC.mean(dim=1)).mean())


@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_the_recipe_says_how_much_labels_are_smoothed(ranks, data, tmp_path, smoothing):
    plan = plan_run(tmp_path / "run", data, [*SGD, f"loss.label_smoothing={smoothing}", "deepspeed_config=zero1_fp32"])
    wanted = ranks.run(1, identity_loss_by_hand, plan)[0]
    ranks.run(1, train_on_ranks, plan)
    (entry,) = read_json_lines(plan.folder.log_file)
    assert entry["loss_identity"] == pytest.approx(wanted, rel=1e-5)
    assert entry["loss"] == pytest.approx(entry["loss_identity"] + entry["loss_triplet"], rel=1e-6)


@pytest.mark.parametrize("stage", [0, 1])
def test_clipping_comes_from_the_json(ranks, data, tmp_path, stage):
    moves = {}
    for clipping in (0.5, 0.25):
        path = tmp_path / f"{clipping}.json"
        path.write_text(f'{{"zero_optimization": {{"stage": {stage}}}, "gradient_clipping": {clipping}}}')
        settings = [*SGD, "optim.weight_decay=0", "optim.momentum=0", f"deepspeed_config={path}"]
        plan = plan_run(tmp_path / f"run{clipping}", data, settings)
        weights = ranks.run(1, train_on_ranks, plan)[0]
        start = ranks.run(1, train_on_ranks, plan_run(tmp_path / f"start{clipping}", data, [*settings, "optim.lr=1e-30"]))[0]
        trained = [name for name in weights if "running" not in name]
        moves[clipping] = sum(float((weights[name] - start[name]).square().sum()) for name in trained) ** 0.5
        assert read_json_lines(plan.folder.log_file)[0]["grad_norm"] > 0.5, "the test needs a gradient that is clipped"
    assert moves[0.5] == pytest.approx(0.5, rel=1e-3)
    assert moves[0.25] == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("backbone", "config", "world"), [("VIT-S", "zero1_fp32", 2), ("MAMBA-V2", "zero3_fp32", 2), ("MAMBA-S", "zero0_fp32", 1)]
)
def test_six_steps_equal_three_and_resume_and_three(ranks, data, tmp_path, backbone, config, world):
    settings = ["train.epochs=6", "optim.warmup_epochs=2", f"deepspeed_config={config}"]
    whole = plan_run(tmp_path / "whole", data, settings, backbone=backbone, world=world)
    expected = ranks.run(world, train_on_ranks, whole)[0]
    broken = plan_run(tmp_path / "broken", data, settings, backbone=backbone, world=world)
    ranks.run(world, train_on_ranks, broken, 3)
    assert (tmp_path / "broken/checkpoints/latest").read_text() == "step-000003\n"
    with (tmp_path / "broken/log.jsonl").open("a") as log:  # a step after the checkpoint, lost in the crash
        log.write('{"step": 4, "loss": 99}\n')
    resumed = plan_run(tmp_path / "broken", data, settings, backbone=backbone, world=world, resume=True)
    weights = ranks.run(world, train_on_ranks, resumed)[0]
    assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)
    assert read_json_lines(tmp_path / "broken/log.jsonl") == read_json_lines(tmp_path / "whole/log.jsonl")
    saved = safetensors.torch.load_file(tmp_path / "broken/checkpoints/step-000006/weights.safetensors")
    assert all(torch.equal(saved[name], weights[name]) for name in saved | weights)
    assert sorted(path.name for path in (tmp_path / "broken/checkpoints").glob("step-*")) == ["step-000005", "step-000006"]


def test_what_does_not_fit_a_resume_is_refused(ranks, data, tmp_path):
    settings = ["train.epochs=2", "deepspeed_config=zero1_fp32"]
    ranks.run(1, train_on_ranks, plan_run(tmp_path / "run", data, settings))
    for changed, message in (
        (["optim.lr=5e-4"], "optim.lr = 0.0003, now it is 0.0005"),
        (["model.depth=3"], "model.depth = 2, now it is 3"),
        (["deepspeed_config=zero2_fp32"], "differs from --deepspeed_config"),
    ):
        with pytest.raises(UserError, match=message):
            plan_run(tmp_path / "run", data, [*settings, *changed], resume=True)
    with pytest.raises(UserError, match="holds a run already"):
        plan_run(tmp_path / "run", data, settings)
    other = write_set(tmp_path / "other", identities=14)
    with pytest.raises(UserError, match="trained on data"):
        ranks.run(1, train_on_ranks, plan_run(tmp_path / "run", other, settings, resume=True))


def test_a_non_finite_value_stops_all_ranks_before_the_step(ranks, data, tmp_path):
    settings = ["train.epochs=3", "optim.lr=1e30", "optim.name=sgd", "deepspeed_config=zero1_fp32"]
    with pytest.raises(UserError, match=r"step 2: non-finite value, first in .*(backbone|head)") as caught:
        ranks.run(2, train_on_ranks, plan_run(tmp_path / "run", data, settings, world=2))
    assert "the last checkpoint is kept" in str(caught.value)
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-000001\n"
    (stop,) = RunFolder(tmp_path / "run").non_finite()  # what launcher.compare counts
    assert stop["step"] == 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_parameters_train_a_vit(ranks, data, tmp_path, stage):
    (tmp_path / "bf16.json").write_text(
        f'{{"zero_optimization": {{"stage": {stage}}}, "bf16": {{"enabled": true}}, "gradient_clipping": 1.0}}'
    )
    settings = ["train.epochs=6", "optim.lr=1e-3", "model.depth=1"]
    bf16 = plan_run(tmp_path / "bf16", data, [*settings, f"deepspeed_config={tmp_path / 'bf16.json'}"], world=2)
    fp32 = plan_run(tmp_path / "fp32", data, [*settings, f"deepspeed_config=zero{stage}_fp32"], world=2)
    for plan in (bf16, fp32):
        ranks.run(2, train_on_ranks, plan)
    losses = [[entry["loss"] for entry in read_json_lines(plan.folder.log_file)] for plan in (bf16, fp32)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0][-1] < losses[0][0]
