"""A study, by its command: what is missing is made and nothing else, and an early end goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import BASE, SMALL, read_json_lines, write_set

from launcher import study
from vmreid.command import TO_GO_ON
from vmreid.errors import UserError
from vmreid.run_folder import WEIGHTS, RunFolder
from vmreid.study.file import read_study, runs_of
from vmreid.study.missing import Missing, missing_of

SHARED = [*BASE, "train.epochs=2", "evaluation.every_epochs=1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write_set(tmp_path / "data")
    return tmp_path


def write_study(folder: Path, seeds: str = "[0]", more: str = "", shared: list[str] = SHARED) -> Path:
    quoted = ", ".join(f"'{setting}'" for setting in shared)
    own = ", ".join(SMALL["VIT-S"])
    path = folder / "study.yaml"
    path.write_text(
        f"recipe: demo\ndata: data\ndeepspeed_config: zero1_fp32\nseeds: {seeds}\nset: [{quoted}]\n"
        f"runs:\n  VIT-S: {{backbone: VIT-S, set: [{own}]}}\n{more}"
    )
    return path


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}


def test_what_is_missing_is_made_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(folder)
    path.write_text(path.read_text().replace("data: data\n", ""))
    words = [str(path), "--out", "out", "--data", "data"]
    assert study.main(words) == 0
    said = capsys.readouterr().out
    assert "VIT-S-0: training took" in said
    assert "1 of 1 runs are done" in said
    summary = (folder / "out/report/study.md").read_text()
    assert f"| VIT-S | 1 | {RunFolder(folder / 'out/VIT-S-0').metrics()['mAP']:.3f} |" in summary
    before = times(folder)
    assert study.main(words) == 0
    assert "training" not in capsys.readouterr().out
    assert times(folder) == before

    (folder / "out/VIT-S-0/metrics.json").unlink()
    assert study.main(words) == 0
    said = capsys.readouterr().out
    assert "VIT-S-0: evaluation took" in said
    assert "VIT-S-0: training" not in said

    write_study(folder, shared=[*SHARED, "optim.lr=0.5"])
    with pytest.raises(UserError, match=r"VIT-S-0: was trained with optim\.lr = .*, now it is 0\.5"):
        study.main(words)


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "  bad: {backbone: VIT-S, set: [model.dim=48, model.depth=2, model.heads=3, optim.lr=1e30, optim.name=sgd]}\n"
    shared = [setting for setting in SHARED if "every" not in setting]
    words = [str(write_study(folder, more=bad, shared=shared)), "--out", "out"]
    assert study.main(words) == 1
    said = capsys.readouterr().out
    assert "failed: bad-0: training ended with status 2: " in said
    assert "non-finite value, first in " in said
    assert "1 of 2 runs are done" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_it_and_the_same_command_goes_on(folder: Path, number: signal.Signals) -> None:
    shared = [*BASE, "train.epochs=300", "train.checkpoint_epochs=300"]
    path = write_study(folder, seeds="[0, 1]", shared=shared)
    ranks = path.read_text().replace("recipe: demo", "ranks: 2\nrecipe: demo")
    path.write_text(ranks)
    command = [sys.executable, "-m", "launcher.study", str(path), "--out", "out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log, end = folder / "out/VIT-S-0/log.jsonl", time.monotonic() + 120
    while not log.is_file() or len(log.read_text().splitlines()) < 20:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == TO_GO_ON, said
    assert f"{number.name}: 0 of 2 runs are done; go on with " in said
    assert 20 <= len(log.read_text().splitlines()) < 300
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300).returncode == 0
    path.write_text(ranks.replace("[0, 1]", "[0]"))
    subprocess.run([*command[:-1], "whole"], check=True, timeout=300, stdout=subprocess.PIPE)
    expected, weights = (
        safetensors.torch.load_file(RunFolder(folder / out / "VIT-S-0").checkpoint(None) / WEIGHTS) for out in ("whole", "out")
    )
    assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)
    assert read_json_lines(folder / "whole/VIT-S-0/log.jsonl") == read_json_lines(log)


def test_no_piece_begins_when_the_time_is_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(write_study(folder)), "--out", "out", "--seconds", "1"]
    assert study.main(words) == TO_GO_ON
    assert "the time given is up: 0 of 1 runs are done; go on with python -m launcher.study " in capsys.readouterr().out
    assert not (folder / "out/VIT-S-0").exists()


def test_a_piece_that_does_nothing_and_says_that_all_is_well_is_begun_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    class Idle:
        def __init__(self, module: str, words: list[str], ranks: int, log: Path) -> None:
            begun.append(module)
            log.write_text("nothing to do\n")
            assert len(begun) < 5, "it begins again and again"

        def code(self) -> int:
            return 0

    monkeypatch.setattr("vmreid.study.pieces.Ranks", Idle)
    assert study.main([str(write_study(folder)), "--out", "out"]) == 1
    assert begun == ["launcher.train"]
    assert "failed: VIT-S-0: training ended with status 0: nothing to do" in capsys.readouterr().out


def test_seeds_come_one_after_the_other(folder: Path) -> None:
    path = write_study(folder, seeds="[0, 7]", more="  V2: {backbone: MAMBA-V2, seeds: [1, 2, 3], data: other}\n")
    runs = runs_of(read_study(path))
    assert [run.folder for run in runs] == ["VIT-S-0", "V2-1", "VIT-S-7", "V2-2", "V2-3"]
    assert runs[1].flags["data.shards"] == ("--data", "other")
    assert runs[2].resolved().seed == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runs: {}", r"runs = \{\}: must be"),
        ("sets: [a]\nruns: {A: {backbone: VIT-S}}", r"unknown key sets; known are .*; did you mean set\?"),
        ("runs: {A: {backbone: VIT-S, rate: 1}}", "unknown key runs.A.rate; known are backbone, "),
        ("runs: {A: {}}", "runs.A.backbone is missing"),
        ("runs: {a/b: {backbone: VIT-S}}", r"runs\.a/b: a name has letters, digits"),
        ("seeds: []\nruns: {A: {backbone: VIT-S}}", r"seeds = \[\]: must be"),
        ("runs: [", "not readable as YAML"),
    ],
)
def test_a_study_that_is_none_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_study(path)


def test_the_notes_study_can_be_trained(folder: Path) -> None:
    write_set(folder / "larger", identities=48)
    given = read_study(Path(__file__).parents[2] / "studies/note.yaml").model_copy(update={"data": "larger"})
    runs = runs_of(given)
    assert len(runs) == 60
    for run in runs[:20]:
        assert missing_of(run, folder / "out", 1, torch.device("cpu")) is Missing.TRAINING
    changed = {str(run.resolved().model_dump(exclude={"seed"})) for run in runs}
    assert len(changed) == 20, "each asks something of its own"


def test_without_data_it_says_where_to_name_it(folder: Path) -> None:
    path = write_study(folder)
    path.write_text(path.read_text().replace("data: data\n", ""))
    with pytest.raises(
        UserError, match="VIT-S-0: no data; give a folder of shards by --data, or name it at the top of the study"
    ):
        study.main([str(path), "--out", "out"])
