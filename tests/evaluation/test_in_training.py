"""Evaluation during training: the scores of the separate pass, in the run folder and in MLflow, and none twice after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import SMALL, command_on_ranks, runs_of, set_words, write_set

SCORES = ("mAP", "mINP", "rank1", "rank5", "rank10")


@pytest.mark.parametrize("stage", ["zero1_fp32", pytest.param("zero3_fp32", marks=pytest.mark.slow)])
def test_scores_are_those_of_the_separate_pass(ranks, tmp_path: Path, stage: str) -> None:
    write_set(tmp_path / "data", identities=24)  # two steps an epoch
    settings = [*SMALL["VIT-S"], "evaluation.every_epochs=2", "evaluation.both_directions=true", "train.checkpoint_epochs=4"]
    words = ["--recipe", "demo", "--data", "data", "--out", "run", "--deepspeed_config", stage, *set_words(*settings)]
    printed = ranks.run(2, command_on_ranks, "launcher.train", [*words, "--epochs", "4"], tmp_path)[0]
    entries = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["epochs"]) for entry in entries] == [(4, 2), (8, 4)]
    assert f"after 4 epochs: mAP {entries[1]['mAP']:.3f}, Rank-1 {entries[1]['rank1']:.3f}" in printed
    checkpoints = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))
    assert checkpoints == ["step-000004", "step-000008"]
    ranks.run(2, command_on_ranks, "launcher.evaluate", ["--run", "run", "--checkpoint", *checkpoints], tmp_path)
    for entry, name in zip(entries, checkpoints, strict=True):
        metrics = json.loads((tmp_path / f"run/evaluations/{name}/data/metrics.json").read_text())
        for group, scores in (("", metrics), ("reverse/", metrics["reverse"]), ("mean/", metrics["mean"])):
            assert {key: entry[group + key] for key in SCORES} == {key: scores[key] for key in SCORES}
    (run,) = runs_of(tmp_path)
    assert run.data.metrics["mean/mAP"] == entries[1]["mean/mAP"]
    # thrown back to the first checkpoint, the second is judged once more, and its line stands once
    (tmp_path / "run/checkpoints/latest").write_text(checkpoints[0])
    ranks.run(2, command_on_ranks, "launcher.train", ["--out", "run", "--resume", "auto"], tmp_path)
    again = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert again == entries


def test_training_is_not_disturbed(ranks, tmp_path: Path) -> None:
    import safetensors.torch

    write_set(tmp_path / "data")
    weights = []
    for name, setting in (("plain", []), ("judged", ["evaluation.every_epochs=1"])):
        words = ["--recipe", "demo", "--data", "data", "--out", name, *set_words(*SMALL["VIT-S"], *setting), "--epochs", "3"]
        ranks.run(1, command_on_ranks, "launcher.train", words, tmp_path)
        weights.append(safetensors.torch.load_file(tmp_path / name / "checkpoints/step-000003/weights.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0] | weights[1])
