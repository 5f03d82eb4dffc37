"""A model that grows: no jump, the same training on any number of ranks and at any ZeRO stage, resume in every phase."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import forget_deepspeed_groups, plan_run, read_json_lines, train_on_ranks, write_set

from vmreid.distributed import Place, rank, world_size
from vmreid.engine.growth import _parts, fill, phases_of
from vmreid.engine.prepare import Plan
from vmreid.engine.trainer import Trainer, build_model
from vmreid.errors import UserError
from vmreid.models import BACKBONES
from vmreid.run_folder import WEIGHTS

SCHEDULE = "model.depth_schedule=[[0,1],[2,2],[4,3]]"
GROWING = ["model.depth=null", SCHEDULE, "train.epochs=6", "optim.lr=0.001", "train.keep_checkpoints=6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data")  # an epoch is one step


def growing(out: Path, data: Path, config: str = "zero0_fp32", world: int = 1, resume: bool = False, **more: str) -> Plan:
    settings = [*GROWING, f"deepspeed_config={config}", *(f"{key.replace('__', '.')}={value}" for key, value in more.items())]
    return plan_run(out, data, settings, backbone="MAMBA-V2", world=world, resume=resume)


def kept(plan: Plan, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(plan.folder.checkpoints / f"step-{step:06d}" / WEIGHTS)


def features_before_and_after(plan: Plan) -> list[torch.Tensor]:
    """One rank. Of the same pictures, at the end of a phase and when the model has grown."""
    forget_deepspeed_groups()
    trainer = Trainer(plan, Place(rank(), world_size(), rank()))
    pictures = torch.randint(0, 255, (4, 3, *plan.recipe.data.image_size), dtype=torch.uint8)
    seen = []
    for _ in range(2):
        with torch.no_grad():
            seen.append(trainer.engine.module.model.features(pictures))
        trainer.step = 2
        trainer._grow_if_due()
    assert trainer.depth == 2
    return seen


@pytest.mark.parametrize(("config", "world"), [("zero0_fp32", 2), ("zero1_fp32", 2), ("zero2_fp32", 3), ("zero3_fp32", 2)])
def test_it_is_the_same_training_everywhere(ranks, data: Path, tmp_path: Path, config: str, world: int) -> None:
    """Against ZeRO-0 on one rank, whose optimizer is torch's own with a step count for each parameter."""
    plain, shared = growing(tmp_path / "plain", data), growing(tmp_path / "shared", data, config, world)
    expected = ranks.run(1, train_on_ranks, plain)[0]
    weights = ranks.run(world, train_on_ranks, shared)[0]
    losses = [[entry["loss"] for entry in read_json_lines(plan.folder.log_file)] for plan in (plain, shared)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert [entry["batch_digest"] for entry in read_json_lines(plain.folder.log_file)] == [
        entry["batch_digest"] for entry in read_json_lines(shared.folder.log_file)
    ]
    start = kept(plain, 1)
    way, apart = (
        sum(
            float((left[name] - right[name]).double().square().sum()) for name in left.keys() & right.keys() if "mean" not in name
        )
        for left, right in ((start, expected), (weights, expected))
    )
    assert apart < 1e-3 * way, "where a gradient is rounding alone, Adam moves a weight by it all the same"
    assert sum(name.endswith("A_log") for name in weights) == 3


def test_each_phase_has_its_blocks_and_no_more(ranks, data: Path, tmp_path: Path) -> None:
    plan = growing(tmp_path / "run", data, "zero1_fp32", 2, train__monitor_steps="1")
    ranks.run(2, train_on_ranks, plan)
    blocks = [sum(name.endswith("A_log") for name in kept(plan, step)) for step in range(1, 7)]
    assert blocks == [1, 1, 2, 2, 3, 3]
    assert [len(look["layers"]["gradient_norm"]) for look in plan.folder.monitors()] == blocks
    assert plan.folder.model_of(plan.folder.checkpoints / "step-000002").depth == 1


def test_nothing_jumps_when_blocks_come(ranks, data: Path, tmp_path: Path) -> None:
    before, after = ranks.run(1, features_before_and_after, growing(tmp_path / "run", data, "zero1_fp32"))[0]
    assert torch.equal(before, after)


def at_the_end_of_a_phase(plan: Plan) -> Trainer:
    """All ranks. The model is about to grow."""
    forget_deepspeed_groups()
    trainer = Trainer(plan, Place(rank(), world_size(), rank()))
    steps, trainer.steps = trainer.steps, 2
    trainer.train(None)
    trainer.steps = steps
    return trainer


def moments_before_and_after(plan: Plan) -> list[list[dict[str, torch.Tensor]]]:
    """All ranks. This rank's optimizer states at the end of a phase, and of the same parameters when the model has grown."""
    trainer = at_the_end_of_a_phase(plan)
    seen = [_moments(trainer)]
    trainer._grow_if_due()
    return [*seen, _moments(trainer)]


def _moments(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    flats, states = _parts(trainer.engine)
    return [{name: torch.as_tensor(value).clone() for name, value in states.get(flat, {}).items()} for flat in flats]


@pytest.mark.parametrize(("config", "world"), [("zero0_fp32", 1), ("zero1_fp32", 2), ("zero3_fp32", 2)])
def test_what_the_optimizer_knows_stays(ranks, data: Path, tmp_path: Path, config: str, world: int) -> None:
    for before, after in ranks.run(world, moments_before_and_after, growing(tmp_path / "run", data, config, world)):
        assert len(after) > len(before)
        for old, new in zip(before, after, strict=False):
            assert old.keys() == new.keys() >= {"exp_avg", "exp_avg_sq", "step"}
            assert all(torch.equal(old[name], new[name]) for name in old)
        assert any(old["exp_avg"].any() for old in before)
        assert not any(new.get("exp_avg", torch.zeros(1)).any() for new in after[len(before) :])


def left_of_a_phase(plan: Plan) -> list[str]:
    """All ranks. What of a phase's engine is in memory when the next one's is there."""
    trainer = at_the_end_of_a_phase(plan)
    parts = (trainer.engine, trainer.engine.module, *trainer.engine.module.parameters())
    seen = {id(part): (type(part).__name__, weakref.ref(part)) for part in parts}
    del parts
    trainer._grow_if_due()
    assert trainer.depth == 2
    return [name for name, part in seen.values() if part() is not None]


@pytest.mark.parametrize(("config", "world"), [("zero0_fp32", 1), ("zero1_fp32", 2), ("zero2_fp32", 2), ("zero3_fp32", 2)])
def test_nothing_is_left_of_the_phase_before(ranks, data: Path, tmp_path: Path, config: str, world: int) -> None:
    assert ranks.run(world, left_of_a_phase, growing(tmp_path / "run", data, config, world)) == [[]] * world


@pytest.mark.parametrize("backbone", ["VIT-S", "MAMBA-S", "MAMBA-V2", "VIM-T", "VMAMBA-T", "VMAMBA-T-V0"])
def test_a_new_block_of_every_family_is_the_identity(data: Path, tmp_path: Path, backbone: str) -> None:
    assert backbone in BACKBONES
    name = "VMAMBA-T" if "V0" in backbone else backbone
    settings = ["model.depth=null", "model.depth_schedule=[[0,1],[1,3]]", f"model.backbone={backbone}"]
    plan = plan_run(tmp_path / "run", data, settings, backbone=name)
    torch.manual_seed(0)
    shallow, _ = build_model(plan, 6, 1)
    deep, _ = build_model(plan, 6, 3)
    fill(deep, shallow.state_dict())
    pictures = torch.randint(0, 255, (2, 3, *plan.recipe.data.image_size), dtype=torch.uint8)
    assert len(deep.backbone.repeated_blocks()) == len(shallow.backbone.repeated_blocks()) + 2
    assert torch.equal(deep.features(pictures), shallow.features(pictures))
    phases = phases_of(plan.recipe, 3, "torch")
    assert {f"model.{key}" for key, _ in deep.named_parameters() if key.startswith("backbone.")} == phases.keys()
    new = {key for key, phase in phases.items() if phase == 1}
    assert new == {f"model.{key}" for key in deep.state_dict().keys() - shallow.state_dict().keys()}


def test_a_new_blocks_first_step_is_its_optimizers_first(ranks, data: Path, tmp_path: Path) -> None:
    """Adam's first step moves every weight that has a gradient by the rate, whatever the gradient's size."""
    plan = growing(tmp_path / "run", data, "zero1_fp32", 2, optim__weight_decay="0")
    ranks.run(2, train_on_ranks, plan)
    (entry,) = [entry for entry in read_json_lines(plan.folder.log_file) if entry["step"] == 3]
    moved = kept(plan, 3)["backbone.blocks.1.project_out.weight"].abs()  # from zero
    assert moved.median() == pytest.approx(entry["lr"], rel=1e-3)


@pytest.mark.parametrize(
    ("config", "crash"),
    [
        ("zero1_fp32", 2), ("zero3_fp32", 3), ("zero0_fp32", 4),
        *(
            pytest.param(config, crash, marks=pytest.mark.slow)
            for config in ("zero0_fp32", "zero1_fp32", "zero2_fp32", "zero3_fp32")
            for crash in range(1, 6)
        ),
    ],
)  # fmt: skip
def test_it_resumes_bit_for_bit_in_every_phase(ranks, data: Path, tmp_path: Path, config: str, crash: int) -> None:
    """Also where the newest checkpoint is the last of a phase (2, 4)."""
    expected = ranks.run(2, train_on_ranks, growing(tmp_path / "whole", data, config, 2))[0]
    ranks.run(2, train_on_ranks, growing(tmp_path / "broken", data, config, 2), crash)
    resumed = growing(tmp_path / "broken", data, config, 2, resume=True)
    weights = ranks.run(2, train_on_ranks, resumed)[0]
    assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)
    assert read_json_lines(tmp_path / "broken/log.jsonl") == read_json_lines(tmp_path / "whole/log.jsonl")


def test_it_goes_on_with_other_ranks(ranks, data: Path, tmp_path: Path) -> None:
    ranks.run(2, train_on_ranks, growing(tmp_path / "whole", data, "zero1_fp32", 2))
    for world, until in ((2, 2), (1, 3), (3, None)):
        plan = growing(tmp_path / "moving", data, "zero1_fp32", world, resume=world != 2)
        ranks.run(world, train_on_ranks, plan, until)
    losses = [[entry["loss"] for entry in read_json_lines(tmp_path / name / "log.jsonl")] for name in ("whole", "moving")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (["model.depth_schedule=[[1,4],[2,6]]"], "must begin at epoch 0 and grow in both"),
        (["model.depth_schedule=[[0,4],[2,4]]"], "must begin at epoch 0 and grow in both"),
        (["model.depth_schedule=[]"], "must begin at epoch 0"),
        (["model.depth_schedule=[[0,4]]", "model.depth=4"], "say the same thing; leave out one of the two"),
    ],
)
def test_what_is_no_schedule_is_refused(data: Path, tmp_path: Path, settings: list[str], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        plan_run(tmp_path / "run", data, ["model.depth=null", *settings], backbone="MAMBA-V2")
