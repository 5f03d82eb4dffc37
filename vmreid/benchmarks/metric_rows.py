"""What was measured of the metric, case by case, and what follows from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from vmreid.text_table import aligned
from vmreid.timing import fitted_exponent

PRODUCT, OWN = "product", "vmreid"
HEADINGS = (
    "queries", "gallery", "dims", "what", "median s", "min–max", "processor s", "× product", "by processor",
    "× vmreid", "by processor", "peak memory", "without features", "mAP",
)  # fmt: skip
BEYOND = 10**8


@dataclass(frozen=True)
class MetricRow:
    """One contestant in one case: ``seconds`` of each round, and ``cpu_seconds``, which all its threads had of the processor,
    other programs' share not among them; ``peak_bytes``, largest memory of the process (on a GPU: of the
    device), the features' ``feature_bytes`` among it; the mAP that it found, None for the product."""

    queries: int
    gallery: int
    dim: int
    what: str
    seconds: list[float]
    cpu_seconds: list[float]
    peak_bytes: int
    feature_bytes: int
    mean_ap: float | None

    @property
    def case(self) -> tuple[int, int, int]:
        return self.queries, self.gallery, self.dim

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def as_json(setting: dict[str, Any], rows: list[MetricRow]) -> dict[str, Any]:
    """Setting, rows, and what follows from the rows so far."""
    listed = [{**asdict(row), "median_s": row.median_s} for row in rows]
    return {"setting": setting, "rows": listed, "ratios": ratios(rows), "growth": growth(rows)}


def ratios(rows: Iterable[MetricRow]) -> list[dict[str, Any]]:
    """Median over rounds of a contestant's time over that of the product, and of this project, in the same round: by
    the clock, and by what each had of the processor, which a busy machine changes less."""
    rows = list(rows)
    by_name = {(row.case, row.what): row for row in rows}
    found = []
    for row in rows:
        case = {"queries": row.queries, "gallery": row.gallery, "dim": row.dim, "what": row.what}
        for other in (PRODUCT, OWN):
            beside = by_name.get((row.case, other), row)
            case[f"over_{other}"] = None if beside is row else _ratio(row.seconds, beside.seconds)
            case[f"cpu_over_{other}"] = None if beside is row else _ratio(row.cpu_seconds, beside.cpu_seconds)
        if row.what != PRODUCT:
            found.append(case)
    return found


def _ratio(seconds: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def growth(rows: Iterable[MetricRow]) -> list[dict[str, Any]]:
    """How this project's time and memory grow with the gallery, by queries and dims, and what a power law says of 10^8."""
    by_size: dict[tuple[int, int], dict[int, MetricRow]] = {}
    for row in rows:
        if row.what == OWN:
            by_size.setdefault((row.queries, row.dim), {})[row.gallery] = row
    found = []
    for (queries, dim), sizes in by_size.items():
        if len(sizes) > 1:
            seconds = {gallery: row.median_s for gallery, row in sizes.items()}
            peak = {gallery: row.peak_bytes for gallery, row in sizes.items()}
            found.append(
                {
                    "queries": queries,
                    "dim": dim,
                    "time_exponent": fitted_exponent(seconds),
                    "memory_exponent": fitted_exponent(dict(peak)),
                    "fitted_not_measured": {
                        "gallery": BEYOND,
                        "seconds": fitted(seconds, BEYOND),
                        "peak_bytes": fitted(peak, BEYOND),
                    },
                }
            )
    return found


def fitted(cost: dict[int, float] | dict[int, int], size: int) -> float:
    """What the power law through ``cost`` by size says of another size."""
    slope = fitted_exponent(dict(cost))
    offset = statistics.fmean(math.log(value) - slope * math.log(number) for number, value in cost.items())
    return math.exp(offset + slope * math.log(size))


def as_text(rows: list[MetricRow]) -> str:
    """One line a row, then the growth."""
    over = {(each["queries"], each["gallery"], each["dim"], each["what"]): each for each in ratios(rows)}
    lines = []
    for row in rows:
        each = over.get((*row.case, row.what), {})
        names = (f"{clock}over_{other}" for other in (PRODUCT, OWN) for clock in ("", "cpu_"))
        factors = ["" if (value := each.get(name)) is None else f"{value:.2f}" for name in names]
        spread = f"{min(row.seconds):.2f}–{max(row.seconds):.2f}"
        worked = f"{statistics.median(row.cpu_seconds):.2f}"
        memory = [f"{size / 2**30:.2f} GiB" for size in (row.peak_bytes, row.peak_bytes - row.feature_bytes)]
        found = "" if row.mean_ap is None else f"{row.mean_ap:.6f}"
        lines.append((*map(str, row.case), row.what, f"{row.median_s:.2f}", spread, worked, *factors, *memory, found))
    grown = [
        (
            str(each["queries"]),
            str(each["dim"]),
            *(f"n^{each[key]:.2f}" for key in ("time_exponent", "memory_exponent")),
            f"{each['fitted_not_measured']['seconds']:.0f} s, {each['fitted_not_measured']['peak_bytes'] / 2**30:.0f} GiB",
        )
        for each in growth(rows)
    ]
    tables = [aligned(HEADINGS, lines)]
    if grown:
        tables.append(
            aligned(("queries", "dims", "time over gallery", "peak memory", f"gallery {BEYOND:.0e}, fitted, not measured"), grown)
        )
    return "\n\n".join(tables)
