"""A pass over pictures as launcher.evaluate makes it, beside its two halves: the forward alone and the pictures alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vmreid.data.folder import as_folder
from vmreid.data.manifest import Split, read_manifest, require_splits
from vmreid.data.streams import Batch, evaluation_batches
from vmreid.evaluation.evaluate import EvaluationPlan, features_by
from vmreid.evaluation.extraction import FeatureFunction, extract
from vmreid.kernels import choose_backend
from vmreid.models import ReIDModel, build_backbone, scans_maps
from vmreid.recipes import Recipe
from vmreid.text_table import aligned
from vmreid.timing import device_name, now
from vmreid.versions import versions

SECONDS = 5.0  # that either half takes, at least
PASS_SECONDS = 15.0  # that a pass takes, about: one over a large set is not felt to start its workers
WARM_UP = 4  # batches, of which a graph's first ones make it
CLASSES = 1000  # of the head, which features do not pass
FORWARD, PICTURES, BOTH = "forward alone", "pictures alone", "extraction"


@dataclass(frozen=True)
class Rate:
    """Images a second of one backbone's case, and how many pictures it took."""

    backbone: str
    workers: int
    what: str
    pictures: int
    images_per_s: float


class ExtractionBenchmark:
    """The recipe's pass over a set's gallery, again and again, with untrained backbones. Raises UserError for what is missing."""

    def __init__(
        self, data: Path, recipe: Recipe, backbones: list[str], workers: list[int], compiled: bool, device: torch.device
    ) -> None:
        self._folder = as_folder(data)
        manifest = read_manifest(self._folder)
        require_splits(manifest, self._folder, ("gallery",))
        self._split, self.recipe, self.device = manifest.splits["gallery"], recipe, device
        self.plans = {}
        for name in backbones:
            own = recipe.model_copy(update={"model": recipe.model.model_copy(update={"backbone": name})})
            backend, _ = choose_backend(own.model.scan_backend, device, scans_maps(own.model))
            self.plans[name] = EvaluationPlan(own, self._folder, manifest, data, backend, None, compiled)
        self.cases = list(itertools.product(workers, self.plans))
        self._loading: dict[int, Rate] = {}

    def rates(self) -> Iterator[list[Rate]]:
        """Forward alone, pictures alone and the pass, case by case."""
        for workers, name in self.cases:
            features = self._features(self.plans[name])
            forward = self._forward(name, workers, features)
            if workers not in self._loading:
                self._loading[workers] = self._pictures(workers)
            loading = self._loading[workers]
            wanted = PASS_SECONDS * min(forward.images_per_s, loading.images_per_s)
            yield [forward, loading, self._pass(name, workers, features, wanted)]

    def setting(self, command: str) -> dict[str, Any]:
        """What the figures hold for."""
        evaluation = self.recipe.evaluation
        return {
            "command": command,
            "device": device_name(self.device),
            "versions": versions(),
            "image_size": list(self.recipe.data.image_size),
            "batch_size": evaluation.batch_size,
            "precision": evaluation.precision,
            "flip": evaluation.flip,
            "compiled": any(plan.compiled for plan in self.plans.values()),
            "gallery": self._split.pictures,
        }

    def _features(self, plan: EvaluationPlan) -> FeatureFunction:
        torch.manual_seed(plan.recipe.seed)
        backbone = build_backbone(plan.recipe.model.from_scratch(), plan.recipe.data.image_size, plan.scan_backend)
        model = ReIDModel(backbone, CLASSES, plan.recipe.data.mean, plan.recipe.data.std)
        return features_by(model.to(self.device).eval(), plan)

    @torch.no_grad()
    def _forward(self, name: str, workers: int, features: FeatureFunction) -> Rate:
        size = self.recipe.evaluation.batch_size
        image_BCHW = torch.randint(256, (size, 3, *self.recipe.data.image_size), dtype=torch.uint8).to(self.device)
        for _ in range(WARM_UP):
            features(image_BCHW)
        begin, calls = now(self.device), 0
        while now(self.device) - begin < SECONDS:  # several at once: a pass does not wait for each batch either
            for _ in range(8):
                features(image_BCHW)
            calls += 8
        return Rate(name, workers, FORWARD, calls * size, calls * size / (now(self.device) - begin))

    def _pictures(self, workers: int) -> Rate:
        seconds, rounds = 0.0, 0
        while seconds < SECONDS:
            rounds = max(1, 2 * rounds, math.ceil(rounds * SECONDS / seconds) if seconds else 0)
            begin = now(self.device)
            for _ in self._batches(workers, rounds):
                pass
            seconds = now(self.device) - begin
        pictures = rounds * self._split.pictures
        return Rate("", workers, PICTURES, pictures, pictures / seconds)

    def _pass(self, name: str, workers: int, features: FeatureFunction, wanted: float) -> Rate:
        rounds = math.ceil(wanted / self._split.pictures)
        begin = now(self.device)
        size = self.recipe.evaluation.batch_size
        found = extract(self._batches(workers, rounds), {"model": features}, self.device, size, None)["model"]
        return Rate(name, workers, BOTH, len(found.rows), len(found.rows) / (now(self.device) - begin))

    def _batches(self, workers: int, rounds: int) -> Iterator[Batch]:
        split: Split = self._split.model_copy(update={"shards": self._split.shards * rounds})
        evaluation = self.recipe.evaluation
        return evaluation_batches(
            self._folder, split, self.recipe.data.image_size, evaluation.batch_size,
            rank=0, world=1, workers=workers, device=self.device,
        )  # fmt: skip


def as_json(setting: dict[str, Any], rates: list[Rate]) -> dict[str, Any]:
    """Setting and rates so far."""
    return {"setting": setting, "rows": [asdict(rate) for rate in rates]}


def as_text(rates: list[Rate]) -> str:
    """One line a case, with the pass's share of the slower half and of the forward."""
    lines = []
    for forward, pictures, both in zip(rates[0::3], rates[1::3], rates[2::3], strict=True):
        halves = (forward.images_per_s, pictures.images_per_s)
        shares = (both.images_per_s / forward.images_per_s, both.images_per_s / min(halves))
        lines.append(
            (
                both.backbone,
                str(both.workers),
                *(f"{each:.0f}" for each in (*halves, both.images_per_s)),
                *(f"{x:.2f}" for x in shares),
            )
        )
    return aligned(("backbone", "workers", FORWARD, PICTURES, BOTH, "share of forward", "of the slower half"), lines)
