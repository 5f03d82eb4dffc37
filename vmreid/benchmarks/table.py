"""The benchmark's rows and what follows from them, for a terminal."""

from __future__ import annotations

from typing import Any

from vmreid.benchmarks.rows import PARTS, Row, deepspeed_cost, growth
from vmreid.text_table import aligned

HEADINGS = (
    "backbone", "tokens", "loop", "step ms", "min–max", "forward", "backward", "optimizer", "images/s", "peak memory",
    "GPU busy", "kernels",
)  # fmt: skip


def as_text(rows: list[Row]) -> str:
    """One line a row, then the growth over tokens, then what DeepSpeed costs."""
    grown = [(one["backbone"], one["loop"], power(one["time_exponent"]), power(one["memory_exponent"])) for one in growth(rows)]
    costs = [
        (one["backbone"], str(one["tokens"]), *(f"{one[part]:+.1f}" for part in ("step_ms", *PARTS)))
        for one in deepspeed_cost(rows)
    ]
    return "\n\n".join(
        [
            aligned(HEADINGS, [cells(row) for row in rows]),
            aligned(("growth over tokens n", "loop", "step time", "peak memory"), grown),
            aligned(("deepspeed less plain", "tokens", "step ms", "forward", "backward", "optimizer"), costs),
        ]
    )


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    figures = row.figures
    if figures is None:
        return (row.backbone, str(row.tokens), row.loop, row.outcome, *[""] * (len(HEADINGS) - 4))
    return (
        row.backbone,
        str(row.tokens),
        row.loop,
        f"{figures.median_ms:.1f}",
        f"{figures.min_ms:.1f}–{figures.max_ms:.1f}",
        *(f"{ms:.1f}" for ms in (figures.forward_ms, figures.backward_ms, figures.optimizer_ms)),
        f"{figures.images_per_s:.1f}",
        "" if figures.peak_bytes is None else f"{figures.peak_bytes / 2**30:.2f} GiB",
        "" if figures.gpu_busy_share is None else f"{figures.gpu_busy_share:.0%}",
        "" if figures.kernels is None else str(figures.kernels),
    )


def power(exponent: Any) -> str:
    """A growth as a power of n; nothing where it is not known."""
    return "" if exponent is None else f"n^{exponent:.2f}"
