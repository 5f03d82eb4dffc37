"""How a run came to what it is, from its log and the evaluations in between: pure functions of those."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

WINDOW = 50  # steps before one, that its loss is held against
DEVIATIONS = 6.0  # median absolute ones, above the median, that make a spike
SHARES = (0.5, 0.8, 0.95)


def epochs_to(share: float, evaluations: Sequence[dict[str, Any]]) -> int | None:
    """After how many epochs an evaluation first had this share of the last one's mAP; None without evaluations."""
    if not evaluations:
        return None
    goal = share * evaluations[-1]["mAP"]
    return next(int(each["epochs"]) for each in evaluations if each["mAP"] >= goal)


def loss_spikes(losses: Sequence[float]) -> int:
    """Steps whose loss lies more than ``DEVIATIONS`` median absolute deviations above the median of the ``WINDOW`` before."""
    found = 0
    for step in range(WINDOW, len(losses)):
        before = losses[step - WINDOW : step]
        median = statistics.median(before)
        deviation = statistics.median(abs(loss - median) for loss in before)
        found += losses[step] > median + DEVIATIONS * deviation
    return found


def seconds_until(step: int, log: Sequence[dict[str, Any]], batch: int) -> float:
    """What the first steps took, by their images/s."""
    return math.fsum(batch / entry["images_per_s"] for entry in log[:step])


def seconds_to_score(
    goal: float, evaluations: Sequence[dict[str, Any]], log: Sequence[dict[str, Any]], batch: int
) -> float | None:
    """Until the first evaluation in training that reached ``goal`` mAP; None where none did."""
    step = next((int(each["step"]) for each in evaluations if each["mAP"] >= goal), None)
    return None if step is None else seconds_until(step, log, batch)
