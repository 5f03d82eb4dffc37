"""Looks into the layers: right numbers, the right block named, and no bit of training touched."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny import BASE, SMALL, plan_run, read_json_lines, train_on_ranks, write_set

from vmreid.engine.layer_rules import layer_warnings
from vmreid.engine.looks import keep_looks_until
from vmreid.engine.scan_statistics import Scans, scan_statistics
from vmreid.kernels.reference import selective_scan_reference
from vmreid.kernels.watch import Scanned
from vmreid.recipes.schema import Train
from vmreid.run_folder import RunFolder

EPOCHS = ["train.epochs=3", "optim.lr=0.001"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data")


def scan_of(delta: float, rates: tuple[float, ...], length: int = 5) -> Scanned:
    """Two directions of three channels whose step size is ``delta`` everywhere."""
    generator = torch.Generator().manual_seed(0)
    before = math.log(math.expm1(delta))  # softplus gives delta
    return Scanned(
        torch.randn(2, 2, 3, length, generator=generator),
        torch.full((2, 2, 3, length), before - 0.5),
        -torch.tensor(rates).expand(2, 3, -1),
        torch.randn(2, 2, len(rates), length, generator=generator),
        torch.full((2, 3), 0.5),
    )


def test_statistics_of_a_scan_with_one_step_size() -> None:
    seen = {name: float(value) for name, value in scan_statistics(scan_of(0.05, (1.0, 2.0, 4.0))).items()}
    assert [seen[name] for name in ("delta_low", "delta_median", "delta_high")] == pytest.approx([0.05] * 3, rel=1e-5)
    assert (seen["delta_A_low"], seen["delta_A_high"]) == pytest.approx((0.05, 0.2), rel=1e-5)
    assert seen["decay"] == pytest.approx(math.exp(-0.05 * 2), rel=1e-5)
    assert seen["memory_tokens"] == pytest.approx(20, rel=1e-5)
    assert (seen["short_share"], seen["dead_share"], seen["alike_share"]) == (0, 0, 0)
    assert scan_statistics(scan_of(0.6, (1.0, 2.0)))["short_share"] == 1
    assert scan_statistics(scan_of(5e-5, (1.0, 2.0)))["dead_share"] == 1
    assert scan_statistics(scan_of(0.05, (3.0, 3.0)))["alike_share"] == 1
    assert scan_statistics(scan_of(0.05, (3.0,)))["alike_share"] == 0, "one state is like itself"


def test_scans_that_are_looked_at_together_are_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fit into what is looked at together; the last but one has another length."""
    monkeypatch.setattr("vmreid.engine.scan_statistics.TOGETHER", 2 * scan_of(0.1, (1.0, 2.0)).delta_BKDL.numel())
    scans = [scan_of(delta, (1.0, 1 + delta), length) for delta, length in ((0.1, 5), (0.5, 5), (5e-5, 5), (0.2, 3), (0.3, 5))]
    together = Scans()
    for scan in scans:
        together.add(scan)
    seen = together.statistics()
    assert [len(part) for part in seen["decay"]] == [2, 1, 1, 1]
    for name, parts in seen.items():
        alone = [float(scan_statistics(scan)[name]) for scan in scans]
        assert torch.cat(parts).tolist() == pytest.approx(alone, rel=1e-6), name


def test_the_last_states_are_the_scans_own() -> None:
    """A state read by C of one at the last token alone, state by state, from the plain reference."""
    scanned = scan_of(0.3, (1.0, 2.0), length=7)
    squares = []
    for state in range(2):
        C_BKNL = torch.zeros(2, 2, 2, 7)
        C_BKNL[:, :, state] = 1
        y_BDL = selective_scan_reference(
            scanned.u_BKDL.flatten(1, 2), scanned.delta_BKDL.flatten(1, 2), scanned.A_KDN.flatten(0, 1), scanned.B_BKNL, C_BKNL,
            torch.zeros(6), scanned.delta_bias_KD.flatten(),
        )  # fmt: skip
        squares.append(y_BDL[..., -1].square())
    expected = float(torch.cat(squares).mean().sqrt())
    assert float(scan_statistics(scanned)["state_rms"]) == pytest.approx(expected, rel=1e-5)


def test_rules_name_the_block_and_the_share() -> None:
    fine = {"short_share": [0.0, 0.2], "dead_share": [0.5, 0.0], "gradient_norm": [1.0, 2.0, 3.0], "update_share": [0.01] * 3}
    assert layer_warnings(fine) == {}
    bad = {"short_share": [0.0, 0.6], "gradient_norm": [1.0, 1e-4, 1.0], "update_share": [0.01, 0.01, 0.35]}
    assert sorted(layer_warnings(bad).values()) == [
        "block 2 forgets within 2 tokens in 60% of its channels",
        "block 2 gets hardly any gradient: 1.0e-04 of the median block's",
        "block 3: one step changes its weights by 35%",
    ]
    assert layer_warnings({"gradient_norm": [1.0, 1.0, 5e3]}).keys() == {"gradient_norm 3"}


@pytest.mark.parametrize(
    ("backbone", "config", "world"),
    [("MAMBA-V2", "zero1_fp32", 2), ("MAMBA-V2", "zero3_fp32", 2), ("VIT-S", "zero2_fp32", 2), ("VIM-T", "zero0_fp32", 1)],
)
def test_watching_changes_no_bit(ranks, data: Path, tmp_path: Path, backbone: str, config: str, world: int) -> None:
    weights, folders = [], []
    for name, every in (("blind", "null"), ("watched", "1")):
        settings = [*EPOCHS, f"deepspeed_config={config}", f"train.monitor_steps={every}"]
        plan = plan_run(tmp_path / name, data, settings, backbone=backbone, world=world)
        weights.append(ranks.run(world, train_on_ranks, plan)[0])
        folders.append(plan.folder)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])
    assert read_json_lines(folders[0].log_file) == read_json_lines(folders[1].log_file)
    assert folders[0].monitors() == []
    looks = folders[1].monitors()
    assert [look["step"] for look in looks] == [1, 2, 3]
    quantities = {"output_rms", "gradient_norm", "update_share"}
    if backbone != "VIT-S":
        quantities |= {"delta_median", "memory_tokens", "state_rms", "dead_share"}
    for look in looks:
        assert quantities <= look["layers"].keys()
        assert {len(values) for values in look["layers"].values()} == {2}, "one number a block"
        assert all(math.isfinite(value) for values in look["layers"].values() for value in values)
        assert min(look["layers"]["gradient_norm"]) > 0


def test_numbers_do_not_depend_on_ranks_and_stage(ranks, data: Path, tmp_path: Path) -> None:
    looks = []
    for config, world in (("zero0_fp32", 1), ("zero1_fp32", 2), ("zero2_fp32", 3), ("zero3_fp32", 2)):
        settings = ["train.epochs=1", f"deepspeed_config={config}", "optim.lr=0.001"]
        plan = plan_run(tmp_path / f"{config}-{world}", data, settings, backbone="MAMBA-V2", world=world)
        ranks.run(world, train_on_ranks, plan)
        (look,) = plan.folder.monitors()
        looks.append(look["layers"])
    for other in looks[1:]:
        for quantity, values in looks[0].items():
            assert other[quantity] == pytest.approx(values, rel=1e-3), quantity


def test_gradient_norms_are_those_of_the_logged_gradient(ranks, data: Path, tmp_path: Path) -> None:
    """A VIT's blocks have most of its parameters, so their norms make up most of the whole one, and never more."""
    plan = plan_run(tmp_path / "run", data, ["train.epochs=1", "deepspeed_config=zero1_fp32"])
    ranks.run(1, train_on_ranks, plan)
    (look,) = plan.folder.monitors()
    whole = read_json_lines(plan.folder.log_file)[0]["grad_norm"]
    assert 0.2 * whole < math.hypot(*look["layers"]["gradient_norm"]) < whole


def test_a_resume_goes_on_with_the_looks(ranks, data: Path, tmp_path: Path) -> None:
    settings = ["train.epochs=4", "deepspeed_config=zero1_fp32", "train.monitor_steps=1"]
    ranks.run(1, train_on_ranks, plan_run(tmp_path / "whole", data, settings))
    ranks.run(1, train_on_ranks, plan_run(tmp_path / "broken", data, settings), 2)
    folder = RunFolder(tmp_path / "broken")
    with folder.monitors_file.open("a") as file:
        file.write('{"step": 3, "layers": {}, "warnings": []}\n{"step": 4, "la')
    ranks.run(1, train_on_ranks, plan_run(tmp_path / "broken", data, settings, resume=True))
    assert folder.monitors() == RunFolder(tmp_path / "whole").monitors()


def test_lines_of_steps_to_come_go(tmp_path: Path) -> None:
    path = tmp_path / "monitors.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 101, 201)]
    path.write_text("".join(lines))
    keep_looks_until(path, 150)
    assert path.read_text() == "".join(lines[:2])


def test_the_default_looks_every_200_steps() -> None:
    assert Train.model_fields["monitor_steps"].default == 200
    assert not any("monitor" in setting for setting in (*BASE, *SMALL["VIT-S"]))
