"""Vehicles: an extruded outline of textured faces with wheels and fittings. Lengths are in metres."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from shards.synthetic import paintwork
from shards.synthetic.cloth import colour_of, contrast
from shards.synthetic.draw import Point, generator, pick
from shards.synthetic.paintwork import DARK, SCALE, Paint
from shards.synthetic.solids import Assembly, Box, Station, Vehicle

_TAG = 2

# kind: length, width, height, belt; then the lengths of hood, windscreen, roof and rear window as parts of the length.
KINDS = (
    (4.6, 1.80, 1.45, 0.95, 0.25, 0.16, 0.27, 0.14),  # saloon
    (4.0, 1.74, 1.50, 0.95, 0.21, 0.17, 0.42, 0.14),  # hatchback
    (4.6, 1.86, 1.72, 1.08, 0.21, 0.13, 0.53, 0.09),  # off-roader
    (4.9, 1.92, 2.05, 1.15, 0.11, 0.14, 0.70, 0.03),  # van
    (5.1, 1.86, 1.76, 1.10, 0.22, 0.12, 0.22, 0.03),  # pick-up
    (5.4, 2.00, 1.95, 1.10, 0.06, 0.08, 0.20, 0.01),  # lorry with a box
)


def build(seed: int, identity: int) -> Vehicle:
    """The vehicle of this identity: a pure function of (seed, identity)."""
    random = generator(seed, _TAG, identity)
    kind = pick(random, (4, 4, 4, 2.5, 1.5, 1.5))
    length, width, height, belt, hood, screen, roof, rear = KINDS[kind]
    length, width, height = (v * random.uniform(0.95, 1.05) for v in (length, width, height))
    hood, screen, roof = (v * random.uniform(0.9, 1.1) for v in (hood, screen, roof))
    paint = _paint(random)
    half, front, lean = width / 2, length / 2, random.uniform(0.74, 0.86)
    if kind in (3, 5):
        lean = 0.93
    hood_z = belt - random.uniform(0.1, 0.22)
    after = front - length * (hood + screen + roof)
    base = max(after - length * rear, -front + 0.12)
    outline = [
        (front - 0.06, 0.2, half * 0.9), (front, 0.5, half * 0.94), (front - 0.1, hood_z, half * 0.95),
        (front - length * hood, belt, half), (front - length * (hood + screen), height, half * lean),
        (after, height, half * lean), (base, belt, half), (-front + 0.06, belt - 0.04, half * 0.97),
        (-front, 0.56, half * 0.95), (-front + 0.06, 0.24, half * 0.92),
    ]  # fmt: skip
    radius = random.uniform(0.3, 0.36) * (1.1 if kind in (2, 4, 5) else 1.0)
    wheels = (front - 0.85, -front + random.uniform(0.75, 1.0), radius)
    whole = paintwork.side(random, paint, outline, belt, wheels, (2, 2, 3, int(random.integers(0, 2)) * 3, 1, 1)[kind])
    cut = int((max(z for _, z, _ in outline) - belt) * SCALE)
    upper = _framed(whole.crop((0, 0, whole.width, cut)))
    lower = _framed(whole.crop((0, cut, whole.width, whole.height - int(0.2 * SCALE))))
    assembly = Assembly()
    assembly.along(outline, [_framed(face) for face in _faces(random, paint, outline, kind)], paint.body)
    assembly.sides(outline, belt, upper, lower)
    assembly.wheels(half, wheels, paintwork.wheel(random, paint.accent))
    for box in _boxes(random, paint, outline, kind):
        assembly.box(box)
    return assembly.vehicle()


def _paint(random: np.random.Generator) -> Paint:
    body = colour_of(random, paintwork.PAINTS, 7)
    accent = contrast(random, body, paintwork.PAINTS)
    return Paint(
        body=body,
        roof=(accent if random.random() < 0.5 else DARK) if random.random() < 0.3 else body,
        trim=body if random.random() < 0.6 else (58, 60, 64),
        accent=accent,
        glass=((66, 74, 84), (40, 46, 54), (88, 98, 104))[int(random.integers(3))],
        lamp=int(random.integers(4)),
        grille=int(random.integers(5)),
        plate=((226, 226, 220), (212, 188, 80), (70, 96, 160))[pick(random, (4, 2, 1))],
        dirt=random.uniform(0, 0.16) if random.random() < 0.4 else 0.0,
    )


def _framed(image: Image.Image) -> Image.Image:
    """Clears the outermost pixels, so that a slanted edge comes out smooth."""
    alpha = image.getchannel("A")
    ImageDraw.Draw(alpha).rectangle([0, 0, image.width - 1, image.height - 1], outline=0)
    image.putalpha(alpha)
    return image


def _faces(random: np.random.Generator, paint: Paint, outline: list[Station], kind: int) -> list[Image.Image]:
    """Textures from the front bumper over the roof to the rear bumper."""
    width = int(outline[3][2] * 2 * SCALE)
    high = [max(8, int(SCALE * ((y1 - y0) ** 2 + (z1 - z0) ** 2) ** 0.5)) for (y0, z0, _), (y1, z1, _) in pairwise(outline)]
    hood = paintwork.sheet(random, paint, paint.body, width, high[2], 1.1, 0.98)
    pen = ImageDraw.Draw(hood)
    style = int(random.integers(7))
    if style == 0:
        for at in (0.36, 0.56):
            pen.rectangle([width * at, 0, width * (at + 0.08), high[2]], fill=paint.accent)
    elif style == 1:
        pen.rectangle([width * 0.38, high[2] * 0.4, width * 0.62, high[2] * 0.7], fill=DARK)
    elif style == 2:
        paintwork.marks(random, hood, paint, 1, 34)
    for at in (0.12, 0.88):
        pen.line([(width * at, high[2]), (width * (0.5 + (at - 0.5) * 0.8), 0)], fill=tuple(c * 8 // 10 for c in paint.body))
    screen = paintwork.glass(random, paint, width, high[3])
    pen = ImageDraw.Draw(screen)
    pen.rectangle([0, 0, width - 1, high[3] - 1], outline=tuple(c * 8 // 10 for c in paint.roof), width=2)
    pen.rectangle([3, high[3] - 6, width - 4, high[3] - 1], fill=(34, 34, 38))
    pen.rectangle([width // 2 - 4, 2, width // 2 + 4, 5], fill=(20, 20, 22))
    paintwork.marks(random, screen, paint, int(random.integers(0, 3)), 11)
    roof = paintwork.sheet(random, paint, paint.roof, width, high[4], 1.04, 1.0)
    pen = ImageDraw.Draw(roof)
    style = int(random.integers(5))
    if style == 0:
        pen.rectangle([width * 0.2, high[4] * 0.35, width * 0.8, high[4] * 0.9], fill=(30, 34, 40), outline=(80, 82, 86))
    elif style == 1:
        for at in range(4, width - 4, 8):
            pen.line([(at, 3), (at, high[4] - 3)], fill=tuple(c * 8 // 10 for c in paint.roof))
    elif style == 2:
        paintwork.marks(random, roof, paint, 1, 40)
    back = paintwork.glass(random, paint, width, high[5])
    pen = ImageDraw.Draw(back)
    pen.rectangle([0, 0, width - 1, high[5] - 1], outline=tuple(c * 8 // 10 for c in paint.body), width=3)
    pen.line([(width * 0.5, high[5] - 2), (width * 0.25, high[5] * 0.5)], fill=(20, 20, 22), width=2)
    paintwork.marks(random, back, paint, int(random.integers(0, 3)), 14)
    bed = paintwork.sheet(random, paint, DARK if kind in (4, 5) else paint.body, width, high[6], 1.0, 1.05)
    if kind == 4:
        ImageDraw.Draw(bed).rectangle([0, 0, width - 1, high[6] - 1], outline=paint.body, width=5)
    low = random.random() < 0.4
    return [
        paintwork.bumper(random, paint, width, high[0], True),
        paintwork.front(random, paint, width, high[1]),
        hood,
        screen,
        roof,
        back,
        bed,
        paintwork.tail(random, paint, width, high[7]),
        paintwork.bumper(random, paint, width, high[8], low),
    ]


def _boxes(random: np.random.Generator, paint: Paint, outline: list[Station], kind: int) -> list[Box]:
    """Mirrors, and what this vehicle carries on its roof or its bed."""
    (screen_y, belt, half), (roof_y, top, roof_half), (after, _, _) = outline[3], outline[4], outline[5]
    shell = paint.body if random.random() < 0.6 else DARK
    boxes = [
        Box(_ordered(s * (half - 0.02), s * (half + 0.2)), (screen_y - 0.3, screen_y - 0.18), (belt, belt + 0.17), shell)
        for s in (-1, 1)
    ]
    if kind == 5:
        tall, rear = random.uniform(2.3, 2.8), outline[8][0]
        colour = contrast(random, paint.body, paintwork.PAINTS) if random.random() < 0.5 else (216, 216, 212)
        panel = paintwork.sheet(random, paint, colour, 120, 80, 1.0, 0.92)
        paintwork.marks(random, panel, paint, int(random.integers(1, 4)), 60)
        return [*boxes, Box((-1.02, 1.02), (rear - 0.02, after - 0.05), (0.8, tall), colour, _framed(panel))]
    style = pick(random, (5, 2, 1.5, 1, 1, 1.5))
    grey = (60, 62, 66)
    if style in (1, 2):  # rails, perhaps with a luggage box
        for s in (-1, 1):
            edge = s * (roof_half - 0.1)
            boxes.append(Box(_ordered(edge - 0.03, edge + 0.03), (after + 0.1, roof_y - 0.1), (top + 0.02, top + 0.09), grey))
        if style == 2:
            colour = DARK if random.random() < 0.5 else (190, 192, 196)
            boxes.append(Box((-0.42, 0.42), (after + 0.05, roof_y - 0.15), (top + 0.06, top + 0.36), colour))
        for at in (0.25, 0.75):
            y = after + (roof_y - after) * at
            boxes.append(Box((-roof_half + 0.1, roof_half - 0.1), (y - 0.04, y + 0.04), (top + 0.06, top + 0.1), grey))
    elif style == 3:  # taxi sign
        middle = (after + roof_y) / 2
        boxes.append(Box((-0.3, 0.3), (middle - 0.1, middle + 0.1), (top, top + 0.17), (232, 204, 90)))
    elif style == 4:  # light bar
        middle = (after + roof_y) / 2
        boxes.append(Box((-0.6, 0.0), (middle - 0.13, middle + 0.13), (top, top + 0.13), (60, 90, 190)))
        boxes.append(Box((0.0, 0.6), (middle - 0.13, middle + 0.13), (top, top + 0.13), (190, 50, 40)))
    elif style == 5:  # spoiler
        y, z = (after, top) if kind in (1, 2, 3) else (outline[7][0] + 0.1, belt + 0.14)
        boxes.append(Box((-half * 0.78, half * 0.78), (y - 0.22, y + 0.06), (z - 0.02, z + 0.06), shell))
    return boxes


def _ordered(a: float, b: float) -> Point:
    return (a, b) if a < b else (b, a)
