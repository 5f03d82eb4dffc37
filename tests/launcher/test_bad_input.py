"""Bad input gives exit status 2 and one line with the value, the rule and the way out, before anything starts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tiny import set_words, write_set

from launcher import compare, evaluate, train
from vmreid.recipes import dump_recipe, load_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def json_file(text: str) -> str:
    Path("given.json").write_text(text)
    return "given.json"


WRONG_SETTINGS = {
    "backbone": (["--backbone", "MAMBA-V3"], "MAMBA-V3", "did you mean MAMBA-V2?"),
    "recipe": (["--recipe", "nota"], "nota", "did you mean note?"),
    "key": (["--set", "optim.lrr=1"], "optim.lrr", "did you mean lr?"),
    "rate in words": (["--lr", "banana"], "--lr banana", "number"),
    "negative rate": (["--lr", "-1"], "--lr -1", "greater than 0"),
    "epochs": (["--epochs", "1.5"], "--epochs 1.5", "integer"),
    "batch against K": (["--batch_size", "17"], "17", "multiple of data.pictures_per_identity"),
    "more identities than there are": (["--batch_size", "64"], "P = 16", "lower --batch_size"),
    "flag": (["--batchsize", "16"], "--batchsize", "did you mean --batch_size?"),
    "image size": (["--set", "data.image_size=[100, 64]"], "100", "multiple of model.patch"),
    "scan backend": (["--set", "model.scan_backend=mamba_ssm", "--backbone", "MAMBA-V2"], "mamba_ssm", "pip install"),
    "weights": (["--set", "model.weights=nowhere.pth"], "nowhere.pth", "no such file"),
    "heads for mamba": (["--backbone", "MAMBA-V2", "--set", "model.heads=3"], "model.heads 3", "leave it out"),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
def test_wrong_settings(call, data, case):
    words, value, way_out = WRONG_SETTINGS[case]
    status, printed, line = call(train.main, "--out", "run", "--recipe", "demo", "--data", data, *words)
    assert (status, printed) == (2, "")
    assert line.startswith("error: ")
    assert value in line
    assert way_out in line
    assert not Path("run").exists()


WRONG_JSON = {
    "absent": (lambda: "no.json", "no.json", "neither a file nor one of"),
    "broken": (lambda: json_file("{"), "given.json", "not readable as JSON"),
    "a list": (lambda: json_file("[]"), "given.json", "JSON object"),
    "batch size": (lambda: json_file('{"train_batch_size": 8}'), "given.json: train_batch_size", "recipes/demo.yaml"),
    "micro batch": (lambda: json_file('{"train_micro_batch_size_per_gpu": 8}'), "given.json", "recipes/demo.yaml"),
    "rate": (
        lambda: json_file('{"optimizer": {"type": "Adam", "params": {"lr": 1}}}'),
        "given.json: optimizer",
        "recipes/demo.yaml",
    ),
    "schedule": (lambda: json_file('{"scheduler": {}}'), "given.json: scheduler", "recipes/demo.yaml"),
    "stage": (lambda: json_file('{"zero_optimization": {"stage": 7}}'), "7", "0, 1, 2 or 3"),
    "clipping": (lambda: json_file('{"gradient_clipping": "much"}'), "much", "number"),
    "accumulation": (lambda: json_file('{"gradient_accumulation_steps": 3}'), "1 x 3", "--batch_size"),
    "bf16 at stage 0": (lambda: json_file('{"bf16": {"enabled": true}}'), "stage 0", "torch_autocast"),
    "fp16": (lambda: json_file('{"fp16": {"enabled": true}}'), "fp16", "torch_autocast"),
}


@pytest.mark.parametrize("case", WRONG_JSON)
def test_wrong_deepspeed_json(call, data, case):
    make, value, way_out = WRONG_JSON[case]
    words = ["--out", "run", "--recipe", "demo", "--data", data, "--deepspeed_config", make()]
    status, printed, line = call(train.main, *words)
    assert (status, printed) == (2, "")
    assert value in line
    assert way_out in line


def test_bf16_parameters_are_refused_for_mamba_with_the_reason(call, data):
    path = json_file('{"bf16": {"enabled": true}, "zero_optimization": {"stage": 2}}')
    words = ["--out", "run", "--recipe", "demo", "--data", data, "--backbone", "MAMBA-V2", "--deepspeed_config", path]
    status, _, line = call(train.main, *words)
    assert status == 2
    assert "A_log" in line
    assert "overflows" in line
    assert "torch_autocast" in line


def test_wrong_data(call, data, tmp_path):
    broken = tmp_path / "set"
    broken.mkdir()
    for message in ("no manifest.json", "format_version 99", "truncated"):
        if message != "no manifest.json":
            for path in data.iterdir():
                (broken / path.name).write_bytes(path.read_bytes())
        if "99" in message:
            fields = json.loads((broken / "manifest.json").read_text())
            (broken / "manifest.json").write_text(json.dumps({**fields, "format_version": 99}))
        if message == "truncated":
            shard = sorted(broken.glob("train-*.tar"))[0]
            shard.write_bytes(shard.read_bytes()[:-700])
        status, printed, line = call(train.main, "--out", "run", "--recipe", "demo", "--data", broken)
        assert (status, printed) == (2, "")
        assert message in line
        assert "shards.write" in line
    status, _, line = call(train.main, "--out", "run", "--recipe", "demo", "--data", "nowhere")
    assert status == 2
    assert "nowhere: no such folder" in line


def test_a_file_as_output_and_a_used_output(call, data):
    Path("file").write_text("")
    status, _, line = call(train.main, "--out", "file", "--recipe", "demo", "--data", data)
    assert (status, "file: is a file" in line) == (2, True)
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text("seed: 0\n")
    status, _, line = call(train.main, "--out", "run", "--recipe", "demo", "--data", data)
    assert (status, "--resume auto" in line) == (2, True)


def test_a_read_only_output(call, data, tmp_path):
    (tmp_path / "fixed").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", "fixed"], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a read-only folder needs root")
    try:
        status, _, line = call(train.main, "--out", "fixed/run", "--recipe", "demo", "--data", data)
    finally:
        subprocess.run(["umount", "fixed"], check=True)
    assert status == 2
    assert "fixed" in line
    assert "Read-only file system" in line


@pytest.mark.parametrize("main", [evaluate.main, compare.main])
def test_runs_that_are_none(call, main):
    def words(run: str) -> list[str]:
        return ["--run", run] if main is evaluate.main else [run, "--out", "report"]

    status, _, line = call(main, *words("nowhere"))
    assert (status, "nowhere: no such run" in line) == (2, True)
    Path("empty").mkdir()
    status, _, line = call(main, *words("empty"))
    assert (status, "it is no run" in line) == (2, True)


def test_a_run_that_saved_nothing_yet(call):
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(dump_recipe(load_recipe("demo", {}, [])))
    status, printed, line = call(evaluate.main, "--run", "run")
    assert (status, printed) == (2, "")
    assert line == "error: run: has no checkpoint yet; train on with python -m launcher.train --out run --resume auto"


def test_a_tracking_server_that_cannot_be(call, data, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://127.0.0.1:9")
    status, _, line = call(train.main, "--out", "run", "--recipe", "demo", "--data", data, *set_words("model.depth=1"))
    assert status == 2
    assert "htp://127.0.0.1:9" in line
    assert "set MLFLOW_TRACKING_URI to another (unset: sqlite" in line
