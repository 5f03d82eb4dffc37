"""What monitors saw, over layers and time. matplotlib is slow to import, so training asks for this at its end."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

TITLES = {  # in the order of the panels
    "delta_median": "step size Δ, median",
    "delta_A_high": "largest Δ·|A|",
    "memory_tokens": "memory in tokens, median channel",
    "short_share": "share of channels that forget within 2 tokens",
    "dead_share": "share of channels that take nothing in",
    "state_rms": "last states, root mean square",
    "output_rms": "a block's output, root mean square",
    "gradient_norm": "gradient norm before clipping",
    "update_share": "a step's change of the weights",
}
COLUMNS = 3
DECADE = 10.0  # least ratio of the ends of a logarithmic scale


def draw_layers(looks: Sequence[dict[str, Any]], title: str) -> bytes:
    """A PNG file: for each quantity a map of blocks (first below) over the steps of ``looks``, which has one at least; shares
    from 0 to 1, the others in powers of ten."""
    quantities = [name for name in TITLES if name in looks[0]["layers"]]
    rows = -(-len(quantities) // COLUMNS)
    figure = Figure(figsize=(15, 0.8 + 3.4 * rows), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, quantity in zip(panels, quantities, strict=False):
        _draw(figure, axes, quantity, looks)
    for axes in panels[len(quantities) :]:
        axes.set_visible(False)
    figure.suptitle(title.replace("$", r"\$"))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _draw(figure: Figure, axes: Axes, quantity: str, looks: Sequence[dict[str, Any]]) -> None:
    columns = [look["layers"][quantity] for look in looks]
    values_LS = np.full((max(map(len, columns)), len(columns)), np.nan)
    for step, column in enumerate(columns):  # a model that grows has fewer blocks at first
        values_LS[: len(column), step] = column
    if quantity.endswith("_share") and quantity != "update_share":
        norm: Normalize = Normalize(0, 1)
    else:
        positive = values_LS[values_LS > 0]
        low, high = (positive.min(), positive.max()) if positive.size else (1e-12, 1.0)
        widen = max(1.0, np.sqrt(DECADE * low / high))  # so that what hardly changes looks so
        norm = LogNorm(low / widen, high * widen)
        values_LS = np.maximum(values_LS, low)
    image = axes.imshow(values_LS, aspect="auto", origin="lower", interpolation="nearest", cmap="viridis", norm=norm)
    steps = [look["step"] for look in looks]
    places = np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).astype(int))
    axes.set_xticks(places, [str(steps[place]) for place in places])
    axes.set_yticks(range(len(values_LS)), [str(block) for block in range(1, len(values_LS) + 1)])
    axes.set(title=TITLES[quantity], xlabel="step", ylabel="block")
    figure.colorbar(image, ax=axes)
