"""The loader benchmark's figures: the best of each case's rounds, and its share of what decoding and transforming allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from vmreid.text_table import aligned

BOUND = "decode + transform"


@dataclass(frozen=True)
class Rate:
    """Images a second of one loader in one round."""

    loader: str
    workers: int
    images_per_s: float


@dataclass(frozen=True)
class LoaderRow:
    """One loader with one number of workers: its best round, all rounds, and the best's share of the bound's best."""

    loader: str
    workers: int
    images_per_s: float
    rounds: list[float]
    share: float | None


def rows_of(rates: Iterable[Rate]) -> list[LoaderRow]:
    """By case in the order of their first rounds. No share where the bound is not measured yet."""
    rounds: dict[tuple[str, int], list[float]] = {}
    for rate in rates:
        rounds.setdefault((rate.loader, rate.workers), []).append(rate.images_per_s)
    rows = []
    for (loader, workers), values in rounds.items():
        bound = rounds.get((BOUND, workers))
        rows.append(LoaderRow(loader, workers, max(values), values, max(values) / max(bound) if bound else None))
    return rows


def as_json(setting: dict[str, Any], rates: Iterable[Rate], parts_us: dict[str, float]) -> dict[str, Any]:
    """Setting, rows so far, and what the parts of a picture's way cost."""
    return {"setting": setting, "rows": [asdict(row) for row in rows_of(rates)], "parts_us": parts_us}


def as_text(rates: Iterable[Rate], parts_us: dict[str, float]) -> str:
    """One line a row, then what a picture costs on one core."""
    cells = [
        (row.loader, str(row.workers), f"{row.images_per_s:.0f}", "" if row.share is None else f"{row.share:.2f}")
        for row in rows_of(rates)
    ]
    parts = ", ".join(f"{name} {value:.0f}" for name, value in parts_us.items())
    table = aligned(("loader", "workers", "images/s", f"share of {BOUND}"), cells)
    return f"{table}\n\nmicroseconds a picture on one core: {parts}"
