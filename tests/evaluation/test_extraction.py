"""Batches of any size become full ones, and every picture keeps its features, ids and place."""

from __future__ import annotations

import torch

from vmreid.data.streams import Batch
from vmreid.evaluation.extraction import KINDS, extract
from vmreid.report.measure import LiveBytes

SIZES = (3, 2, 4, 1, 4, 3)  # of what several workers give


def test_batches_are_filled_and_nothing_is_lost() -> None:
    generator = torch.Generator().manual_seed(0)
    total = sum(SIZES)
    images_BCHW = torch.randint(256, (total, 3, 2, 2), dtype=torch.uint8, generator=generator)
    rows_B = torch.randperm(total, generator=generator)
    numbers = [rows_B + 100 * kind for kind in range(7)]
    parts = [torch.split(each, SIZES) for each in (images_BCHW, *numbers)]
    batches = [Batch(image, id_, camid, row, *rest) for image, row, id_, camid, *rest in zip(*parts, strict=True)]
    seen: list[int] = []

    def features(image_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(len(image_BCHW))
        return image_BCHW.float().flatten(1)

    found = extract(batches, {"model": features}, torch.device("cpu"), 4, None)["model"]
    assert seen == [4, 4, 4, 4, 1]
    order = rows_B.argsort()
    assert torch.equal(found.rows, torch.arange(total))
    assert torch.equal(found.features.features, images_BCHW.float().flatten(1)[order])
    assert torch.equal(found.features.pids, torch.arange(total) + 100)
    assert torch.equal(found.features.camids, torch.arange(total) + 200)
    assert {name: values[0].item() for name, values in found.kinds.items()} == dict(zip(KINDS, (500, 600), strict=True))


def test_features_do_not_lie_in_memory_three_times() -> None:
    """Parts and their ordered copy at most, of which the one shrinks as the other is written to."""
    total, size, dim = 256, 4, 4096
    numbers_7B = torch.arange(total).flip(0).expand(7, -1)
    images_BCHW = torch.zeros(total, 3, 1, 1, dtype=torch.uint8)
    batches = [
        Batch(image, *parts) for image, *parts in zip(*(each.split(size) for each in (images_BCHW, *numbers_7B)), strict=True)
    ]
    with LiveBytes() as live:
        found = extract(batches, {"model": lambda image_BCHW: torch.ones(len(image_BCHW), dim)}, torch.device("cpu"), size, None)
    features = found["model"].features.features.nbytes
    assert features == total * dim * 4
    assert live.peak < 2.2 * features
