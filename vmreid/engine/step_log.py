"""What rank 0 keeps and shows of every step: ``log.jsonl``, ``monitors.jsonl``, the tracker, the progress line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vmreid.data.streams import Batch
from vmreid.engine.judge_checkpoint import keep_judgement, keep_judgements_until
from vmreid.engine.layer_rules import layer_warnings
from vmreid.engine.looks import by_layer, keep_looks_until
from vmreid.engine.memory import peak_bytes
from vmreid.engine.monitors import Monitor
from vmreid.engine.prepare import Plan
from vmreid.engine.training_module import StepResult
from vmreid.progress import Reporter


class StepLogger(Protocol):
    """Where a step's numbers go besides ``log.jsonl``."""

    def log(self, step: int, values: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class StepTaken:
    """An optimizer step whose numbers may still be under way on the device; ``seconds`` as the host saw it."""

    step: int  # from 1
    rate: float
    results: list[StepResult]
    gradient_norm: torch.Tensor | float  # before clipping
    batches: list[Batch]
    seconds: float
    monitor: Monitor | None  # that looked


class StepLog:
    """Rank 0. ``log.jsonl``, the tracker and the progress line, fed once a step. ``skipped``: unreadable pictures replaced."""

    def __init__(self, plan: Plan, step: int, steps: int, logger: StepLogger | None) -> None:
        self._logger = logger
        self._folder = plan.folder
        _keep_steps_until(plan.folder.log_file, step)
        keep_looks_until(plan.folder.monitors_file, step)
        self._warned: set[str] = set()
        keep_judgements_until(plan.folder, step)
        self._file, self._looks = (path.open("a", buffering=1) for path in (plan.folder.log_file, plan.folder.monitors_file))
        self._progress = Reporter("training step", steps, done=step)
        self._progress.__enter__()

    def write(self, taken: StepTaken, epoch: int, gradient_norm: float, images_per_s: float) -> None:
        """Means over the micro-batches."""
        step, rate, results = taken.step, taken.rate, taken.results
        values = {
            "loss": _mean(result.loss.detach() for result in results),
            "loss_identity": _mean(result.identity_loss for result in results),
            "loss_triplet": _mean(result.triplet_loss for result in results),
            "accuracy": _mean(result.accuracy for result in results),
            "lr": rate,
            "grad_norm": gradient_norm,
            "images_per_s": images_per_s,
            "peak_bytes": peak_bytes(),
            "skipped": sum(int(result.replaced) for result in results),
        }
        self._file.write(json.dumps({"step": step, "epoch": epoch, **values, "batch_digest": batch_digest(results)}) + "\n")
        if self._logger:
            people = {key: value for key, value in values.items() if key != "peak_bytes"}
            self._logger.log(step, {"epoch": epoch, **people, "peak_GiB": values["peak_bytes"] / 2**30})
        self._progress.advance(
            f"epoch {epoch}  loss {values['loss']:.3f}  lr {rate:.2e}  |g| {gradient_norm:.2f}  {images_per_s:.1f} pictures/s"
        )

    def looked(self, step: int, layers: dict[str, list[float]]) -> None:
        """Keep what a monitor saw in a step; a warning is printed once."""
        warnings = layer_warnings(layers)
        self._looks.write(json.dumps({"step": step, "layers": layers, "warnings": list(warnings.values())}) + "\n")
        if self._logger:
            self._logger.log(step, by_layer(layers))
        for key in warnings.keys() - self._warned:
            print(f"step {step}: {warnings[key]}", flush=True)
        self._warned |= warnings.keys()

    def judged(self, step: int, epochs: int, scores: dict[str, float]) -> None:
        """Keep what the checkpoint of a step scored."""
        keep_judgement(self._folder, step, epochs, scores)
        if self._logger:
            self._logger.log(step, scores)
        print(f"after {epochs} epochs: mAP {scores['mAP']:.3f}, Rank-1 {scores['rank1']:.3f}", flush=True)

    def sync(self) -> None:
        """Have its lines on the disk, where a checkpoint of their steps will be."""
        for file in (self._file, self._looks):
            os.fsync(file.fileno())

    def close(self) -> None:
        self._progress.__exit__(None, None, None)
        self._file.close()
        self._looks.close()


def batch_digest(results: Sequence[StepResult]) -> str:
    """Covers the pixels of the global batch in its order."""
    pictures = np.concatenate([result.pictures_B2.cpu().numpy() for result in results])
    return hashlib.sha256(pictures.astype("<i8").tobytes()).hexdigest()[:16]


def _mean(values: Any) -> float:
    return float(torch.stack(list(values)).mean())


def _keep_steps_until(path: Path, step: int) -> None:
    """Lines of steps after the checkpoint are taken again, so they go."""
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)[:step]
        path.write_text("".join(lines))
