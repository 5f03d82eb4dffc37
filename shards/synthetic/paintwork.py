"""Textures of vehicles: paint, glass, lamps, grilles, plates, wheels, doors and marks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from shards.synthetic.cloth import contrast, logo, stamp
from shards.synthetic.draw import Colour, clouds, to_pixels

SCALE = 36  # texture pixels a metre
DARK = (26, 27, 30)

# Paints with how common they are: most vehicles are white, black, grey or silver.
PAINTS: tuple[tuple[Colour, float], ...] = (
    ((222, 224, 226), 6), ((36, 37, 41), 5), ((108, 112, 118), 4), ((172, 176, 180), 4), ((44, 60, 104), 2),
    ((146, 38, 40), 2), ((166, 150, 122), 1), ((60, 84, 72), 0.7), ((198, 168, 62), 0.7),
)  # fmt: skip


@dataclass(frozen=True)
class Paint:
    """The choices that all surfaces of one vehicle share."""

    body: Colour
    roof: Colour
    trim: Colour  # bumpers and sills
    accent: Colour
    glass: Colour
    lamp: int  # shape of the headlamps and tail lamps
    grille: int
    plate: Colour
    dirt: float


def sheet(
    random: np.random.Generator, paint: Paint, colour: Colour, width: int, height: int, top: float, low: float
) -> Image.Image:
    """Painted metal with brightness going from `top` to `low` downwards, smooth reflections and dirt: RGBA."""
    ramp = np.linspace(top, low, height, dtype=np.float32)[:, None]
    field = ramp + 0.07 * clouds(random, height, width, 16) - paint.dirt * (clouds(random, height, width, 6) > 0.35)
    return Image.fromarray(to_pixels(np.array(colour, np.float32) * field[:, :, None])).convert("RGBA")


def glass(random: np.random.Generator, paint: Paint, width: int, height: int) -> Image.Image:
    """Dark glass that mirrors a bright sky towards its top and along one slant."""
    x, y = np.arange(width)[None, :] / width, np.arange(height)[:, None] / height
    slant = x * 0.8 + y * 0.5
    start = random.uniform(0.1, 0.9)
    sky = 0.9 - 0.5 * y + 0.7 * ((slant > start) & (slant < start + 0.22)) + 0.2 * clouds(random, height, width, 16)
    return Image.fromarray(to_pixels(np.array(paint.glass, np.float32) * (0.6 + sky)[:, :, None])).convert("RGBA")


def front(random: np.random.Generator, paint: Paint, width: int, height: int) -> Image.Image:
    """Headlamps, grille and badge."""
    image = sheet(random, paint, paint.body, width, height, 1.08, 0.86)
    pen, w, h = ImageDraw.Draw(image), width, height
    half = int(w * (0.2, 0.26, 0.16)[paint.grille % 3])
    pen.rectangle([w // 2 - half, h // 4, w // 2 + half, h - 2], fill=DARK)
    for line in range(4):  # bars
        chrome = (150, 152, 156)
        if paint.grille < 3:
            pen.line([(w // 2 - half, h // 4 + line * h // 5), (w // 2 + half, h // 4 + line * h // 5)], fill=chrome)
        else:
            pen.line([(w // 2 - half + line * half // 2, h // 4), (w // 2 - half + line * half // 2, h)], fill=chrome)
    pen.ellipse([w // 2 - 3, h // 2 - 3, w // 2 + 3, h // 2 + 3], fill=(190, 192, 196))
    for side in (0, 1):
        inner, outer = (w * 0.24, 1) if side == 0 else (w * 0.76, w - 2)
        left, right = min(inner, outer), max(inner, outer)
        box = [left, h * 0.18, right, h * (0.72 if paint.lamp < 2 else 0.5)]
        if paint.lamp == 2:
            box = [(left + right) / 2 - h * 0.3, h * 0.2, (left + right) / 2 + h * 0.3, h * 0.8]
        shape = pen.rectangle if paint.lamp == 0 else pen.ellipse
        shape(box, fill=(206, 212, 216), outline=(60, 62, 66))
        middle = (box[0] + box[2]) / 2
        pen.ellipse([middle - 3, h * 0.3, middle + 3, h * 0.3 + 6], fill=(250, 250, 244), outline=(90, 92, 96))
    return image


def tail(random: np.random.Generator, paint: Paint, width: int, height: int) -> Image.Image:
    """Tail lamps, badge and number plate."""
    image = sheet(random, paint, paint.body, width, height, 1.02, 0.82)
    pen, w, h = ImageDraw.Draw(image), width, height
    reach = (0.2, 0.12, 0.26, 0.16)[paint.lamp]
    for left, right in ((1, w * reach), (w * (1 - reach), w - 2)):
        box = [left, h * 0.1, right, h * (0.5 if paint.lamp in (0, 2) else 0.9)]
        pen.rectangle(box, fill=(160, 26, 28), outline=(70, 14, 16))
        pen.rectangle([left + 2, (box[1] + box[3]) / 2, right - 2, box[3] - 1], fill=(206, 150, 130))
    pen.ellipse([w // 2 - 3, h * 0.1, w // 2 + 3, h * 0.1 + 5], fill=(200, 202, 206))
    plate_mark(random, image, paint, h * 0.45)
    return image


def bumper(random: np.random.Generator, paint: Paint, width: int, height: int, plate: bool) -> Image.Image:
    image = sheet(random, paint, paint.trim, width, height, 1.05, 0.6)
    pen = ImageDraw.Draw(image)
    pen.rectangle([width * 0.22, height * 0.5, width * 0.78, height * 0.85], fill=DARK)
    for lamp in (0.12, 0.88):
        pen.ellipse([width * lamp - 3, height * 0.45, width * lamp + 3, height * 0.45 + 5], fill=paint.accent)
    if plate:
        plate_mark(random, image, paint, height * 0.15)
    return image


def plate_mark(random: np.random.Generator, image: Image.Image, paint: Paint, top: float) -> None:
    left, row = image.width // 2 - 9, int(top)
    ImageDraw.Draw(image).rectangle([left, row, left + 18, row + 6], fill=paint.plate, outline=(40, 40, 44))
    stamp(image, random.random((2, 7)) < 0.6, (left + 2, row + 2, left + 17, row + 5), (40, 42, 60))


def wheel(random: np.random.Generator, accent: Colour) -> Image.Image:
    """A tyre with a rim of its own number and shape of spokes: RGBA, 40 pixels across."""
    size, middle = 80, 40
    image = Image.new("RGBA", (size, size), (20, 20, 22, 0))
    pen = ImageDraw.Draw(image)
    pen.ellipse([1, 1, size - 2, size - 2], fill=(24, 24, 26, 255))
    metal = ((190, 192, 196), (190, 192, 196), (116, 118, 122), (40, 40, 44), accent)[int(random.integers(5))]
    rim = int(random.integers(24, 30))
    pen.ellipse([middle - rim, middle - rim, middle + rim, middle + rim], fill=(52, 52, 56), outline=metal, width=3)
    spokes, thick = int(random.choice([4, 5, 6, 8, 10, 12])), int(random.integers(4, 9))
    if random.random() < 0.2:  # hub cap
        pen.ellipse([middle - rim + 3, middle - rim + 3, middle + rim - 3, middle + rim - 3], fill=metal)
    for spoke in range(spokes):
        angle = 2 * math.pi * spoke / spokes
        end = (middle + rim * math.sin(angle), middle - rim * math.cos(angle))
        pen.line([(middle, middle), end], fill=metal, width=thick)
    pen.ellipse([middle - 6, middle - 6, middle + 6, middle + 6], fill=(90, 92, 96))
    return image.resize((40, 40), Image.Resampling.BOX)


def marks(random: np.random.Generator, image: Image.Image, paint: Paint, count: int, largest: int) -> None:
    """Stickers, lettering and scratches anywhere on a surface."""
    for _ in range(count):
        width = int(random.integers(4, max(5, min(largest, image.width // 2))))
        height = int(random.integers(3, max(4, min(largest // 2, image.height * 2 // 3))))
        left = int(random.integers(2, max(3, image.width - width - 2)))
        top = int(random.integers(1, max(2, image.height - height - 1)))
        ink = paint.accent if random.random() < 0.6 else contrast(random, paint.body, PAINTS)
        stamp(
            image,
            logo(random, int(random.integers(2, 5)), int(random.integers(3, 9))),
            (left, top, left + width, top + height),
            ink,
        )


def side(
    random: np.random.Generator,
    paint: Paint,
    outline: list[tuple[float, float, float]],
    belt: float,
    wheels: tuple[float, float, float],
    windows: int,
) -> Image.Image:
    """The whole side, front to the left, from the roof to the ground: RGBA at SCALE pixels a metre.

    `outline` holds (forwards, up, half width) from the front bumper over the roof to the rear bumper; `wheels` the two
    axle positions and the radius; `windows` how many windows (0: a closed van body behind the door).
    """
    length, high = 2 * max(y for y, _, _ in outline), max(z for _, z, _ in outline)
    width, height = int(length * SCALE), int(high * SCALE)
    points = [((length / 2 - y) * SCALE, (high - z) * SCALE) for y, z, _ in outline]
    image = sheet(random, paint, paint.body, width, height, 1.0, 0.8)
    pen = ImageDraw.Draw(image)
    waist = (high - belt) * SCALE
    pen.line([(0, waist + 3), (width, waist + 3)], fill=tuple(min(255, c + 34) for c in paint.body), width=2)
    style = int(random.integers(6))
    if style == 0:
        pen.rectangle([0, waist + 12, width, waist + 12 + int(random.integers(3, 8))], fill=paint.accent)
    elif style == 1:
        pen.polygon(
            [(width * 0.3, height), (width * 0.45, waist), (width * 0.6, waist), (width * 0.45, height)],
            fill=paint.accent,
        )
    elif style == 2:
        pen.rectangle([0, (waist + height) / 2, width, height], fill=paint.trim)
    roof = [(x, y) for x, y in points if y < waist - 2]
    front_x, rear_x = min(x for x, _ in roof), max(x for x, _ in roof)
    pane = glass(random, paint, width, height)
    mask = Image.new("L", image.size)
    cut = ImageDraw.Draw(mask)
    base = [(x, waist) for x in (points[3][0] + 6, points[6][0] - 5)]
    top = 5 if roof else 0
    cut.polygon([base[0], (front_x + 3, top), (rear_x - 3, top), base[1]], fill=255)
    if windows == 0:
        cut.rectangle([front_x + 0.3 * (rear_x - front_x) + 10, 0, width, height], fill=0)
    for pillar in range(1, max(2, windows)):
        at = front_x + (rear_x - front_x) * pillar / max(2, windows)
        cut.rectangle([at - 2, 0, at + 1, height], fill=0)
    image.paste(pane, (0, 0), mask)
    for door in range(max(2, windows) + 1):
        at = front_x - 8 + (rear_x - front_x + 8) * door / max(2, windows)
        pen.line([(at, waist), (at, height - 12)], fill=tuple(c * 6 // 10 for c in paint.body))
        pen.rectangle([at - 10, waist + 6, at - 4, waist + 8], fill=paint.trim)
    lower = image.crop((0, int(waist) + 10, width, height - 14))
    marks(random, lower, paint, int(random.integers(0, 4)), 26)
    image.paste(lower, (0, int(waist) + 10))
    if windows == 0:
        panel = image.crop((width // 2, 8, width - 8, height - 22))
        marks(random, panel, paint, int(random.integers(1, 4)), 60)
        image.paste(panel, (width // 2, 8))
    pen.rectangle([0, height - 14, width, height], fill=tuple(c * 7 // 10 for c in paint.trim))
    for axle in wheels[:2]:
        middle, radius = (length / 2 - axle) * SCALE, wheels[2] * SCALE * 1.12
        pen.ellipse([middle - radius, height - 2.1 * radius, middle + radius, height - 0.1 * radius], fill=(14, 14, 16, 255))
    alpha = Image.new("L", image.size)
    ImageDraw.Draw(alpha).polygon(points, fill=255)
    image.putalpha(alpha)
    return image
