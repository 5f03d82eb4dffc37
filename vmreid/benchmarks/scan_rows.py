"""What was measured of the scans, case by case, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from vmreid.benchmarks.floors import Floor, Shape
from vmreid.benchmarks.rows import exponent
from vmreid.benchmarks.table import power
from vmreid.text_table import aligned

HEADINGS = (
    "batch, D, H, W, N", "scan", "forward ms", "floor reached", "own/peer",
    "with backward ms", "floor reached", "own/peer", "peak memory",
)  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """Milliseconds (median, least, most of ``rounds``), and the share of the floor that the median reaches."""

    rounds: int
    median_ms: float
    min_ms: float
    max_ms: float
    floor: Floor
    share: float


@dataclass(frozen=True)
class ScanRow:
    """One scan of one shape: ``forward`` alone, ``training`` is forward and backward; neither: out of memory.

    ``tokens``: where the shape belongs to the growth, with a class token counted. ``peak_bytes``: inputs, output, gradients
    and all between at most at once, forward and backward; None on a CPU. ``difference``: of a peer's output from this
    project's, the largest over the largest value.
    """

    shape: Shape
    tokens: int | None
    scan: str
    outcome: str
    forward: Pass | None
    training: Pass | None
    peak_bytes: int | None
    difference: float | None


def as_json(setting: dict[str, Any], rows: list[ScanRow]) -> dict[str, Any]:
    """Setting, rows, and what follows from the rows so far. The setting's backend is this project's."""
    own = setting["backend"]
    return {"setting": setting, "rows": [asdict(row) for row in rows], "ratios": ratios(rows, own), "growth": growth(rows)}


def ratios(rows: Iterable[ScanRow], own: str) -> list[dict[str, Any]]:
    """Own median over the peer's, by shape and peer, where both were measured: below 1 this project's is faster."""
    found = []
    mine: dict[tuple[Shape, int | None], ScanRow] = {}
    for row in rows:  # this project's comes first of its case
        if row.scan == own:
            mine[row.shape, row.tokens] = row
            continue
        ours = mine[row.shape, row.tokens]
        if ours.forward and ours.training and row.forward and row.training:
            forward, training = ours.forward.median_ms / row.forward.median_ms, ours.training.median_ms / row.training.median_ms
            case = {"shape": asdict(row.shape), "tokens": row.tokens, "peer": row.scan}
            found.append({**case, "forward": forward, "training": training})
    return found


def growth(rows: Iterable[ScanRow]) -> list[dict[str, Any]]:
    """Exponents of times and peak memory over tokens by scan; None with fewer than two numbers of tokens."""
    measured: dict[str, list[ScanRow]] = {}
    for row in rows:
        if row.tokens and row.forward:
            measured.setdefault(row.scan, []).append(row)
    return [
        {
            "scan": scan,
            "forward_exponent": exponent({row.tokens: row.forward.median_ms for row in own if row.tokens and row.forward}),
            "training_exponent": exponent({row.tokens: row.training.median_ms for row in own if row.tokens and row.training}),
            "memory_exponent": exponent({row.tokens: row.peak_bytes for row in own if row.tokens and row.peak_bytes}),
        }
        for scan, own in measured.items()
    ]


def as_text(rows: list[ScanRow], own: str) -> str:
    """One line a row, then the growth over tokens."""
    against = {(Shape(**one["shape"]), one["tokens"], one["peer"]): one for one in ratios(rows, own)}
    lines = []
    for row in rows:
        first = (str(row.shape), row.scan)
        if row.forward is None or row.training is None:
            lines.append((*first, row.outcome, *[""] * (len(HEADINGS) - 3)))
            continue
        ratio = against.get((row.shape, row.tokens, row.scan))
        forward, training = (_cells(one) for one in (row.forward, row.training))
        compared = [f"{ratio[key]:.2f}" if ratio else "" for key in ("forward", "training")]
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f} GiB"
        lines.append((*first, *forward, compared[0], *training, compared[1], memory))
    exponents = ("forward_exponent", "training_exponent", "memory_exponent")
    grown = [(one["scan"], *(power(one[key]) for key in exponents)) for one in growth(rows)]
    growing = ("growth over tokens n", "forward", "with backward", "peak memory")
    return "\n\n".join([aligned(HEADINGS, lines), aligned(growing, grown)])


def _cells(one: Pass) -> tuple[str, str]:
    return f"{one.median_ms:.3f}", f"{one.share:.0%} ({one.floor.bound_by})"
