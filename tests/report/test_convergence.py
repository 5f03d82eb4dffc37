"""Convergence and stability on logs whose numbers are known."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreid.report.convergence import WINDOW, epochs_to, loss_spikes, seconds_to_score, seconds_until
from vmreid.report.study import HEADINGS, as_markdown, as_page, lines, summarise
from vmreid.run_folder import RunFolder

EVALUATIONS = [{"epochs": 2, "step": 4, "mAP": 0.1}, {"epochs": 4, "step": 8, "mAP": 0.45}, {"epochs": 6, "step": 12, "mAP": 0.5}]


def log_of(losses: list[float]) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": loss, "grad_norm": 1.0, "images_per_s": 8.0, "peak_bytes": 2**30}
        for step, loss in enumerate(losses, 1)
    ]


def test_epochs_to_a_share_of_the_last() -> None:
    assert [epochs_to(share, EVALUATIONS) for share in (0.2, 0.5, 0.9, 0.95)] == [2, 4, 4, 6]
    assert epochs_to(0.5, []) is None


def test_spikes_are_counted_against_the_steps_before() -> None:
    calm = [2.0 + 0.01 * (step % 3) for step in range(200)]
    assert loss_spikes(calm) == 0
    wild = list(calm)
    wild[100] = wild[150] = 3.0
    assert loss_spikes(wild) == 2
    assert loss_spikes([9.0, *calm][:WINDOW]) == 0, "too short to tell"
    assert loss_spikes([3.0 + loss for loss in calm[:100]] + calm[100:]) == 0, "a fall is no spike of the steps before it"


def test_seconds_come_from_images_per_s() -> None:
    log = log_of([1.0] * 12)
    assert seconds_until(3, log, 16) == pytest.approx(6.0)
    assert seconds_to_score(0.45, EVALUATIONS, log, 16) == pytest.approx(16.0)
    assert seconds_to_score(0.6, EVALUATIONS, log, 16) is None


def run(folder: Path, name: str, score: float, losses: list[float], rate: str = "1e-4") -> RunFolder:
    """A finished run's files, as far as a summary reads them."""
    there = RunFolder(folder / name)
    there.path.mkdir()
    there.metrics_file.write_text(json.dumps({"mAP": score, "rank1": score / 2, "mINP": 0.1}))
    there.log_file.write_text("".join(json.dumps(entry) + "\n" for entry in log_of(losses)))
    there.evaluations_file.write_text("".join(json.dumps(each) + "\n" for each in EVALUATIONS))
    recipe = (Path(__file__).parents[2] / "vmreid/recipes/note.yaml").read_text()
    assert "lr: 1e-4" in recipe
    there.recipe_file.write_text(recipe.replace("lr: 1e-4", f"lr: {rate}"))
    return there


def test_seeds_of_a_name_are_one_line(tmp_path: Path) -> None:
    files = (("VIT-S-0", 0.3, 2.0), ("VIT-S-1", 0.5, 3.0), ("MAMBA-V2-0", 0.2, 1.0))
    folders = [run(tmp_path, name, score, [loss] * 12) for name, score, loss in files]
    summary = summarise(folders, ranks=2, all_runs=5)
    assert summary.goal == pytest.approx(0.2)
    table = {line[0]: dict(zip(HEADINGS, line, strict=True)) for line in lines(summary)}
    assert table["VIT-S"]["seeds"] == "2"
    assert table["VIT-S"]["mAP"] == "0.400 ± 0.141"
    assert table["VIT-S"]["last loss"] == "2.500 ± 0.707"
    assert table["VIT-S"]["epochs to 95%"] == "6.0 ± 0.0"
    assert table["MAMBA-V2"]["mAP"] == "0.200"
    assert table["MAMBA-V2"]["GPU-s"] == "48", "12 steps of 16 pictures at 8 a second, on two ranks"
    assert table["MAMBA-V2"]["GPU-s to the goal"] == "32"
    assert "2 runs of the study are not done yet." in as_markdown(summary)
    assert "may differ by chance" not in as_markdown(summary), "one name alone has several seeds"
    page = as_page(summary)
    assert page.count("<svg") == 3
    assert re.findall(r"<th>(.*?)</th>", page) == ["run", "MAMBA-V2", "VIT-S"], "a column a name, a line a quantity"
    assert "<td data-label='run'>mAP</td><td data-label='MAMBA-V2'>0.200</td><td data-label='VIT-S'>0.400" in page
    assert re.findall(r"<(?:script|link|img|iframe)|@import|url\((?!#)|(?:src|href)=['\"]?https?:", page) == []
    random.Random(0).shuffle(folders)
    assert sorted(lines(summarise(folders, 2, 5))) == sorted(lines(summary))


def test_what_seeds_alone_make_is_told(tmp_path: Path) -> None:
    scores = {"A": (0.30, 0.32, 0.34), "B": (0.50, 0.54, 0.58), "C": (0.4, 0.4)}
    folders = [
        run(tmp_path, f"{name}-{seed}", score, [1.0] * 12) for name, each in scores.items() for seed, score in enumerate(each)
    ]
    deviation = ((2 * 0.02**2 + 2 * 0.04**2) / 5) ** 0.5
    least = 2.570582 * deviation * (2 / 2) ** 0.5  # Student's t, 0.975, 5 degrees of freedom, from a printed table
    said = f"Two names of 2 seeds each whose mAP differs by less than {least:.3f} may differ by chance alone"
    assert said in as_markdown(summarise(folders, 1, 8))


def test_rates_that_are_lost_are_told(tmp_path: Path) -> None:
    scores = (("A-0", 0.5, "1e-4"), ("A-1", 0.3, "1e-4"), ("B-0", 0.6, "3e-4"), ("C-0", 0.1, "1e-2"))
    folders = [run(tmp_path, name, score, [1.0] * 12, rate) for name, score, rate in scores]
    assert summarise(folders[:2], 1, 2).rates == {}
    diverged = run(tmp_path, "D-0", 0.0, [], "1e-1")
    diverged.metrics_file.unlink()
    summary = summarise(folders, 1, 5, [diverged])
    assert summary.rates == {"A": {1e-4: pytest.approx(0.4), 3e-4: 0.6, 1e-2: 0.1, 1e-1: 0.0}}
    said = "2 of 4 are lost: 0.01, 0.1 (below half of the best mAP); the best is 0.0003."
    assert said in as_markdown(summary)
    assert said in as_page(summary)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_more_of_the_last_score_never_comes_earlier(scores: list[float]) -> None:
    evaluations = [{"epochs": epoch, "mAP": score} for epoch, score in enumerate(scores, 1)]
    reached = [epochs_to(share, evaluations) for share in (0.25, 0.5, 0.8, 0.95, 1.0)]
    assert reached == sorted(reached)
