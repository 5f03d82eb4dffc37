"""What was measured, case by case, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from vmreid.benchmarks.figures import Figures
from vmreid.timing import fitted_exponent

PARTS = ("forward_ms", "backward_ms", "optimizer_ms")


@dataclass(frozen=True)
class Row:
    """One backbone at one number of tokens, the class token among them, in one loop; no ``figures``: out of memory."""

    backbone: str
    tokens: int
    image_size: tuple[int, int]
    loop: str
    outcome: str
    figures: Figures | None


def as_json(setting: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """Setting, rows, and what follows from the rows so far."""
    return {
        "setting": setting,
        "rows": [asdict(row) for row in rows],
        "growth": growth(rows),
        "deepspeed_cost": deepspeed_cost(rows),
    }


def growth(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Exponents of step time and peak memory over tokens by backbone and loop; None with fewer than two numbers of tokens."""
    measured: dict[tuple[str, str], dict[int, Figures]] = {}
    for row in rows:
        if row.figures:
            measured.setdefault((row.backbone, row.loop), {})[row.tokens] = row.figures
    return [
        {
            "backbone": backbone,
            "loop": loop,
            "time_exponent": exponent({count: one.median_ms for count, one in figures.items()}),
            "memory_exponent": exponent({count: one.peak_bytes for count, one in figures.items() if one.peak_bytes}),
        }
        for (backbone, loop), figures in measured.items()
    ]


def deepspeed_cost(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Milliseconds that the engine takes beyond the plain loop, for the whole step and by part, where both were measured."""
    figures = {(row.backbone, row.tokens, row.loop): asdict(row.figures) for row in rows if row.figures}
    return [
        {
            "backbone": backbone,
            "tokens": tokens,
            "step_ms": engine["median_ms"] - plain["median_ms"],
            **{part: engine[part] - plain[part] for part in PARTS},
        }
        for (backbone, tokens, loop), engine in figures.items()
        if loop.startswith("deepspeed") and (plain := figures.get((backbone, tokens, loop.replace("deepspeed", "plain"))))
    ]


def exponent(cost: dict[int, float] | dict[int, int]) -> float | None:
    """How a cost grows over tokens; None with fewer than two numbers of tokens."""
    return fitted_exponent(dict(cost)) if len(cost) > 1 else None
