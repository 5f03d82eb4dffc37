"""Features of a split, taken by all ranks: each streams its shards once, several feature functions look at each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from vmreid.data.streams import Batch
from vmreid.evaluation.features import Features
from vmreid.progress import Reporter

ON_DEVICE = 16  # batches whose features leave the device at once; the host is at most twice as many ahead of it
KINDS = ("view", "type")
FeatureFunction = Callable[[torch.Tensor], torch.Tensor]  # uint8 [B, 3, H, W] to float [B, F]


@dataclass(frozen=True)
class Extracted:
    """One feature function's part on this rank: features, the pictures' index rows int64 [n], and by name (``view``, ``type``)
    the set's own numbers for them int64 [n], ``UNKNOWN`` where it states none."""

    features: Features
    rows: torch.Tensor
    kinds: Mapping[str, torch.Tensor] = field(default_factory=dict)


@torch.no_grad()
def extract(
    batches: Iterable[Batch],
    functions: Mapping[str, FeatureFunction],
    device: torch.device,
    batch_size: int,
    progress: Reporter | None,
) -> dict[str, Extracted]:
    """This rank's features by every function, in float32 on the CPU, in index order; none where there are no batches.

    ``batches`` have at most ``batch_size`` pictures, on ``device``; a function gets as many at once, fewer in the end.
    """
    waiting = {name: list[torch.Tensor]() for name in functions}
    host = _Host(device)
    numbers = [torch.zeros(5, 0, dtype=torch.int64)]

    def images() -> Iterator[torch.Tensor]:
        for batch in batches:
            numbers.append(torch.stack([batch.ids_B, batch.camids_B, batch.rows_B, batch.views_B, batch.types_B]))
            yield batch.images_BCHW

    for number, image_BCHW in enumerate(_filled(images(), batch_size), 1):
        for name, function in functions.items():
            waiting[name].append(function(image_BCHW).float())
        if number % ON_DEVICE == 0:
            host.send(waiting)
        if progress:
            progress.advance()
    host.send(waiting)
    numbers_5N = torch.cat(numbers, dim=1)
    order = numbers_5N[2].argsort()
    ids, camids, row, view, kind = numbers_5N[:, order]
    result = {}
    parts = host.received()
    for name in functions:
        feature_NF = in_order(parts[name], order) if name in parts else torch.zeros(0, 0)
        result[name] = Extracted(Features(feature_NF, ids, camids), row, dict(zip(KINDS, (view, kind), strict=True)))
    return result


def in_order(parts: list[torch.Tensor], order_N: torch.Tensor) -> torch.Tensor:
    """``torch.cat(parts)[order_N]``, which would hold all features three times; here ``parts`` loses each once it is copied."""
    feature_NF = parts[0].new_empty(len(order_N), parts[0].shape[1])
    for places in reversed(torch.split(order_N.argsort(), [len(part) for part in parts])):
        feature_NF[places] = parts.pop()
    return feature_NF


def _filled(parts: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The same rows, ``size`` at once: each loader's worker ends with fewer."""
    held: list[torch.Tensor] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= size:
            rows = held[0] if len(held) == 1 else torch.cat(held)
            yield rows[:size]
            held = [rows[size:]] if len(rows) > size else []
    if held:
        yield torch.cat(held)


class _Host:
    """Takes features from a device, which goes on with the next ones meanwhile: what is sent is put away when more is."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._coming: dict[str, torch.Tensor] = {}  # from a GPU, in page-locked memory, of which there is little
        self._all_there: torch.cuda.Event | None = None

    def send(self, waiting: Mapping[str, list[torch.Tensor]]) -> None:
        """Empty the lists of features by name."""
        self._put_away()
        for name, features in waiting.items():
            if features:
                self._coming[name] = torch.cat(features).to("cpu", non_blocking=True)
                features.clear()
        if self._device.type == "cuda":
            self._all_there = torch.cuda.current_stream(self._device).record_event()

    def received(self) -> dict[str, list[torch.Tensor]]:
        """By name, all that were sent, in this order."""
        self._put_away()
        return self._parts

    def _put_away(self) -> None:
        if self._all_there:
            self._all_there.synchronize()
        for name, features in self._coming.items():
            self._parts.setdefault(name, []).append(features.clone() if self._all_there else features)
        self._coming.clear()
