"""A study over its seeds: accuracy, convergence, stability, memory, speed, each as mean ± standard deviation."""

from __future__ import annotations

import html
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from matplotlib import pyplot as plt

from vmreid.report.convergence import SHARES, epochs_to, loss_spikes, seconds_to_score, seconds_until
from vmreid.report.render import COLOURS, as_svg, html_page, html_table, plain
from vmreid.report.rows import gradient_tail, images_per_s
from vmreid.report.seeds import half_interval, pooled_deviation
from vmreid.run_folder import RunFolder
from vmreid.text_table import markdown

LOST = 0.5  # of the best rate's mAP: a rate below is lost
PARETO = (("images_per_s", "images/s in training"), ("peak_gib", "peak GiB of a rank"), ("gpu_s", "GPU-seconds of training"))


@dataclass(frozen=True)
class Outcome:
    """One run. Scores as fractions; ``gpu_s``: of training, times its ranks; ``gpu_s_to_goal``: until the study's goal."""

    run: str
    command: str
    mAP: float
    rank1: float
    mINP: float
    loss: float
    images_per_s: float
    peak_gib: float
    gpu_s: float
    epochs_to: dict[str, int | None]
    spikes_per_1000: float
    gradient_tail: float
    non_finite: int
    gpu_s_to_goal: float | None


@dataclass(frozen=True)
class Summary:
    """Outcomes by name, each a seed. ``goal``: the lowest mean mAP of a name. ``rates``: mean mAP by rate, of names that differ
    in nothing else, under the first of them."""

    outcomes: dict[str, list[Outcome]]
    goal: float
    missing: int
    rates: dict[str, dict[float, float]]


def summarise(folders: Sequence[RunFolder], ranks: int, all_runs: int, diverged: Sequence[RunFolder] = ()) -> Summary:
    """Of evaluated runs, whose folders are called NAME-SEED. ``ranks`` each; ``all_runs``: how many the study lists;
    ``diverged``: those that a value which is not finite has ended, which count as an mAP of 0 where rates are compared."""
    by_name: dict[str, list[RunFolder]] = {}
    for folder in sorted(folders, key=lambda each: each.path.name):
        by_name.setdefault(_name(folder), []).append(folder)
    goal = min(statistics.fmean(each.metrics()["mAP"] for each in of_name) for of_name in by_name.values())
    outcomes = {name: [_outcome(each, goal, ranks) for each in of_name] for name, of_name in by_name.items()}
    scores = [(folder, folder.metrics()["mAP"]) for folder in folders] + [(folder, 0.0) for folder in diverged]
    return Summary(outcomes, goal, all_runs - len(folders), _scores_by_rate(scores))


def _name(folder: RunFolder) -> str:
    return folder.path.name.rpartition("-")[0]


def _scores_by_rate(scores: Sequence[tuple[RunFolder, float]]) -> dict[str, dict[float, float]]:
    """Only where there are several rates."""
    alike: dict[str, tuple[str, dict[float, list[float]]]] = {}
    for folder, score in sorted(scores, key=lambda each: each[0].path.name):
        recipe = folder.recipe()
        optim = recipe.optim.model_copy(update={"lr": 1.0})
        key = recipe.model_copy(update={"seed": 0, "optim": optim}).model_dump_json()
        alike.setdefault(key, (_name(folder), {}))[1].setdefault(recipe.optim.lr, []).append(score)
    return {
        name: {rate: statistics.fmean(by_rate[rate]) for rate in sorted(by_rate)}
        for name, by_rate in alike.values()
        if len(by_rate) > 1
    }


def _outcome(folder: RunFolder, goal: float, ranks: int) -> Outcome:
    metrics, log, evaluations = folder.metrics(), folder.log(), folder.evaluations()
    batch = folder.recipe().train.batch_size
    to_goal = seconds_to_score(goal, evaluations, log, batch)
    return Outcome(
        run=str(folder.path),
        command=f"python -m launcher.train --recipe {folder.recipe_file} --out OTHER",
        mAP=metrics["mAP"],
        rank1=metrics["rank1"],
        mINP=metrics["mINP"],
        loss=log[-1]["loss"],
        images_per_s=images_per_s(log),
        peak_gib=max(entry["peak_bytes"] for entry in log) / 2**30,
        gpu_s=ranks * seconds_until(len(log), log, batch),
        epochs_to={f"{share:.0%}": epochs_to(share, evaluations) for share in SHARES},
        spikes_per_1000=1000 * loss_spikes([entry["loss"] for entry in log]) / len(log),
        gradient_tail=gradient_tail(log),
        non_finite=len(folder.non_finite()),
        gpu_s_to_goal=None if to_goal is None else ranks * to_goal,
    )


COLUMNS: tuple[tuple[str, Callable[[Outcome], float | None], str], ...] = (
    ("mAP", lambda run: run.mAP, ".3f"),
    ("Rank-1", lambda run: run.rank1, ".3f"),
    ("mINP", lambda run: run.mINP, ".3f"),
    ("last loss", lambda run: run.loss, ".3f"),
    *((f"epochs to {share:.0%}", lambda run, key=f"{share:.0%}": run.epochs_to[key], ".1f") for share in SHARES),
    ("spikes in 1000 steps", lambda run: run.spikes_per_1000, ".1f"),
    ("p99/median |g|", lambda run: run.gradient_tail, ".1f"),
    ("non-finite stops", lambda run: run.non_finite, ".1f"),
    ("images/s", lambda run: run.images_per_s, ".1f"),
    ("peak GiB", lambda run: run.peak_gib, ".2f"),
    ("GPU-s", lambda run: run.gpu_s, ".3g"),
    ("GPU-s to the goal", lambda run: run.gpu_s_to_goal, ".3g"),
)  # fmt: skip
HEADINGS = ("run", "seeds", *(name for name, _, _ in COLUMNS))


def lines(summary: Summary) -> list[tuple[str, ...]]:
    """One a name; a column without a value for every seed is empty."""
    return [
        (name, str(len(runs)), *(_mean_and_spread([value(run) for run in runs], form) for _, value, form in COLUMNS))
        for name, runs in summary.outcomes.items()
    ]


def _mean_and_spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean = f"{statistics.fmean(known):{form}}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):{form}}"


def notes(summary: Summary) -> list[str]:
    """What the columns are."""
    return [
        "Mean ± standard deviation over seeds; intervals over queries, and paired tests, are in report.md beside this file.",
        "Epochs to a share of the last evaluation's mAP: by evaluations in training (evaluation.every_epochs); else empty.",
        "Spikes: steps whose loss is more than 6 median absolute deviations above the median of the 50 before.",
        f"GPU-s: seconds of all steps times ranks; to the goal: until an evaluation in training had mAP "
        f"{summary.goal:.3f}, the lowest mean of a name; empty where a seed had none.",
        *_seeds_in_words(summary.outcomes),
        *(_rates_in_words(name, scores) for name, scores in summary.rates.items()),
        *([f"{summary.missing} runs of the study are not done yet."] if summary.missing else []),
    ]


def _seeds_in_words(outcomes: dict[str, list[Outcome]]) -> list[str]:
    """What difference of two names' means is more than their seeds make, by one standard deviation for all names."""
    groups = [[run.mAP for run in runs] for runs in outcomes.values() if len(runs) > 1]
    if len(groups) < 2:
        return []
    seeds, (deviation, freedom) = min(map(len, groups)), pooled_deviation(groups)
    least = half_interval(deviation, freedom, seeds, seeds)
    return [
        f"Two names of {seeds} seeds each whose mAP differs by less than {least:.3f} may differ by chance alone: 95 % of "
        f"Student's t with the standard deviation {deviation:.3f} of all names' seeds, {freedom} degrees of freedom. Of many "
        "pairs, one in twenty exceeds it."
    ]


def _rates_in_words(name: str, scores: dict[float, float]) -> str:
    lost = [f"{rate:g}" for rate, score in scores.items() if score < LOST * max(scores.values())]
    best = max(scores, key=scores.__getitem__)
    names = f": {', '.join(lost)}" if lost else ""
    return (
        f"Rates, {name} and what differs in nothing else: {len(lost)} of {len(scores)} are lost{names} (below half of the best "
        f"mAP); the best is {best:g}."
    )


def as_json(summary: Summary) -> str:
    """All numbers, with each run's folder and command."""
    return json.dumps(asdict(summary), indent=1) + "\n"


def as_markdown(summary: Summary) -> str:
    """Table, notes, runs."""
    runs = [f"- `{run.run}`: `{run.command}`" for each in summary.outcomes.values() for run in each]
    table = markdown(HEADINGS, lines(summary))
    return "\n".join(["# Study", "", table, "", *(f"- {note}" for note in notes(summary)), "", "## Runs", "", *runs, ""])


def as_page(summary: Summary) -> str:
    """One HTML file without outside parts. A line a quantity: so many columns would not fit on a screen."""
    heads, *found = zip(HEADINGS, *lines(summary), strict=True)
    whole = [tuple(cell.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}") for cell in line) for line in found]
    figures = "".join(f"<figure>{_pareto(summary, key, label)}</figure>" for key, label in PARETO)
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes(summary))
    runs = "".join(f"<li>{_link(run)}</li>" for each in summary.outcomes.values() for run in each)
    return html_page(
        "Study: " + ", ".join(summary.outcomes),
        f"{html_table(heads, whole, ['model'] * len(whole))}<section class=figures>{figures}</section>"
        f"<p>Intervals over queries, pairs and curves: <a href=report.html>report.html</a></p>"
        f"<h2>How to read it</h2><ul>{items}</ul><h2>Runs</h2><ul>{runs}</ul>",
    )


def _link(run: Outcome) -> str:
    folder, command = html.escape(run.run), html.escape(run.command)
    return f"<a href='../{folder.rpartition('/')[2]}/'>{folder}</a>: <code>{command}</code>"


def _pareto(summary: Summary, key: str, label: str) -> str:
    """mAP over a cost: a point a seed, a ring around the mean."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for colour, (name, runs) in zip(itertools.cycle(COLOURS), summary.outcomes.items(), strict=False):
        costs, scores = [getattr(run, key) for run in runs], [run.mAP for run in runs]
        axes.plot(costs, scores, "o", color=colour, alpha=0.5, markersize=5)
        axes.plot(
            statistics.fmean(costs),
            statistics.fmean(scores),
            "o",
            color=colour,
            markersize=11,
            fillstyle="none",
            label=plain(name),
        )
    axes.set(xlabel=label, ylabel="mAP", title=f"mAP over {label}")
    return as_svg(figure, axes)
