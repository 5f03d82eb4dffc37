"""The model benchmark: its numbers hang together, and the loops that it compares do the same training."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, command_on_ranks, differences, forget_deepspeed_groups

from launcher import benchmark
from vmreid.benchmarks.figures import covered
from vmreid.benchmarks.loops import LOOPS, Setup
from vmreid.benchmarks.model import ModelBenchmark
from vmreid.benchmarks.rows import Row
from vmreid.benchmarks.table import HEADINGS, as_text
from vmreid.distributed import place_from_environment, start_process_group, stop_process_group
from vmreid.engine.deepspeed_config import read_deepspeed_config
from vmreid.errors import UserError
from vmreid.kernels import choose_backend, fused, mamba_ssm_scan
from vmreid.models import ReIDModel
from vmreid.recipes import find_recipe, load_recipe
from vmreid.timing import fitted_exponent

NO_GRADIENT = "backbone.vit.norm.bias"  # BNNeck and the triplets see no shift of all features, so adamw walks by rounding noise
PARTS = ("forward_ms", "backward_ms", "optimizer_ms")
# as on a machine without matplotlib, which serves the report alone
COMMAND = "import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_module('launcher.benchmark', run_name='__main__')"


def measured(out: Path, *words: str) -> tuple[dict[str, Any], str]:
    """Run the command in a process of its own: its file and what it printed."""
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    command = [sys.executable, "-c", COMMAND, "model", *words, "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stdout


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    out = tmp_path_factory.mktemp("benchmark") / "vit.json"
    return measured(out, "--backbones", "VIT-T", "--tokens", "9", "33", "--batch_size", "4")


def test_each_loop_is_measured_at_each_number_of_tokens(vit):
    report, printed = vit
    cases = [(count, loop) for count in (9, 33) for loop in ("deepspeed", "plain", "timm")]
    assert [(row["tokens"], row["loop"]) for row in report["rows"]] == cases
    assert {(row["tokens"], *row["image_size"]) for row in report["rows"]} == {(9, 64, 32), (33, 128, 64)}
    lines = [line.split() for line in printed.splitlines()]
    for row in report["rows"]:
        assert ["VIT-T", str(row["tokens"]), row["loop"], f"{row['figures']['median_ms']:.1f}"] in [line[:4] for line in lines]


def test_the_figures_hang_together(vit):
    for row in vit[0]["rows"]:
        figures = row["figures"]
        assert figures["steps"] >= 5
        assert 0 < figures["min_ms"] <= figures["median_ms"] <= figures["max_ms"]
        assert figures["images_per_s"] == pytest.approx(4 / (figures["median_ms"] / 1e3))
        assert all(figures[part] > 0 for part in PARTS)
        # another pass than the timing's, on a machine that may be busy
        assert figures["min_ms"] / 3 < sum(figures[part] for part in PARTS) < figures["max_ms"] * 3
        assert [figures[key] for key in ("peak_bytes", "gpu_busy_ms", "gpu_busy_share", "kernels")] == [None] * 4


def test_growth_and_the_cost_of_deepspeed_follow_from_the_rows(vit):
    report = vit[0]
    figures = {(row["loop"], row["tokens"]): row["figures"] for row in report["rows"]}
    assert [one["loop"] for one in report["growth"]] == ["deepspeed", "plain", "timm"]
    for one in report["growth"]:
        medians = {count: figures[one["loop"], count]["median_ms"] for count in (9, 33)}
        assert one["time_exponent"] == pytest.approx(fitted_exponent(medians))
        assert one["memory_exponent"] is None
    assert [one["tokens"] for one in report["deepspeed_cost"]] == [9, 33]
    for one in report["deepspeed_cost"]:
        engine, plain = (figures[loop, one["tokens"]] for loop in ("deepspeed", "plain"))
        assert one["step_ms"] == pytest.approx(engine["median_ms"] - plain["median_ms"])
        assert [one[part] for part in PARTS] == pytest.approx([engine[part] - plain[part] for part in PARTS])


def test_the_setting_says_what_the_figures_hold_for(vit):
    setting = vit[0]["setting"]
    assert setting["batch_size"] == 4
    assert "--backbones VIT-T --tokens 9 33 --batch_size 4" in setting["command"]
    assert setting["versions"]["torch"] == torch.__version__
    assert {"deepspeed", "timm", "commit"} <= setting["versions"].keys()
    assert setting["deepspeed"] == json.loads(Path("ds_configs/zero1_bf16.json").read_text())
    blocks, patches, rest = 12 * (12 * 192**2 + 13 * 192), (3 * 16**2 + 1) * 192, (33 + 1 + 2) * 192
    assert setting["parameters"] == {"VIT-T": blocks + patches + rest}
    assert setting["scan_reason"]["VIT-T"].startswith(setting["scan_backend"]["VIT-T"])


def test_each_backbone_gets_the_scan_that_training_would_give_it(monkeypatch):
    monkeypatch.setattr(fused, "probe", lambda: (True, "NVRTC compiles"))
    monkeypatch.setattr(mamba_ssm_scan, "probe", lambda: (True, "mamba_ssm imports"))
    scans = ModelBenchmark(["VIT-S", "MAMBA-V2", "VIM-T"], [9], 4, [], torch.device("cuda")).scans
    assert {name: backend for name, (backend, _) in scans.items()} == {
        "VIT-S": "mamba_ssm",
        "MAMBA-V2": "fused",
        "VIM-T": "mamba_ssm",
    }


class PowerCut(Exception):
    """What ends a run that nobody wanted to end."""


def disturbed(folder: Path) -> tuple[dict[str, Any], int]:
    """One rank. 9 tokens are out of memory, 3 are measured by one loop, then it ends: its file, and models alive at once."""
    normalise, together, models = ReIDModel.normalise, [], []  # models: weak, so that they may go

    def normalise_or_fail(self: ReIDModel, image_BCHW: torch.Tensor) -> torch.Tensor:
        if not any(model() is self for model in models):
            models.append(weakref.ref(self))
            together.append(sum(model() is not None for model in models))
        if image_BCHW.shape[2] == 64:
            raise torch.OutOfMemoryError
        if len(together) == 4:
            raise PowerCut
        return normalise(self, image_BCHW)

    words = ["model", "--backbones", "MAMBA-S", "--tokens", "9", "3", "--batch_size", "4", "--out", "it.json"]
    ReIDModel.normalise = normalise_or_fail
    try:
        with contextlib.suppress(PowerCut):
            command_on_ranks("launcher.benchmark", words, folder)
    finally:
        ReIDModel.normalise = normalise
    return json.loads((folder / "it.json").read_text()), max(together)


def test_what_is_out_of_memory_is_said_and_what_an_ended_run_measured_is_kept(ranks, tmp_path):
    ((report, together),) = ranks.run(1, disturbed, tmp_path)
    outcomes = [(row["backbone"], row["tokens"], row["loop"], row["outcome"]) for row in report["rows"]]
    assert outcomes == [
        ("MAMBA-S", 9, "deepspeed", "out of memory"),
        ("MAMBA-S", 9, "plain", "out of memory"),
        ("MAMBA-S", 3, "deepspeed", "measured"),
    ]
    assert [row["figures"] is None for row in report["rows"]] == [True, True, False]
    assert report["growth"] == [{"backbone": "MAMBA-S", "loop": "deepspeed", "time_exponent": None, "memory_exponent": None}]
    assert report["deepspeed_cost"] == []
    assert together == 1, "a model was kept while the next was measured"


def trained(loop: str, settings: list[str], device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One rank. Parameters before and after two steps of a small model."""
    forget_deepspeed_groups()
    recipe = load_recipe("note", {}, [*settings, "data.image_size=[64, 32]"])
    _, deepspeed = read_deepspeed_config("zero1_fp32", find_recipe("note"))  # in bf16, on some CPUs too, rounding is not small
    torch.manual_seed(0)
    scan_backend, _ = choose_backend("auto", torch.device(device), maps=True)
    built = LOOPS[loop](Setup(recipe, deepspeed, scan_backend, torch.device(device)))

    def parameters() -> dict[str, torch.Tensor]:
        built.module.show_parameters()
        return {name: value.detach().clone() for name, value in built.module.model.named_parameters()}

    start = parameters()
    for _ in range(2):
        built.step()
    end = parameters()
    built.close()
    return start, end


@pytest.mark.parametrize("backbone", ["VIT-S", "MAMBA-V2"])
@pytest.mark.parametrize(
    ("optim", "rate", "tolerance"),
    [
        ("sgd", 1, 1e-3),
        ("adamw", 1e-3, 2e-2),  # it makes whole steps of gradients that are rounding noise, and hardly sees clipping
    ],
)
def test_with_and_without_deepspeed_the_same_is_trained(ranks, backbone, optim, rate, tolerance):
    settings = [*SMALL[backbone], f"model.backbone={backbone}", f"optim.name={optim}", f"optim.lr={rate}"]
    ((start, engine),), ((same_start, plain),) = (ranks.run(1, trained, loop, settings) for loop in ("deepspeed", "plain"))
    assert max(differences(start, same_start).values()) == 0
    moved = differences(start, engine)
    assert sum(move > 1e-5 for move in moved.values()) > 0.9 * len(moved), "the steps must move what is compared"
    for name, difference in differences(engine, plain).items():
        if name.endswith(NO_GRADIENT):
            continue
        assert difference <= tolerance * moved[name] + 1e-6, name


def left_when_closed(config: str) -> list[str]:
    """One rank. Shapes of a loop's parameters that are in memory when it is closed."""
    forget_deepspeed_groups()
    recipe = load_recipe("note", {}, [*SMALL["VIT-S"], "model.backbone=VIT-S", "data.image_size=[64, 32]"])
    _, deepspeed = read_deepspeed_config(config, find_recipe("note"))
    loop = LOOPS["deepspeed"](Setup(recipe, deepspeed, "torch", torch.device("cpu")))
    for _ in range(3):
        loop.step()
    parameters = [(str(tuple(each.shape)), weakref.ref(each)) for each in loop.module.parameters()]
    loop.close()
    del loop
    gc.collect()
    return [shape for shape, parameter in parameters if parameter() is not None]


@pytest.mark.parametrize("config", ["zero1_fp32", "zero3_fp32"])
def test_the_next_loops_memory_is_its_own(ranks, config):
    assert ranks.run(1, left_when_closed, config) == [[]]


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["VIT-S", "VMAMBA-T"])
def test_compiled_the_same_is_trained(backbone):
    settings = [*SMALL[backbone], f"model.backbone={backbone}", "optim.name=sgd", "optim.lr=1"]
    start_process_group(place_from_environment())
    try:
        (start, plain), (same_start, graph) = (trained(loop, settings, "cuda") for loop in ("plain", "plain compiled"))
    finally:
        stop_process_group()
    assert max(differences(start, same_start).values()) == 0
    moved = differences(start, plain)
    assert sum(move > 1e-5 for move in moved.values()) > 0.8 * len(moved), "the steps must move what is compared"
    for name, difference in differences(plain, graph).items():
        if name.endswith(NO_GRADIENT):
            continue
        assert difference <= 1e-2 * moved[name] + 1e-5, name


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(2, 5)], 3), ([(4, 6), (0, 1)], 3), ([(0, 4), (2, 6)], 6), ([(0, 9), (2, 3), (8, 10)], 10)],
)
def test_the_gpu_is_busy_once_where_kernels_overlap(spans, length):
    assert covered(spans) == length


def test_the_table_says_where_memory_ran_out():
    table = as_text([Row("VIT-S", 2049, (1024, 512), "plain", "out of memory", None)]).splitlines()
    assert table[0].split("  ")[0] == HEADINGS[0]
    assert table[2].split() == ["VIT-S", "2049", "plain", "out", "of", "memory"]


@pytest.mark.parametrize(
    ("words", "value", "way_out"),
    [
        (["--backbones", "VIT-T", "MAMBA-V3"], "MAMBA-V3", "did you mean MAMBA-V2?"),
        (["--tokens", "129", "130"], "--tokens 130", "the nearest is 129"),
        (["--tokens", "1"], "--tokens 1", "the nearest is 3"),
        (["--tokens", "many"], "'many'", "--help"),
        (["--batch_size", "66"], "--batch_size 66", "multiple of 4"),
        (["--batch_size", "0"], "--batch_size 0", "multiple of 4"),
        (["--against", "tim"], "--against tim", "are timm and vmamba=PATH"),
        (["--backbones", "MAMBA-S", "--against", "timm"], "none of MAMBA-S", "such as VIT-S"),
        (["--against", "vmamba=nowhere"], "none of VIT-S, MAMBA-S, MAMBA-V2", "such as VMAMBA-T"),
        (["--backbones", "VMAMBA-T", "--against", "vmamba=nowhere"], "vmamba=nowhere", "checkout of github.com/MzeroMiko/VMamba"),
        (["--backbones", "VMAMBA-T", "--against", "vmamba=a", "vmamba=b"], "vmamba=b", "give one"),
        (["--out", "missing/it.json"], "missing", "make it first"),
        (["--backbones", "VIT-S,width=3"], "model.width", "model has backbone, weights"),
        (["--deepspeed_config", "zero9"], "zero9", "zero1_bf16"),
        (["--compiled"], "train.compile true", "no GPU"),
        (["--token", "9"], "--token", "did you mean --tokens?"),
    ],
)
def test_wrong_words_are_one_line(call, monkeypatch, tmp_path, words, value, way_out):
    monkeypatch.chdir(tmp_path)
    status, printed, line = call(benchmark.main, "model", "--out", "it.json", *words)
    assert (status, printed) == (2, "")
    assert line.startswith("error: ")
    assert value in line
    assert way_out in line
    assert list(tmp_path.iterdir()) == []


def test_several_ranks_are_refused(ranks, tmp_path):
    with pytest.raises(UserError, match=r"2 ranks.*one process; start it by python -m launcher\.benchmark model"):
        ranks.run(2, command_on_ranks, "launcher.benchmark", ["model", "--out", "it.json"], tmp_path)
    assert not (tmp_path / "it.json").exists()


@pytest.mark.gpu
def test_on_a_gpu_memory_is_released_and_its_work_is_seen(tmp_path):
    words = ["--backbones", "VIT-B", "VIT-T", "MAMBA-V2", "--tokens", "129", "33", "--batch_size", "8"]
    report, _ = measured(tmp_path / "it.json", *words)
    assert report["setting"]["precision"] == "bf16 autocast"
    rows = {(row["backbone"], row["tokens"], row["loop"]): row["figures"] for row in report["rows"]}
    assert len(rows) == 16
    for figures in rows.values():
        assert figures["kernels"] > 100
        assert 0 < figures["gpu_busy_share"] < 1.1  # of another step than the profiled one
    weights_of_b = 4 * 85e6  # bytes that would still be there, had VIT-B not been released
    for loop in ("plain", "timm"):  # DeepSpeed's bucket for gradients alone is larger
        assert rows["VIT-B", 129, loop]["peak_bytes"] > 3 * weights_of_b
        assert rows["VIT-T", 33, loop]["peak_bytes"] < weights_of_b
        assert rows["VIT-T", 33, loop]["peak_bytes"] < rows["VIT-T", 129, loop]["peak_bytes"]
