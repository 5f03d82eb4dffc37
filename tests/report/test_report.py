"""The comparison: what it measures on things whose cost is known, and one set of numbers in JSON, markdown and page."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vmreid.errors import UserError
from vmreid.evaluation.query_scores import QueryScores
from vmreid.evaluation.uncertainty import paired
from vmreid.recipes import dump_recipe, load_recipe
from vmreid.recipes.schema import Model
from vmreid.report import rows
from vmreid.report.measure import LiveBytes, peak_bytes_per_picture
from vmreid.report.render import HEADINGS, PAIR_HEADINGS, as_markdown, as_page, as_text
from vmreid.report.rows import Comparison, compare_runs, gradient_tail, run_names
from vmreid.run_folder import RunFolder
from vmreid.timing import fitted_exponent

CPU = torch.device("cpu")
DIGEST = {"same": "a1b2c3d4e5f6" * 5, "other": "f6e5d4c3b2a1" * 5}


pytestmark = pytest.mark.usefixtures("one_thread")


def protocol(digest: str) -> dict[str, Any]:
    """A ledger, less what this module's tests do not need."""
    query = {"pictures": 6, "identities": 3, "cameras": 2, "invalid": 1}
    return {"metric": "cosine", "image_size": [64, 32], "data_digest": digest, "query": query, "world": 1, "commit": "abc"}


def write_run(
    folder: Path, backbone: str, mean_ap: float, digest: str = DIGEST["same"], steps: int = 12, **changes: Any
) -> RunFolder:
    """What training and evaluation leave behind, with chosen numbers; ``changes`` of the ledger."""
    folder.mkdir(parents=True)
    words = [f"model.backbone={backbone}", "model.dim=16", "model.depth=1"]
    words += ["model.d_state=2"] if backbone == "MAMBA-V2" else ["model.heads=2"]
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("demo", {}, [*words, "data.image_size=[64, 32]"])))
    log = [
        {"step": step, "epoch": 0, "loss": 9.0 - step / 2, "lr": 1e-4, "grad_norm": 1.0 + step, "images_per_s": 50.0 + step}
        for step in range(1, steps + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    scores = {"mAP": mean_ap, "rank1": mean_ap + 0.125, "mINP": mean_ap / 2}
    floors = {"untrained": 0.0625, "chance": 0.03125, "histogram": 0.25, "rgb_histogram": 0.125}
    metrics = {
        **scores,
        "baselines": {name: {"mAP": value, "rank1": value / 2, "mINP": value / 4} for name, value in floors.items()},
        "protocol": protocol(digest) | changes,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return RunFolder(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("runs")
    runs = [write_run(root / "vit", "VIT-S", 0.375), write_run(root / "mamba", "MAMBA-V2", 0.3125)]
    return compare_runs(runs, CPU)


def test_each_measured_run_is_told(tmp_path, capsys):
    compare_runs([write_run(tmp_path / "vit", "VIT-S", 0.375)], CPU)
    assert capsys.readouterr().err.splitlines() == ["measuring 1/1  vit"]


class Page(HTMLParser):
    """Table cells by line, texts of the warnings, and every address that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self.warnings: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.fetched += [str(given[key]) for key in ("src", "href", "xlink:href", "data", "action") if key in given]
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self._into = self.lines[-1]
        elif tag == "p" and given.get("class") == "warning":
            self._into = self.warnings
        if self._into is not None and tag in ("td", "th", "p"):
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "p"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


def markdown_lines(text: str) -> list[list[str]]:
    """Cells of a markdown table, the line below the headings left out."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace(r"\|", "|") for cell in line] for line in lines]
    return [line for line in cells if set(line) != {"---"}]


def test_the_gradient_tail_is_the_99th_percentile_over_the_median() -> None:
    assert gradient_tail([{"grad_norm": float(norm)} for norm in range(1, 101)]) == pytest.approx((99 + 0.01) / 50.5)
    assert gradient_tail([{"grad_norm": 3.0}] * 4) == pytest.approx(1)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_is_found(exponent: float) -> None:
    assert fitted_exponent({n: 3e-4 * n**exponent for n in (32, 128, 512)}) == pytest.approx(exponent)


def test_the_exponent_of_a_mixture_lies_between() -> None:
    assert 1 < fitted_exponent({n: 1e-3 * n + 1e-5 * n**2 for n in (32, 128, 512)}) < 2


def test_live_bytes_of_a_chain_of_which_two_tensors_live_at_once() -> None:
    x = torch.zeros(1000)
    with LiveBytes() as live:
        y = x + 1
        z = y * 2
        del y
        z = z + 1  # the old z dies after the new one is made
        assert live.now == 4000
    assert live.peak == 8000


def test_live_bytes_count_neither_views_nor_work_in_place_nor_what_was_there_before() -> None:
    x = torch.zeros(1000)
    with LiveBytes() as live:
        x.view(10, 100).t().mul_(2)
        assert live.peak == 0
        y = x.double()
        y.view(10, 100).t().mul_(2)
        y += 1
    assert live.peak == live.now == 8000


def test_live_bytes_of_a_backward_pass() -> None:
    """Two saved products of 4000 bytes and a third result, a sum of 4, its gradient of 4, and two gradients at once."""
    weight = nn.Parameter(torch.zeros(1000))
    with LiveBytes() as live:
        result = weight.exp().exp().exp()
        result.sum().backward()
    assert live.peak == 12_000 + 4 + 4 + 2 * 4000
    assert live.now == 8000  # the result and the parameter's gradient


def test_live_bytes_of_operators_with_several_results() -> None:
    with LiveBytes() as live:
        torch.zeros(1000).max(0)
    assert live.peak == 4000 + 4 + 8


@pytest.mark.parametrize("backbone", ["VIT-S", "MAMBA-S", "MAMBA-V2"])
def test_memory_a_picture_grows_with_the_picture_and_with_depth(backbone: str) -> None:
    def measured(size: tuple[int, int], depth: int = 1) -> float:
        heads = {} if backbone == "MAMBA-V2" else {"heads": 2}
        return peak_bytes_per_picture(Model(backbone=backbone, dim=32, depth=depth, **heads), size, "torch", CPU)

    small, large, deep = measured((64, 64)), measured((128, 128)), measured((64, 64), 3)
    tokens, more_tokens = 17 * 32 * 4, 65 * 32 * 4
    assert small > tokens
    assert small + more_tokens - tokens < large < 8 * small  # 4 times the tokens, beside the scan's work space, which stays
    assert deep > small + 2 * 3 * tokens  # a block keeps more than what comes in


def test_the_rows_hold_what_the_runs_say(two: Comparison) -> None:
    vit, mamba = two.rows
    assert (vit.name, vit.backbone, mamba.name, mamba.backbone) == ("vit", "VIT-S", "mamba", "MAMBA-V2")
    assert (vit.mAP, vit.rank1, vit.mINP, mamba.mAP) == (0.375, 0.5, 0.1875, 0.3125)
    assert (vit.steps, vit.final_loss, vit.nonfinite_steps) == (12, 3.0, 0)
    assert vit.images_per_s == 50 + 8  # the median of steps 4 to 12
    assert vit.gradient_tail == pytest.approx((13 - 0.11) / 7.5)
    assert vit.parameters == 3 * 256 * 16 + 16 + 16 + 9 * 16 + (12 * 16**2 + 13 * 16) + 2 * 16
    assert list(vit.seconds_by_tokens) == [32, 128, 512]
    assert min(*vit.seconds_by_tokens.values(), *mamba.seconds_by_tokens.values(), vit.bytes_per_picture) > 0
    assert vit.exponent == pytest.approx(fitted_exponent(vit.seconds_by_tokens))
    assert sorted(two.floors) == ["chance", "histogram", "rgb_histogram", "untrained mamba", "untrained vit"]
    assert two.warnings == []


def test_json_markdown_page_and_terminal_hold_the_same_numbers(two: Comparison) -> None:
    read = json.loads(json.dumps(two.as_json()))
    page, markdown, text = Page(as_page(two)).lines, markdown_lines(as_markdown(two)), as_text(two)
    assert page == markdown
    assert page[0] == list(HEADINGS)
    assert len(page) == 1 + 2 + 5
    for line, row in zip(page[1:3], read["rows"], strict=True):
        cells = dict(zip(HEADINGS, line, strict=True))
        assert cells["model"] == row["name"]
        assert float(cells["parameters"].removesuffix(" M")) == round(row["parameters"] / 1e6, 1)
        assert cells["complexity"] == f"O(n^{row['exponent']:.2f})"
        assert (float(cells["mAP"]), float(cells["Rank-1"])) == (round(row["mAP"], 3), round(row["rank1"], 3))
        assert float(cells["memory a picture"].removesuffix(" MiB")) == round(row["bytes_per_picture"] / 2**20, 1)
        assert float(cells["images/s"]) == row["images_per_s"]
        assert cells["stability"].startswith("0 non-finite")
        assert cells["stability"].endswith(f"{row['gradient_tail']:.1f}")
    for line in page[3:]:
        scores = read["floors"][line[0]]
        assert (float(line[3]), float(line[4])) == (round(scores["mAP"], 3), round(scores["rank1"], 3))
    terminal = [re.split(r"\s{2,}", line) for line in text.splitlines() if not line.startswith("-")]
    assert terminal == [[cell for cell in line if cell] for line in page]


def test_the_page_fetches_nothing(two: Comparison) -> None:
    text = as_page(two)
    page = Page(text)
    assert [address for address in page.fetched if not address.startswith("#")] == []
    assert {"script", "link", "img", "iframe"} & set(page.tags) == set()
    assert re.findall(r"@import|url\((?!#)", text) == []
    assert page.tags.count("svg") == 3


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is said of scores: timing a backbone takes three seconds a run."""
    monkeypatch.setattr(rows, "seconds_by_tokens", lambda *_: {32: 1.0, 128: 2.0, 512: 4.0})
    monkeypatch.setattr(rows, "peak_bytes_per_picture", lambda *_: 2.0**20)


@pytest.mark.usefixtures("quick")
def test_runs_of_other_protocols_are_marked_and_the_reason_is_told_everywhere(tmp_path: Path) -> None:
    """Run b has other data and size, c the first's protocol although another machine and commit made it."""
    other = {"image_size": [128, 64], "query": {"pictures": 7, "identities": 3, "cameras": 2, "invalid": 0}, "rerank": "k20"}
    runs = [
        write_run(tmp_path / "a", "VIT-S", 0.5),
        write_run(tmp_path / "b", "VIT-S", 0.25, DIGEST["other"], **other),
        write_run(tmp_path / "c", "VIT-S", 0.375, world=8, commit="def", weights_sha256="0" * 64),
    ]
    comparison = compare_runs(runs, CPU)
    assert [row.protocol for row in comparison.rows] == [1, 2, 1]
    (warning,) = comparison.warnings
    assert warning == (
        "protocol 2 (b) differs from protocol 1 (a, c), so their scores are not comparable: image_size 128x64 (1: 64x32); "
        "data_digest f6e5d4c3b2a1 (1: a1b2c3d4e5f6); query 7 pictures, 3 identities, 2 cameras, 0 invalid (1: 6 pictures, "
        "3 identities, 2 cameras, 1 invalid); rerank k20 (1: not stated)"
    )
    assert Page(as_page(comparison)).warnings == [warning]
    assert warning in as_markdown(comparison)
    assert warning in as_text(comparison)
    names = [line[0] for line in Page(as_page(comparison)).lines[1:]]
    assert names[:3] == ["a [protocol 1]", "b [protocol 2]", "c [protocol 1]"]
    floors = [f"{floor} [protocol {number}]" for floor in ("chance", "histogram", "rgb_histogram") for number in (1, 2)]
    assert sorted(names[3:]) == sorted([*floors, *(f"untrained {name}" for name in names[:3])])
    assert names == [line[0] for line in markdown_lines(as_markdown(comparison))[1:]]
    assert [re.split(r"\s{2,}", line)[0] for line in as_text(comparison).splitlines()[2 : 2 + len(names)]] == names
    read = json.loads(json.dumps(comparison.as_json()))
    assert [row["protocol"] for row in read["rows"]] == [1, 2, 1]
    assert [each["runs"] for each in read["protocols"]] == [["a", "c"], ["b"]]
    assert read["protocols"][1]["differs"]["image_size"] == [[64, 32], [128, 64]]
    assert read["protocols"][1]["differs"].keys() == {"data_digest", "image_size", "query", "rerank"}
    assert as_page(comparison).count("<tr class='model other'>") == 1


def add_queries(run: RunFolder, ap: list[float]) -> None:
    """What each of six queries of three identities scored, the last one invalid, and the intervals of the means."""
    first_rank = [0 if math.isnan(value) else 1 + (value < 0.5) for value in ap]
    numbers = {"camid": 0, "view": -1, "type": -1, "positives": 1}
    scores = QueryScores(
        pid=np.array([1, 1, 2, 2, 5, 5]), ap=np.array(ap), inp=np.array(ap) / 2, first_rank=np.array(first_rank),
        **{name: np.full(6, number) for name, number in numbers.items()},
    )  # fmt: skip
    content = scores.as_npz()
    run.queries_file.write_bytes(content)
    metrics = run.metrics()
    metrics["intervals"] = scores.intervals()
    metrics["protocol"]["per_query"] = {"file": "queries.npz", "sha256": hashlib.sha256(content).hexdigest()}
    run.metrics_file.write_text(json.dumps(metrics))


FIRST, SECOND = [0.5, 0.75, 0.25, 1.0, 0.5, math.nan], [0.25, 0.5, 0.5, 0.5, 0.25, math.nan]


@pytest.mark.usefixtures("quick")
def test_runs_of_one_protocol_are_tested_in_pairs_and_no_others(tmp_path: Path) -> None:
    """a and c share a protocol; b has another, d was evaluated before queries were kept."""
    runs = [write_run(tmp_path / name, "VIT-S", 0.5, DIGEST["other" if name == "b" else "same"]) for name in "abcd"]
    for run, ap in zip(runs, (FIRST, FIRST, SECOND), strict=False):
        add_queries(run, ap)
    comparison = compare_runs(runs, CPU)
    (pair,) = comparison.pairs
    wanted = paired(np.array([1, 1, 2, 2, 5, 5]), np.array(FIRST), np.array(SECOND))
    assert (pair.first, pair.second, pair.protocol, pair.mAP) == ("a", "c", 1, wanted)
    assert wanted.difference == pytest.approx(0.2)
    read = json.loads(json.dumps(comparison.as_json()))
    assert read["pairs"][0]["mAP"]["p"] == wanted.p
    cells = ["a − c", "+0.200", f"{wanted.interval[0]:+.3f} to {wanted.interval[1]:+.3f}", f"{wanted.p:.4f}", "3"]
    page, markdown = Page(as_page(comparison)).lines, markdown_lines(as_markdown(comparison))
    assert page == markdown
    assert page[-2:] == [list(PAIR_HEADINGS), cells]
    terminal = [re.split(r"\s{2,}", line) for line in as_text(comparison).splitlines()]
    assert cells in terminal
    low, high = read["rows"][0]["intervals"]["mAP"]
    assert [line[3] for line in page[1:5]][::3] == [f"0.500 [{low:.3f}, {high:.3f}]", "0.500"]
    assert low < 0.6 < high  # the mean of FIRST


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda path: path.unlink(), "missing, although metrics.json names it"),
        (lambda path: path.write_bytes(path.read_bytes() + b"0"), "is of another evaluation than metrics.json, or changed"),
    ],
)
def test_queries_of_another_evaluation_are_not_taken(tmp_path: Path, change: Callable[[Path], Any], fault: str) -> None:
    runs = [write_run(tmp_path / name, "VIT-S", 0.5) for name in "ab"]
    for run in runs:
        add_queries(run, FIRST)
    change(runs[1].queries_file)
    with pytest.raises(UserError, match=f"b/queries.npz: {fault}; evaluate the run again with python -m launcher.evaluate"):
        compare_runs(runs, CPU)


@pytest.mark.usefixtures("quick")
def test_odd_names_are_escaped(tmp_path: Path) -> None:
    name = "<img src=x onerror=y>&'\" a|b $x$ $\\frac$"
    comparison = compare_runs([write_run(tmp_path / name, "VIT-S", 0.5)], CPU)
    page = Page(as_page(comparison))
    assert page.lines[1][0] == name
    assert "img" not in page.tags
    assert markdown_lines(as_markdown(comparison))[1][0] == name


def test_more_runs_than_colours_are_all_drawn(two: Comparison) -> None:
    names = [f"run{number}" for number in range(7)]
    curves = dict.fromkeys(names, two.curves["vit"])
    seven = [type(two.rows[0])(**{**vars(two.rows[0]), "name": name}) for name in names]
    text = as_page(Comparison(seven, two.floors, two.protocols, [], two.setting, [], curves))
    assert [text.count(f"<!-- {name} -->") for name in names] == [2] * 7  # the legends of two figures name runs alone
    assert [text.count(f"<!-- {name}: n^") for name in names] == [1] * 7


def test_runs_are_named_by_the_shortest_ends_of_their_paths_that_differ(tmp_path: Path) -> None:
    def named(*paths: str) -> list[str]:
        return run_names([RunFolder(tmp_path / path) for path in paths])

    assert named("x/one", "x/two") == ["one", "two"]
    assert named("x/one", "y/one") == ["x/one", "y/one"]
    assert named("x/a/one", "y/a/one", "y/a/two") == ["x/a/one", "y/a/one", "y/a/two"]
    with pytest.raises(UserError, match=r"/x/one: given 2 times; name each run once$"):
        named("x/one", "y", "x/../x/one")


@pytest.mark.usefixtures("quick")
def test_a_short_run_still_has_a_rate(tmp_path: Path) -> None:
    (row,) = compare_runs([write_run(tmp_path / "short", "VIT-S", 0.5, steps=2)], CPU).rows
    assert row.images_per_s == 52


@pytest.mark.parametrize(("file", "way_out"), [("metrics.json", "launcher.evaluate"), ("log.jsonl", "launcher.train")])
def test_an_unfinished_run_is_a_clean_error(tmp_path: Path, file: str, way_out: str) -> None:
    run = write_run(tmp_path / "run", "VIT-S", 0.5)
    (run.path / file).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(file)}.*{re.escape(way_out)}") as caught:
        compare_runs([run], CPU)
    assert "\n" not in str(caught.value)


def test_numbers_that_must_be_seen_are_not_lost_by_json(two: Comparison) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(json.dumps(two.as_json()), parse_constant=refuse)
