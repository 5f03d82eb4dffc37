"""Transforms: repeatable from a seed, gone when switched off; decoding of what people have."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_set import picture_bytes

from vmreid.data.transforms import TrainTransform, decode, resize
from vmreid.errors import UserError
from vmreid.recipes.schema import Augment

SIZE = (32, 16)
MILD = Augment(crop_scale=(0.8, 1.0), flip=0.5, colour_jitter=0.1)
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


def test_the_seed_decides(picture: Image.Image) -> None:
    first, again = TrainTransform(SIZE, MILD), TrainTransform(SIZE, MILD)
    torch.manual_seed(5)
    pixels = [first(picture, seed) for seed in SEEDS]
    torch.manual_seed(6)
    assert all(torch.equal(again(picture, seed), image) for seed, image in zip(SEEDS[::-1], pixels[::-1], strict=True))
    assert len(seen(first, picture)) == len(SEEDS)


def test_each_part_changes_the_picture(picture: Image.Image) -> None:
    crops = seen(TrainTransform(SIZE, Augment(crop_scale=(0.8, 1.0), flip=0, colour_jitter=0)), picture)
    colours = seen(TrainTransform(SIZE, Augment(crop_scale=(1, 1), flip=0, colour_jitter=0.1)), picture)
    assert min(len(crops), len(colours)) > len(SEEDS) - 3  # two of these crops may agree
    flips = TrainTransform(SIZE, Augment(crop_scale=(1, 1), flip=0.5, colour_jitter=0))
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped = [difference(flips(picture, seed), mirrored) < difference(flips(picture, seed), picture) for seed in SEEDS]
    assert 10 < sum(flipped) < 30


def test_switched_off_it_is_the_plain_resize(picture: Image.Image) -> None:
    transform = TrainTransform(SIZE, Augment(crop_scale=(1, 1), flip=0, colour_jitter=0))
    assert max(difference(transform(picture, seed), picture) for seed in SEEDS) < 4  # rounding may cut one row off
    assert min(difference(transform(picture, seed), picture) for seed in SEEDS) == 0


def test_mild_augmentation_stays_mild(picture: Image.Image) -> None:
    upright = TrainTransform(SIZE, Augment(crop_scale=(0.8, 1.0), flip=0, colour_jitter=0.1))
    plain = resize(picture, SIZE).float()
    mean = torch.stack([upright(picture, seed).float() for seed in SEEDS]).mean(0)
    assert torch.corrcoef(torch.stack([mean.flatten(), plain.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("WEBP", "RGB"), ("BMP", "RGB")],
)
def test_other_kinds_decode_to_rgb(kind: str, mode: str) -> None:
    picture = decode(picture_bytes(1, 2, kind, mode), "picture")
    assert (picture.mode, picture.size) == ("RGB", (24, 36))
    assert resize(picture, SIZE).shape == (3, *SIZE)


@pytest.mark.parametrize("data", [b"", b"not a picture", picture_bytes(0, 0)[:300], picture_bytes(0, 0, "PNG")[:300]])
def test_what_does_not_decode(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^x\.tar picture 7: does not decode as a picture .*shards\.verify") as caught:
        decode(data, "x.tar picture 7")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [10_000, 14_000])  # Pillow warns of the first and refuses the second
def test_decompression_bombs(side: int) -> None:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    with pytest.raises(UserError, match=r"^picture 7: does not decode.*pixels"):
        decode(buffer.getvalue(), "picture 7")


def test_damaged_bytes_raise_nothing_else() -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        for number in range(100):
            data = bytearray(picture_bytes(0, number % 5, kind))
            for place in random.integers(0, len(data), 3):
                data[place] = random.integers(0, 256)
            try:
                assert decode(bytes(data), "x").mode == "RGB"
            except UserError:
                continue
