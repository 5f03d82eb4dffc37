"""Training: what is set up once, and the loop."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from vmreid.data.ranges import JoinedRanges
from vmreid.data.streams import Batch, TrainStream
from vmreid.data.transforms import TrainTransform
from vmreid.distributed import Place, from_rank_0
from vmreid.engine.checkpoint import TrainingState, consolidated_weights, load_checkpoint, save_checkpoint, state_of
from vmreid.engine.deepspeed_config import accumulation_steps, autocasts, precision_name, with_derived_keys, zero_stage
from vmreid.engine.growth import carry_optimizer, fill, phases_of
from vmreid.engine.guard import keep_fault, locate, non_finite, plain_copy
from vmreid.engine.judge_checkpoint import judge_newest
from vmreid.engine.monitors import Monitor
from vmreid.engine.prepare import Plan, identity_batches
from vmreid.engine.recompute import recompute_blocks
from vmreid.engine.start import end_engine, make_engine, take_step
from vmreid.engine.step_log import StepLog, StepLogger, StepTaken, batch_digest
from vmreid.engine.stop import StopWish
from vmreid.engine.training_module import StepResult, TrainingModule
from vmreid.models import BACKBONES, ReIDModel, build_backbone
from vmreid.models.registry import load_weights
from vmreid.optim import build_optimizer, learning_rate
from vmreid.precision import computes_bf16


class Trainer:
    """All ranks. One run from its plan: model, engine, data, and the step it stands at."""

    def __init__(self, plan: Plan, place: Place) -> None:
        self.plan, self.place, recipe = plan, place, plan.recipe
        if recipe.train.deterministic:
            torch.use_deterministic_algorithms(True)
        seed_everything(recipe.seed)
        indexes = [each.train_index() for each in plan.sets]
        self.batches = identity_batches(recipe, indexes, plan.sets)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.steps = recipe.train.epochs * self.steps_per_epoch
        self.accumulation = accumulation_steps(plan.deepspeed)
        self.autocast = autocasts(plan.deepspeed) and computes_bf16(place.device)
        state = state_of(plan.checkpoint) if plan.checkpoint else None
        self.depth = state.depth if state else recipe.model.depth_in(0)
        model, self.weights_report = build_model(plan, self.batches.classes, self.depth)
        self.engine = self._make_engine(model, plan.form is not None)
        self.step = 0
        if plan.checkpoint:
            self.step = load_checkpoint(self.engine, plan.checkpoint, plan.form).step
        self._grow_if_due()
        transform = TrainTransform(recipe.data.image_size, recipe.data.augment)
        ranges = JoinedRanges([each.train_ranges(index) for each, index in zip(plan.sets, indexes, strict=True)])
        self.stream = TrainStream(
            self.batches, ranges, transform, rank=place.rank, world=place.world, accumulation=self.accumulation,
            begin=self.step, end=self.steps, skip=recipe.data.skip_unreadable,
        )  # fmt: skip

    def _make_engine(self, model: ReIDModel, universal: bool = False) -> Any:
        """All ranks. The engine around a model; ``universal``: to load a form for another number of ranks."""
        recipe, plan, device = self.plan.recipe, self.plan, self.place.device
        model.to(device)
        if recipe.train.recompute:
            recompute_blocks(model.backbone)
        config = with_derived_keys(plan.deepspeed, recipe.train.batch_size, self.place.world, computes_bf16(device))
        self.clipping = config["gradient_clipping"]
        if universal:
            config["checkpoint"] = {"load_universal": True}
        module = TrainingModule(model, recipe.loss, recipe.train.compile)
        optimizer = build_optimizer(module, recipe.optim, phases_of(recipe, self.depth, plan.scan_backend))
        return make_engine(module, optimizer, config)

    def _grow_if_due(self) -> None:
        """All ranks. Where the next step belongs to a phase of more blocks, go on with a model and an engine of those."""
        depth = self.plan.recipe.model.depth_in(self.step // self.steps_per_epoch)
        if depth == self.depth or self.step == self.steps:
            return
        before, weights = self.engine, from_rank_0(consolidated_weights(self.engine))
        if self.place.rank == 0:
            print(f"after {self.step} steps: {self.depth} blocks become {depth}", flush=True)
        self.depth = depth
        seed_everything(self.plan.recipe.seed, depth or 0)
        model, _ = build_model(self.plan, self.batches.classes, depth)
        fill(model, weights)
        self.engine = self._make_engine(model)
        carry_optimizer(before, self.engine)
        end_engine(before)
        del before
        gc.collect()  # it holds itself by cycles, for which the next steps would have no room

    def train(self, logger: StepLogger | None) -> str:
        """All ranks. Train from ``self.step`` to the end, or until a signal asks for a checkpoint and an early end; its name, or
        nothing. Rank 0 writes ``log.jsonl`` and calls ``logger``."""
        with StopWish() as wish:
            return self._train(logger, wish)

    def _train(self, logger: StepLogger | None, wish: StopWish) -> str:
        recipe = self.plan.recipe
        loader = self.stream.loader(recipe.data.workers, self.place.device)
        log = StepLog(self.plan, self.step, self.steps, logger) if self.place.rank == 0 else None
        taken: StepTaken | None = None
        asked = ""
        while self.step < self.steps and not asked:
            wish.vote()
            begin = time.monotonic()
            seed_everything(recipe.seed, self.step, self.place.rank)
            rate = learning_rate(recipe.optim, self.step, self.steps, self.steps_per_epoch)
            monitor = self._monitor()
            first = self._forward(loader, monitor)
            if taken:
                self._account(taken, log)  # while the device is at the next forward
            batches, results, gradient_norm = self._finish_step(first, loader, rate, monitor)
            self.step += 1
            taken = StepTaken(self.step, rate, results, gradient_norm, batches, time.monotonic() - begin, monitor)
            asked = wish.agreed()
            if asked or self._saves():
                self._account(taken, log)
                taken = None
                if log:
                    log.sync()
                state = TrainingState(self.step, self.place.world, self.plan.data_digest, self.depth)
                save_checkpoint(self.engine, self.plan.folder, state, recipe.train.keep_checkpoints)
                self._judge(log)
            self._grow_if_due()
        if log:
            log.close()
        return asked if self.step < self.steps else ""

    def _saves(self) -> bool:
        """Whether a checkpoint is due after ``self.step`` steps."""
        train = self.plan.recipe.train
        periods = (train.checkpoint_epochs * self.steps_per_epoch, train.checkpoint_steps or self.steps, self.steps)
        return self._judges() or any(self.step % period == 0 for period in periods)

    def _judges(self) -> bool:
        """Whether the checkpoint after ``self.step`` steps is to be evaluated."""
        epochs = self.plan.recipe.evaluation.every_epochs
        return epochs is not None and self.step % (epochs * self.steps_per_epoch) == 0

    def _judge(self, log: StepLog | None) -> None:
        """All ranks. Evaluate the checkpoint just saved, where that is due."""
        if self._judges() and self.plan.judged_on:
            scores = judge_newest(self.plan, self.plan.judged_on, self.place)
            if log:
                log.judged(self.step, self.step // self.steps_per_epoch, scores)

    def _monitor(self) -> Monitor | None:
        """All ranks. One where the layers are to be looked at in the next step."""
        every = self.plan.recipe.train.monitor_steps
        if every is None or self.step % every:
            return None
        return Monitor(self.engine.module, self.autocast)

    def _forward(self, loader: Iterator[Batch], monitor: Monitor | None = None) -> tuple[Batch, StepResult]:
        """All ranks. The next micro-batch and its losses, which nobody has waited for."""
        batch = to_device(next(loader), self.place.device)
        if monitor:
            monitor.forward(batch)
        return batch, self.engine(batch)

    def _finish_step(
        self, first: tuple[Batch, StepResult], loader: Iterator[Batch], rate: float, monitor: Monitor | None
    ) -> tuple[list[Batch], list[StepResult], torch.Tensor | float]:
        """All ranks. What is left of an optimizer step; micro-batches, their results, and the gradient norm before clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        batches, results = [], []
        for number in range(self.accumulation):
            batch, result = self._forward(loader) if number else first
            if not math.isfinite(result.loss.item()):  # equal on all ranks, so all stop
                self._stop(self.step + 1, [batch], [result], "the loss")
            self.engine.backward(result.loss)
            if monitor and number + 1 == self.accumulation:
                monitor.backward()
            norm = take_step(self.engine, self.clipping)
            batches.append(batch)
            results.append(result)
        if monitor:
            monitor.after()
        return batches, results, norm

    def _account(self, taken: StepTaken, log: StepLog | None) -> None:
        """All ranks. Stop where a step's gradient was not finite, or write its numbers on rank 0."""
        norm = float(taken.gradient_norm)
        if not math.isfinite(norm):
            self._stop(taken.step, taken.batches, taken.results, "the gradient's norm")
        if log:
            epoch = (taken.step - 1) // self.steps_per_epoch
            log.write(taken, epoch, norm, self.plan.recipe.train.batch_size / taken.seconds)
            if taken.monitor:
                log.looked(taken.step, taken.monitor.numbers())

    def _stop(self, step: int, batches: list[Batch], results: list[StepResult], seen_in: str) -> NoReturn:
        """All ranks. End at a non-finite value that was ``seen_in`` what follows from it; find where it began.

        The weights are those before the step: neither DeepSpeed nor ``take_step`` takes one with such a gradient.
        """
        weights = from_rank_0(consolidated_weights(self.engine))
        settings = self.plan.recipe.model.at_depth(self.depth)
        recipe = self.plan.recipe.model_copy(update={"model": settings})
        module = plain_copy(recipe, self.plan.scan_backend, weights, self.place.device)
        found = (
            (batch, result, fault)
            for batch, result in zip(batches, results, strict=True)
            if (fault := locate(module, batch, self.autocast))
        )
        batch, result, fault = next(found, (batches[-1], results[-1], None))
        place = keep_fault(self.plan.folder, step, fault, seen_in, batch, weights, batch_digest([result]), self.depth)
        raise non_finite(step, fault, seen_in, place)

    def description(self) -> list[str]:
        """What will run: the log's first lines."""
        recipe, plan = self.plan.recipe, self.plan
        precision = precision_name(plan.deepspeed, computes_bf16(self.place.device))
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.module.model.parameters())
        return [
            f"{recipe.model.backbone}: {parameters / 1e6:.1f} M parameters, {self.weights_report}",
            *(each.description() for each in plan.sets),
            f"batch {recipe.train.batch_size} = {self.batches.identities} identities x {self.batches.pictures} pictures on "
            f"{self.place.world} ranks x {self.accumulation} accumulation steps",
            f"{self.steps} steps = {recipe.train.epochs} epochs x {self.steps_per_epoch}, from step {self.step}",
            f"DeepSpeed ZeRO-{zero_stage(plan.deepspeed)}, {precision}, on {self.place.device} ({plan.deepspeed_path})",
            *([f"selective scan: {plan.scan_reason}"] if BACKBONES[recipe.model.backbone].d_state else []),
        ]


def build_model(plan: Plan, classes: int, depth: int | None) -> tuple[ReIDModel, str]:
    """The model from torch's current random state, with published weights where the recipe names them, and a report.

    ``depth``: of a model that grows."""
    settings = plan.recipe.model.at_depth(depth)
    backbone = build_backbone(settings, plan.recipe.data.image_size, plan.scan_backend)
    report = load_weights(backbone, Path(settings.weights)) if settings.weights else "from scratch"
    return ReIDModel(backbone, classes, plan.recipe.data.mean, plan.recipe.data.std), report


def seed_everything(*numbers: int) -> None:
    """Set Python's, numpy's and torch's generators from ``numbers``: the random state is a function of the step."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on ``device``."""
    return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(batch).items()})
