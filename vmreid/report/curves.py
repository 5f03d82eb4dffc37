"""Curves of an evaluation. matplotlib is slow to import, so nothing that trains imports this module."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmreid.evaluation.distances import Metric
from vmreid.evaluation.evaluate import Evaluation
from vmreid.evaluation.histogram import Histogram
from vmreid.evaluation.precision_recall import RECALLS

INK, SAME, OTHER = "#1c2733", "#2a6fbb", "#c8553d"
LOOKS: dict[str, dict[str, Any]] = {  # one look a name in all pictures
    "model": {"color": INK, "linestyle": "-", "linewidth": 2.4},
    "reranked": {"color": "#2f7d4f", "linestyle": "-", "linewidth": 1.6},
    "chance": {"color": "#8a949d", "linestyle": ":", "linewidth": 1.6},
    "untrained": {"color": "#2a6fbb", "linestyle": "-.", "linewidth": 1.6},
    "histogram": {"color": "#b8860b", "linestyle": "--", "linewidth": 1.6},
    "rgb_histogram": {"color": "#c8553d", "linestyle": (0, (6, 2, 1, 2, 1, 2)), "linewidth": 1.6},
}
FEWEST = 5  # ranks on the axis
BARS = 120  # at most, of a histogram
DISTANCES: dict[Metric, str] = {"euclidean": "squared Euclidean distance", "cosine": "cosine distance (1 - cosine)"}

Directions = Mapping[str, Mapping[str, list[float]]]


def draw_cmc(directions: Directions, title: str) -> bytes:
    """A PNG file: a panel a direction, in it the CMC of ``model`` (solid) and of each floor, until all have reached 1."""
    figure, panels = _panels(directions, title)
    for axes, curves in zip(panels, directions.values(), strict=True):
        end = max(FEWEST, sum(min(values) < 1 for values in zip(*curves.values(), strict=True)) + 1)
        for label, cmc in curves.items():
            axes.plot(range(1, len(cmc[:end]) + 1), cmc[:end], label=label, **LOOKS[label])
        axes.set(xlabel="rank k", ylim=(0, 1.02))
        axes.set_xticks([k for k in (1, 5, 10, 20, 30, 40, 50) if k <= end])
        axes.legend(frameon=False, loc="lower right")
    panels[0].set_ylabel("share of queries with a match within rank k")
    return _png(figure)


def draw_precision_recall(directions: Directions, title: str) -> bytes:
    """A PNG file: a panel a direction, in it the precision over recall (``precision_by_recall``) of the model and each floor."""
    figure, panels = _panels(directions, title)
    for axes, curves in zip(panels, directions.values(), strict=True):
        for label, precision in curves.items():
            axes.plot(RECALLS, precision, label=label, **LOOKS[label])
        axes.set(xlabel="recall: share of a query's right pictures found", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(frameon=False, loc="upper right")
    panels[0].set_ylabel("interpolated precision, mean over queries")
    return _png(figure)


def draw_distances(histogram: Histogram, title: str) -> bytes:
    """A PNG file: how positive and negative pairs spread over the distance, each as shares of its own number."""
    sides = {"same identity, other camera": (SAME, histogram.positive), "other identity": (OTHER, histogram.negative)}
    edges, shares_SB = _bars([counts for _, counts in sides.values()], histogram.width)
    about = f"{histogram.queries:,} of {histogram.all_queries:,} queries; the areas share {shares_SB.min(axis=0).sum():.1%}"
    figure, (axes,) = _panels([about], title, width=7)
    for (label, (colour, counts)), shares in zip(sides.items(), shares_SB, strict=True):
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(shares, edges, color=colour, linewidth=1.6, label=f"{label} ({sum(counts):,} pairs)")
    axes.set(xlabel=DISTANCES[histogram.metric], ylim=(0, None))
    axes.set_ylabel(f"share of a kind's pairs, by {edges[1] - edges[0]:.3g} of distance")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return _png(figure)


def curves_as_json(found: Evaluation) -> str:
    """The numbers that are drawn."""
    curves = {
        "cmc": found.curves,
        "recall": RECALLS,
        "precision": found.precisions,
        "distances": asdict(found.distances),
    }
    return json.dumps(curves, allow_nan=False) + "\n"


def _bars(counts: Sequence[Sequence[int]], width: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges and each side's shares [S, B], of the range that has pairs; neighbouring bins together so that few bars remain."""
    count_SB = np.array(counts)
    taken = np.flatnonzero(count_SB.any(axis=0))
    first, end = int(taken[0]), int(taken[-1]) + 1
    most = min(BARS, max(10, int(2 * min(map(sum, counts)) ** 0.5)))  # few pairs in narrow bars would be a row of spikes
    each = -(-(end - first) // most)
    bars = -(-(end - first) // each)
    padded_SB = np.zeros((len(counts), bars * each))
    padded_SB[:, : end - first] = count_SB[:, first:end]
    sums_SB = padded_SB.reshape(len(counts), bars, each).sum(axis=2)
    edges = (first + each * np.arange(bars + 1)) * width
    return edges, sums_SB / np.maximum(1, sums_SB.sum(axis=1, keepdims=True))


def _panels(names: Mapping[str, Any] | Sequence[str], title: str, width: float = 5.5) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each name."""
    figure = Figure(figsize=(1 + width * len(names), 4.6), layout="constrained")
    panels = list(figure.subplots(1, len(names), sharey=True, squeeze=False)[0])
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title.replace("$", r"\$"))  # else matplotlib reads a formula
    return figure, panels


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
