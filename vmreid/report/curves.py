"""Curves of an evaluation. matplotlib is slow to import, so nothing that trains imports this module."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping

from matplotlib.figure import Figure

INK, FLOORS = "#1c2733", ("#8a949d", "#2a6fbb", "#b8860b", "#c8553d")
FEWEST = 5  # ranks on the axis
DASHES = (":", "-.", "--", (0, (6, 2, 1, 2, 1, 2)))


def draw_cmc(directions: Mapping[str, Mapping[str, list[float]]], title: str) -> bytes:
    """A PNG file: a panel a direction, in it the CMC of ``model`` (solid) and of each floor, until all have reached 1."""
    figure = Figure(figsize=(1 + 5.5 * len(directions), 4.6), layout="constrained")
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    for axes, (name, curves) in zip(panels, directions.items(), strict=True):
        end = max(FEWEST, sum(min(values) < 1 for values in zip(*curves.values(), strict=True)) + 1)
        styles = zip(itertools.cycle(FLOORS), itertools.cycle(DASHES), strict=False)
        for label, cmc in curves.items():
            colour, dash, width = (INK, "-", 2.4) if label == "model" else (*next(styles), 1.6)
            axes.plot(range(1, len(cmc[:end]) + 1), cmc[:end], color=colour, linestyle=dash, linewidth=width, label=label)
        axes.set(xlabel="rank k", title=name, ylim=(0, 1.02))
        axes.set_xticks([k for k in (1, 5, 10, 20, 30, 40, 50) if k <= end])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    panels[0].set_ylabel("share of queries with a match within rank k")
    figure.suptitle(title.replace("$", r"\$"))  # else matplotlib reads a formula
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
