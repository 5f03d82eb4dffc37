"""Backgrounds: the places a camera watches, a wall above a ground in perspective, of which each picture cuts a part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from shards.synthetic.draw import Colour, Floats, generator, homography, pick, smooth, to_pixels

HIGH, WIDE = 448, 320
_TAG = 3

WALLS: tuple[Colour, ...] = (
    (150, 142, 130), (120, 84, 70), (172, 168, 158), (98, 104, 110), (188, 178, 152), (84, 92, 84), (130, 134, 142),
    (64, 66, 72), (160, 122, 98),
)  # fmt: skip
GROUNDS: tuple[Colour, ...] = (
    (104, 104, 106),
    (132, 128, 122),
    (84, 84, 88),
    (150, 144, 132),
    (118, 106, 92),
    (164, 162, 158),
)


def scene(seed: int, camera: int, road: bool) -> Image.Image:
    """The place that this camera watches, HIGH x WIDE: a street for vehicles (`road`), any place for people."""
    random = generator(seed, _TAG, camera, int(road))
    horizon = int(random.integers(70, 150) if road else random.integers(110, 240))
    image = Image.new("RGB", (WIDE, HIGH))
    image.paste(_wall(random, horizon), (0, 0))
    image.paste(_ground(random, HIGH - horizon, road), (0, horizon))
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, horizon - 3, WIDE, horizon + 1], fill=tuple(int(v) for v in random.integers(50, 120, 3)))  # kerb
    if random.random() < 0.4:  # planting in front of the wall
        _foliage(random, image, horizon)
    for _ in range(int(random.integers(1, 5))):  # posts, bins, boxes
        x, wide, tall = int(random.integers(0, WIDE)), int(random.integers(4, 26)), int(random.integers(20, 120))
        shade = int(random.integers(40, 150))
        foot = horizon + int(random.integers(2, 30))
        pen.rectangle([x, foot - tall, x + wide, foot], fill=(shade, shade + int(random.integers(-14, 15)), shade))
        pen.rectangle([x, foot - tall, x + wide // 3, foot], fill=(shade + 24, shade + 22, shade + 20))
    light = 1 + 0.22 * smooth(random, HIGH, WIDE, 5, 4)
    lit = Image.fromarray(to_pixels(np.asarray(image) * light[:, :, None]))
    return lit.filter(ImageFilter.GaussianBlur(random.uniform(0.4, 1.6)))


def _base(random: np.random.Generator, palette: tuple[Colour, ...]) -> NDArray[np.float64]:
    return np.array(palette[int(random.integers(len(palette)))]) + random.integers(-14, 15, 3)


def _grain(random: np.random.Generator, high: int, wide: int, coarse: float, fine: float) -> Floats:
    return (
        1
        + coarse * smooth(random, high, wide, 6, 7)
        + fine * (0.5 * smooth(random, high, wide, high // 4, wide // 4) + smooth(random, high, wide, high, wide)) / 1.5
    ).astype(np.float32)


def _wall(random: np.random.Generator, high: int) -> Image.Image:
    base = _base(random, WALLS)
    y, x = np.arange(high)[:, None], np.arange(WIDE)[None, :]
    kind = int(random.integers(6))
    tone = _grain(random, high, WIDE, 0.1, 0.06)
    if kind == 0:  # bricks
        tall = int(random.integers(7, 14))
        shift = (y // tall % 2) * tall
        tone = tone * np.where((y % tall < 2) | ((x + shift) % (2 * tall) < 2), 1.25, 1.0).astype(np.float32)
    elif kind == 1:  # panels
        wide = int(random.integers(36, 80))
        tone = tone * np.where((x % wide < 2) | (y % wide < 2), 0.6, 1.0).astype(np.float32)
    elif kind == 2:  # shutters
        tone = tone * np.where(y % 9 < 3, 0.78, 1.0).astype(np.float32)
    elif kind == 3:  # railings before something dark
        tone = tone * np.where(x % 14 < 4, 1.3, 0.55).astype(np.float32)
    image = Image.fromarray(to_pixels(base.astype(np.float32) * tone[:, :, None]))
    pen = ImageDraw.Draw(image)
    if kind in (0, 4, 5):  # windows, doors or a shop front
        wide, gap = int(random.integers(30, 90)), int(random.integers(10, 40))
        top, low = int(high * random.uniform(0.05, 0.3)), int(high * random.uniform(0.65, 1.0))
        glass = random.integers(40, 190, 3)
        for left in range(int(random.integers(-40, 10)), WIDE, wide + gap):
            tint = glass + random.integers(-30, 31)
            pen.rectangle(
                [left, top, left + wide, low],
                fill=tuple(int(v) for v in np.clip(tint, 20, 230)),
                outline=(60, 58, 56),
                width=3,
            )
            pen.polygon(
                [(left + 4, low), (left + wide // 2, top), (left + wide * 3 // 4, top), (left + wide // 3, low)],
                fill=tuple(int(v) for v in np.clip(tint + 24, 20, 240)),
            )
            pen.line([(left + wide // 2, top), (left + wide // 2, low)], fill=(60, 58, 56), width=2)
    for _ in range(int(random.integers(0, 4))):  # posters and signs
        left, top = int(random.integers(0, WIDE)), int(random.integers(0, max(1, high - 30)))
        pen.rectangle(
            [left, top, left + int(random.integers(14, 50)), top + int(random.integers(10, 40))],
            fill=tuple(int(v) for v in int(random.integers(60, 190)) + random.integers(-30, 31, 3)),
        )
    return image


def _ground(random: np.random.Generator, high: int, road: bool) -> Image.Image:
    base, size = _base(random, GROUNDS), 384
    y, x = np.arange(size)[:, None], np.arange(size)[None, :]
    tone = _grain(random, size, size, 0.13, 0.14)
    kind = 0 if road else pick(random, (2, 3, 2, 1.5, 2))
    if kind in (1, 4):  # slabs, or polished tiles in two shades
        side = int(random.integers(20, 44))
        tone = tone * np.where((x % side < 2) | (y % side < 2), 0.72, 1.0).astype(np.float32)
        if kind == 4:
            tone = tone * np.where((x // side + y // side) % 2, 1.0, random.uniform(0.7, 0.95)).astype(np.float32)
    elif kind == 2:  # setts
        tone = tone * np.where((y % 12 < 2) | ((x + (y // 12 % 2) * 8) % 16 < 2), 0.7, 1.0).astype(np.float32)
    elif kind == 3:
        base = np.array([92.0, 106.0, 66.0]) + random.integers(-16, 17, 3)
    image = Image.fromarray(to_pixels(base.astype(np.float32) * tone[:, :, None]))
    pen = ImageDraw.Draw(image)
    if road or (kind == 0 and random.random() < 0.5):  # lane lines, crossing, patches
        shade = int(random.integers(170, 225))
        style = int(random.integers(4))
        first = int(random.integers(20, 200))
        if style in (0, 1):
            for start in range(0, size, 70 if style else size):
                pen.rectangle([first, start, first + 7, start + (36 if style else size)], fill=(shade, shade, shade - 12))
            pen.rectangle([first + 150, 0, first + 155, size], fill=(shade, shade - 20, shade - 90))
        elif style == 2:
            for start in range(0, size, 36):
                pen.rectangle([start, 180, start + 18, 330], fill=(shade, shade, shade - 8))
        for _ in range(3):
            left, top = int(random.integers(0, size)), int(random.integers(0, size))
            dark = tuple(int(v * 0.8) for v in np.clip(base, 0, 255))
            pen.ellipse([left, top, left + int(random.integers(10, 90)), top + int(random.integers(10, 60))], fill=dark)
    lean, spread = int(random.integers(-120, 121)), int(random.integers(60, 360))
    corners = [
        (-60.0, -2.0),
        (WIDE + 60.0, -2.0),
        (WIDE + 60.0 + spread + lean, float(high)),
        (-60.0 - spread + lean, float(high)),
    ]
    return image.transform((WIDE, high), Image.Transform.PERSPECTIVE, homography(corners, size, size), Image.Resampling.BILINEAR)


def _foliage(random: np.random.Generator, image: Image.Image, horizon: int) -> None:
    tall = int(random.integers(30, max(31, min(110, horizon))))
    leaves = smooth(random, tall, WIDE, tall // 4, WIDE // 5) + 0.6 * smooth(random, tall, WIDE, tall, WIDE)
    crown = np.linspace(-0.7, 1.2, tall)[:, None] + 0.5 * smooth(random, tall, WIDE, 2, 9)
    colour = np.array([70, 92, 52]) + random.integers(-18, 19, 3)
    green = to_pixels(colour.astype(np.float32) * (1 + 0.45 * leaves)[:, :, None])
    mask = Image.fromarray(((leaves * 0.5 + crown) > 0).astype(np.uint8) * 255)
    image.paste(Image.fromarray(green), (0, horizon - tall), mask)
