"""Transforms: repeatable from a seed whatever else draws, gone when switched off, each doing what its name says."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch
from PIL import Image
from small_set import picture_bytes

from vmreid.data.pictures import decode
from vmreid.data.transforms import FILL, TrainTransform, resize
from vmreid.recipes import load_recipe
from vmreid.recipes.schema import Augment

SIZE = (32, 16)
OFF = Augment(crop_scale=(1, 1), flip=0, colour_jitter=0)
MILD = Augment(crop_scale=(0.8, 1.0), flip=0.5, colour_jitter=0.1)
STRONG = load_recipe("strong", {}, []).data.augment
SEEDS = [(0, epoch, row, 0) for epoch in range(4) for row in range(10)]


@pytest.fixture
def picture() -> Image.Image:
    return decode(picture_bytes(0, 0), "picture").resize((60, 90))


def seen(transform: TrainTransform, picture: Image.Image) -> set[bytes]:
    return {transform(picture, seed).numpy().tobytes() for seed in SEEDS}


def difference(image_CHW: torch.Tensor, picture: Image.Image) -> float:
    """From the plain resize, 0 to 255."""
    return float((image_CHW.float() - resize(picture, SIZE).float()).abs().mean())


@pytest.mark.parametrize("shape", [(60, 90), (16, 32), (1, 1), (300, 20), (7, 400)])
def test_shape_and_type(picture: Image.Image, shape: tuple[int, int]) -> None:
    for image_CHW in (TrainTransform(SIZE, MILD)(picture.resize(shape), (0,)), resize(picture.resize(shape), SIZE)):
        assert image_CHW.shape == (3, *SIZE)
        assert image_CHW.dtype == torch.uint8


@pytest.mark.parametrize("augment", [MILD, STRONG])
def test_the_seed_decides(picture: Image.Image, augment: Augment) -> None:
    first, again = TrainTransform(SIZE, augment), TrainTransform(SIZE, augment)
    torch.manual_seed(5)
    pixels = [first(picture, seed) for seed in SEEDS]
    for draw in (torch.manual_seed, random.seed, np.random.seed):
        draw(6)
    assert all(torch.equal(again(picture, seed), image) for seed, image in zip(SEEDS[::-1], pixels[::-1], strict=True))
    assert len(seen(first, picture)) == len(SEEDS)


def test_no_generator_moves(picture: Image.Image) -> None:
    torch.manual_seed(5)
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()]  # type: ignore[index, union-attr]
    before = picture.tobytes()
    seen(TrainTransform(SIZE, STRONG), picture)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert [random.getstate(), np.random.get_state()[1].tobytes()] == states[1:]  # type: ignore[index, union-attr]
    assert picture.tobytes() == before


@pytest.mark.parametrize(
    ("recipe", "digest"),
    [("demo", "22e68b56be3a53e0"), ("note", "64cf69a374839d29"), ("vehicle_khoa", "2b55491e38b43084")],
)
def test_the_pixels_of_the_mild_recipes_are_pinned(recipe: str, digest: str) -> None:
    """Runs made before are repeated bit for bit. Drawn by numpy, scaled by Pillow: no JPEG, whose pixels libraries round."""
    data = load_recipe(recipe, {}, []).data
    transform, pixels = TrainTransform(data.image_size, data.augment), hashlib.sha256()
    for number, size in enumerate([(60, 90), (128, 256), (96, 48), (300, 500), (7, 40), (1, 1)]):
        noise = np.random.default_rng(number).integers(0, 256, (8, 6, 3), np.uint8)
        picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        for epoch in range(4):
            pixels.update(transform(picture, (0, epoch, number, 0)).numpy().tobytes())
    assert pixels.hexdigest()[:16] == digest


def test_each_part_changes_the_picture(picture: Image.Image) -> None:
    crops = seen(TrainTransform(SIZE, Augment(crop_scale=(0.8, 1.0), flip=0, colour_jitter=0)), picture)
    colours = seen(TrainTransform(SIZE, Augment(crop_scale=(1, 1), flip=0, colour_jitter=0.1)), picture)
    assert min(len(crops), len(colours)) > len(SEEDS) - 3  # two of these crops may agree
    flips = TrainTransform(SIZE, Augment(crop_scale=(1, 1), flip=0.5, colour_jitter=0))
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped = [difference(flips(picture, seed), mirrored) < difference(flips(picture, seed), picture) for seed in SEEDS]
    assert 10 < sum(flipped) < 30


def test_switched_off_it_is_the_plain_resize(picture: Image.Image) -> None:
    transform = TrainTransform(SIZE, OFF)
    assert all(difference(transform(picture, seed), picture) == 0 for seed in SEEDS)


def test_mild_augmentation_stays_mild(picture: Image.Image) -> None:
    upright = TrainTransform(SIZE, Augment(crop_scale=(0.8, 1.0), flip=0, colour_jitter=0.1))
    plain = resize(picture, SIZE).float()
    mean = torch.stack([upright(picture, seed).float() for seed in SEEDS]).mean(0)
    assert torch.corrcoef(torch.stack([mean.flatten(), plain.flatten()]))[0, 1] > 0.9


def changed(part: dict[str, float], picture: Image.Image) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The plain resize, and what one part alone makes of it, for each seed."""
    transform = TrainTransform(SIZE, OFF.model_copy(update=part))
    return resize(picture, SIZE), [transform(picture, seed) for seed in SEEDS]


def box_of(changed_HW: torch.Tensor) -> tuple[slice, slice]:
    rows, columns = changed_HW.any(1).nonzero(), changed_HW.any(0).nonzero()
    return slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)


def test_padding_moves_the_picture_within_a_black_border(picture: Image.Image) -> None:
    plain_CHW, images = changed({"pad": 3}, picture)
    border_CHW = torch.nn.functional.pad(plain_CHW, (3, 3, 3, 3))
    places = set()
    for image_CHW in images:
        fits = [
            (y, x) for y in range(7) for x in range(7) if torch.equal(image_CHW, border_CHW[:, y : y + SIZE[0], x : x + SIZE[1]])
        ]
        assert len(fits) == 1
        places.update(fits)
    assert {y for y, _ in places} == {x for _, x in places} == set(range(7))


@pytest.mark.parametrize("part", ["erasing", "local_grayscale"])
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_a_rectangle_is_erased_or_turns_grey_and_the_rest_stays(picture: Image.Image, part: str, probability: float) -> None:
    plain_CHW, images = changed({part: probability}, picture)
    grey_HW = torch.from_numpy(np.asarray(Image.fromarray(plain_CHW.permute(1, 2, 0).numpy()).convert("L")).copy())
    expected_CHW = torch.tensor(FILL)[:, None, None].expand(3, *SIZE) if part == "erasing" else grey_HW.expand(3, *SIZE)
    shares = []
    for image_CHW in images:
        changed_HW = (image_CHW != plain_CHW).any(0)
        if changed_HW.any():
            box = box_of(changed_HW)
            assert torch.equal(image_CHW[:, *box], expected_CHW[:, *box].to(torch.uint8))
            shares.append(float(changed_HW.float().mean()))
    assert len(shares) == len(SEEDS) if probability == 1 else 10 < len(shares) < 30
    assert 0.01 < min(shares) < 0.1
    assert 0.3 < max(shares) < 0.45


def test_rand_augment_changes_some_pictures(picture: Image.Image) -> None:
    plain_CHW, images = changed({"rand_augment": 0.5}, picture)
    assert 8 < sum(not torch.equal(image_CHW, plain_CHW) for image_CHW in images) < 30
    assert len({image_CHW.numpy().tobytes() for image_CHW in images}) > 8
