"""The tables and pictures of vit-vs-mamba.md: ``python docs/results/vit_vs_mamba_tables.py RUNS.json PICTURES``.

Prints the tables. Scores are the last evaluation's mAP, of both directions where there are two. A difference of two names has the
interval of Student's t with one standard deviation for all runs of a set, pooled over the names that have several seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from vit_vs_mamba_runs import FIVE, REMEDIES, THREE, TWICE

from vmreid.report.convergence import epochs_to
from vmreid.report.seeds import half_interval, pooled_deviation
from vmreid.report.study import LOST
from vmreid.text_table import markdown

SETS = {
    "rendered": "rendered, 256×128",
    "rendered 512": "rendered, 512×256",
    "real 256": "real, 256×128",
    "real": "real, 128×128",
}
ALL_RATES = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")
Rows = list[dict[str, Any]]


class Runs:
    """All rows by name, with the spread of seeds on each set."""

    def __init__(self, rows: Rows) -> None:
        self.by_name: dict[str, Rows] = {}
        for row in rows:
            self.by_name.setdefault(row["run"], []).append(row)
        self.spread = {kind: self._pooled(kind) for kind in ("rendered", "real")}

    def scores(self, name: str) -> dict[int, float]:
        """By seed."""
        return {row["seed"]: score(row["evaluations"][-1]) for row in self.by_name.get(name, ())}

    def mean(self, name: str) -> str:
        found = list(self.scores(name).values())
        if len(found) < 2:
            return f"{found[0]:.3f}" if found else ""
        return f"{statistics.fmean(found):.3f} ± {statistics.stdev(found):.3f}"

    def value(self, name: str) -> float:
        return statistics.fmean(self.scores(name).values())

    def difference(self, one: str, other: str) -> tuple[float, float]:
        """Mean of ``one`` less that of ``other``, and half the width of its 95 % interval."""
        kind = one.partition(" ")[0]
        deviation, freedom = self.spread[kind]
        return self.value(one) - self.value(other), half_interval(
            deviation, freedom, len(self.scores(one)), len(self.scores(other))
        )

    def _pooled(self, kind: str) -> tuple[float, int]:
        return pooled_deviation([list(self.scores(name).values()) for name in self.by_name if name.startswith(kind)])


def names_by_rate(backbone: str) -> list[str]:
    """In the order of ``ALL_RATES``."""
    return [f"real {backbone}" + ("" if rate == "3e-4" else f" rate {rate}") for rate in ALL_RATES]


def score(evaluation: dict[str, Any]) -> float:
    return float(evaluation.get("mean/mAP", evaluation["mAP"]))


def said(difference: tuple[float, float]) -> str:
    """With its interval, bold where that leaves 0 out."""
    mean, half = difference
    words = f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
    return f"**{words}**" if abs(mean) > half else words


def families(runs: Runs) -> str:
    lines = []
    for prefix, title in SETS.items():
        for backbone in FIVE:
            name = f"{prefix} {backbone}"
            if not runs.scores(name):
                continue
            rows = runs.by_name[name]
            rank1 = statistics.fmean(row["evaluations"][-1].get("mean/rank1", row["evaluations"][-1]["rank1"]) for row in rows)
            against = "" if backbone == "VIT-S" else said(runs.difference(name, f"{prefix} VIT-S"))
            lines.append((title, backbone, str(len(rows)), runs.mean(name), f"{rank1:.3f}", against, *course(rows)))
    heads = (
        "set",
        "backbone",
        "seeds",
        "mAP",
        "Rank-1",
        "mAP less VIT-S's",
        "epochs to 50, 80, 95 %",
        "last loss",
        "spikes",
        "p99/median",
    )
    return markdown(heads, lines)


def course(rows: Rows) -> tuple[str, ...]:
    """Epochs to shares of the last mAP, last loss, loss spikes in 1000 steps, tail of the gradient norm; means over seeds."""
    shares = [
        statistics.fmean(epochs_to(share, [{**e, "mAP": score(e)} for e in row["evaluations"]]) or 0 for row in rows)
        for share in (0.5, 0.8, 0.95)
    ]
    spikes = statistics.fmean(1000 * row["spikes"] / row["steps"] for row in rows)
    tail = statistics.fmean(row["gradient_p99_over_median"] for row in rows)
    loss = statistics.fmean(row["losses"][-1] for row in rows)
    return ", ".join(f"{each:.0f}" for each in shares), f"{loss:.2f}", f"{spikes:.1f}", f"{tail:.1f}"


def rates(runs: Runs) -> str:
    lines = []
    for backbone in THREE:
        names = names_by_rate(backbone)
        best = max(runs.value(name) for name in names)
        lost = sum(runs.value(name) < LOST * best for name in names)
        lines.append((backbone, *(runs.mean(name) for name in names), f"{lost} of {len(names)}"))
    return markdown(("backbone", *ALL_RATES, "rates lost"), lines)


def remedies(runs: Runs) -> str:
    base, lines = "real MAMBA-V2", []
    for what in REMEDIES:
        name = f"{base} {what}"
        rows = runs.by_name[name]
        first = rows[0]["looks"][0]["layers"]["gradient_norm"]
        warned = str(sum(row["warnings"]["looks"] for row in rows))
        gradient = f"{first[0]:.1f} … {first[-1]:.1f}"
        difference = said(runs.difference(name, base))
        lines.append((what, str(len(rows)), runs.mean(name), difference, gradient, *course(rows)[2:], warned))
    heads = (
        "MAMBA-V2 with",
        "seeds",
        "mAP",
        "less the recipe's",
        "gradient norm at step 1, first … last block",
        "spikes",
        "p99/median",
        "looks with a warning",
    )
    return markdown(heads, lines)


def augmentation(runs: Runs) -> str:
    lines = []
    for backbone in ("VIT-S", "MAMBA-V2"):
        base = f"real {backbone}"
        lines.append((backbone, *(runs.mean(name) for name in (base, f"{base} mild", f"{base} no augmentation")),
                      *(said(runs.difference(f"{base} {kind}", base)) for kind in ("mild", "no augmentation"))))  # fmt: skip
    return markdown(
        ("backbone", "strong (the recipe's)", "mild (the note's)", "none", "mild less strong", "none less strong"), lines
    )


def sizes(runs: Runs) -> str:
    pairs = [
        ("VIT-S small", "MAMBA-V2"),
        ("VIT-S small", "MAMBA-S small"),
        ("MAMBA-V2", "MAMBA-S small"),
        ("VIT-S", "MAMBA-V2 large"),
    ]
    return compared(runs, "of about equal parameters", [(f"rendered {one}", f"rendered {other}") for one, other in pairs])


def equal_compute(runs: Runs) -> str:
    """MAMBA-V2 beside ViTs that trained for as long as it did."""
    others = [f"rendered VIT-S small {TWICE}", f"rendered VIT-S {TWICE}", f"real 256 VIT-S {TWICE}"]
    pairs = [(name, f"{name.partition(' VIT-S')[0]} MAMBA-V2") for name in others if runs.scores(name)]
    return compared(runs, "of equal compute", pairs)


def compared(runs: Runs, title: str, pairs: list[tuple[str, str]]) -> str:
    lines = [
        (
            f"{one} − {other}",
            f"{len(runs.scores(one))}, {len(runs.scores(other))}",
            runs.mean(one),
            runs.mean(other),
            said(runs.difference(one, other)),
        )
        for one, other in pairs
    ]
    return markdown((title, "seeds", "mAP", "mAP", "difference"), lines)


def probes(runs: Runs) -> str:
    lines = []
    for prefix in ("rendered", "real 256"):
        for backbone in FIVE:
            rows = runs.by_name[f"{prefix} {backbone}"]
            kept = {
                name: [row["probes"]["mAP"][name] / row["probes"]["mAP"]["none"] for row in rows]
                for name in rows[0]["probes"]["mAP"]
                if name != "none"
            }
            field = [row["probes"]["field"] for row in rows if row["probes"]["field"]]
            seen = (
                (
                    f"{statistics.fmean(each['within 2'] for each in field):.0%}",
                    f"{statistics.fmean(each['mean distance'] for each in field):.1f}",
                )
                if field
                else ("", "")
            )
            lines.append((SETS[prefix], backbone, *(f"{statistics.fmean(each):.0%}" for each in kept.values()), *seen))
    heads = (
        "set",
        "backbone",
        "patches anywhere",
        "patches within blocks",
        "blocks anywhere",
        "a tenth covered",
        "three tenths",
        "field within 2 patches",
        "mean distance",
    )
    return markdown(heads, lines)


def draw(runs: Runs, folder: Path) -> None:
    """Scores by family, their curves, the rates, the remedies."""
    colours = dict(zip(FIVE, plt.colormaps["tab10"].colors, strict=False))
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.2), layout="constrained")
    left, right = axes[0]
    for place, prefix in enumerate(SETS):
        for number, backbone in enumerate(FIVE):
            found = list(runs.scores(f"{prefix} {backbone}").values())
            at = [place + 0.15 * (number - 2)] * len(found)
            left.plot(at, found, "o", color=colours[backbone], markersize=5, alpha=0.8, label=backbone if place == 0 else None)
    left.set(
        xticks=range(len(SETS)),
        xticklabels=[title.replace(", ", ",\n") for title in SETS.values()],
        ylabel="mAP",
        ylim=(0, 0.9),
        title="Every run of the families, one budget a set",
    )
    left.legend(ncols=2, fontsize=8)
    for prefix, style in (("rendered", "-"), ("real 256", "--")):
        for backbone in FIVE:
            for row in runs.by_name[f"{prefix} {backbone}"]:
                last = row["evaluations"][-1]["epochs"]
                right.plot(
                    [e["epochs"] / last for e in row["evaluations"]],
                    [score(e) for e in row["evaluations"]],
                    style,
                    color=colours[backbone],
                    linewidth=1,
                )
    right.set(xlabel="share of the training", ylabel="mAP", title="256×128: rendered (lines), real (dashes)")
    left, right = axes[1]
    for backbone in THREE:
        names = names_by_rate(backbone)
        left.plot(
            [float(rate) for rate in ALL_RATES],
            [runs.value(name) for name in names],
            "-o",
            color=colours[backbone],
            label=backbone,
            markersize=4,
        )
    left.set(xscale="log", xlabel="rate", ylabel="mAP", title="Rates, real set at 128×128")
    left.legend(fontsize=8)
    found = {what: runs.difference(f"real MAMBA-V2 {what}", "real MAMBA-V2") for what in REMEDIES}
    right.errorbar(
        [mean for mean, _ in found.values()],
        range(len(found)),
        xerr=[half for _, half in found.values()],
        fmt="o",
        color="black",
        markersize=4,
        linewidth=1,
    )
    right.axvline(0, color="grey", linewidth=0.8)
    right.set(
        yticks=range(len(found)),
        yticklabels=found,
        xlabel="mAP less the recipe's, 95 % interval",
        title="MAMBA-V2: each remedy alone, real set",
    )
    right.invert_yaxis()
    figure.savefig(folder / "vit_vs_mamba.png", dpi=90)


def main(words: Sequence[str]) -> None:
    runs = Runs(json.loads(Path(words[0]).read_text())["rows"])
    for table in (families, sizes, equal_compute, rates, remedies, augmentation, probes):
        print(f"\n## {table.__name__}\n\n{table(runs)}")
    print("\nstandard deviation over seeds, degrees of freedom:", runs.spread)
    draw(runs, Path(words[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
