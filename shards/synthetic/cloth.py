"""Textures of what people wear: a few common colours, many patterns, prints and details."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shards.synthetic.draw import ROWS, Colour, Pixels, generator, pick, smooth, to_pixels

COLUMNS = 96  # once around; column 48 is the front
FRONT = COLUMNS // 2
_TAG_WRINKLES = 9

# Colours of clothes with how common they are: most people wear dark, grey or blue.
TOPS: tuple[tuple[Colour, float], ...] = (
    ((34, 34, 38), 7), ((82, 84, 88), 4), ((142, 144, 148), 3), ((222, 222, 218), 5), ((38, 46, 78), 4),
    ((72, 100, 148), 2), ((146, 44, 44), 2), ((158, 136, 104), 2), ((84, 96, 70), 2), ((196, 160, 150), 1),
    ((180, 150, 60), 1),
)  # fmt: skip
BOTTOMS: tuple[tuple[Colour, float], ...] = (
    ((32, 32, 36), 6), ((44, 54, 84), 5), ((86, 104, 136), 3), ((84, 84, 86), 3), ((150, 134, 106), 3),
    ((196, 194, 188), 1), ((78, 84, 62), 1),
)  # fmt: skip
SHOES: tuple[tuple[Colour, float], ...] = (
    ((30, 30, 32), 5),
    ((214, 214, 212), 3),
    ((92, 66, 48), 2),
    ((128, 128, 132), 1),
)
HAIR: tuple[tuple[Colour, float], ...] = (
    ((28, 24, 22), 6), ((58, 42, 32), 4), ((106, 78, 50), 2), ((170, 140, 92), 1), ((150, 148, 146), 1),
)  # fmt: skip
SKIN: tuple[tuple[Colour, float], ...] = (
    ((226, 182, 154), 4),
    ((198, 150, 118), 3),
    ((150, 106, 78), 2),
    ((98, 68, 52), 2),
)


def colour_of(random: np.random.Generator, palette: tuple[tuple[Colour, float], ...], spread: int = 9) -> Colour:
    """A colour of the palette, moved a little."""
    base = palette[pick(random, [weight for _, weight in palette])][0]
    moved = [min(245, max(12, value + int(random.integers(-spread, spread + 1)))) for value in base]
    return moved[0], moved[1], moved[2]


def contrast(random: np.random.Generator, base: Colour, palette: tuple[tuple[Colour, float], ...]) -> Colour:
    """Another colour of the palette, visibly lighter or darker than `base`."""
    for _ in range(4):
        other = colour_of(random, palette)
        if abs(sum(other) - sum(base)) > 130:
            return other
    return (226, 224, 218) if sum(base) < 380 else (40, 40, 46)


def logo(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.bool_]:
    """A mirrored bit pattern: stands for a print, a brand or lettering."""
    half = random.random((rows, (columns + 1) // 2)) < 0.55
    return np.concatenate([half, half[:, ::-1][:, columns % 2 :]], axis=1)


def stamp(image: Image.Image, bits: NDArray[np.bool_], box: tuple[int, int, int, int], colour: Colour) -> None:
    """Scales a bit pattern to `box` (left, top, right, bottom) and fills it with `colour`."""
    mask = Image.fromarray(bits.astype(np.uint8) * 255).resize((box[2] - box[0], box[3] - box[1]))
    image.paste(colour, (box[0], box[1]), mask)


def plain(colour: Colour) -> Pixels:
    return np.broadcast_to(np.array(colour, np.uint8), (ROWS, COLUMNS, 3)).copy()


def fabric(random: np.random.Generator, base: Colour, second: Colour, weights: tuple[float, ...]) -> Pixels:
    """A woven or printed cloth [ROWS, COLUMNS, 3].

    `weights`: plain, hoops, vertical stripes, checks, plaid, dots, two blocks, mottled, fade.
    """
    v, u = np.arange(ROWS)[:, None], np.arange(COLUMNS)[None, :]
    kind = pick(random, weights)
    period = int(random.choice([6, 8, 12, 16]))
    thin = max(2, int(period * random.choice([0.3, 0.5, 0.65])))
    hoop, stripe = (v % period < thin) + 0.0 * u, (u % period < thin) + 0.0 * v
    mix: NDArray[Any]
    if kind == 1:
        mix = hoop
    elif kind == 2:
        mix = stripe
    elif kind == 3:
        mix = np.abs(hoop - stripe)
    elif kind == 4:
        mix = 0.45 * hoop + 0.4 * stripe + 0.15 * (v % period == 1)
    elif kind == 5:
        shift = (v // period % 2) * (period / 2)
        mix = ((u + shift) % period - period / 2) ** 2 + (v % period - period / 2) ** 2 < (period * 0.3) ** 2
    elif kind == 6:
        low = int(random.integers(14, 44))
        band = ROWS if random.random() < 0.5 else int(random.integers(8, 18))
        mix = ((v >= low) & (v < low + band)) + 0.0 * u
    elif kind == 7:
        mix = smooth(random, ROWS, COLUMNS, 12, 14) > 0.1
    elif kind == 8:
        mix = np.clip((v - 10) / 44, 0, 1) + 0.0 * u
    else:
        mix = np.zeros((ROWS, COLUMNS))
    first, other = np.array(base, np.float32), np.array(second, np.float32)
    return to_pixels(first + (other - first) * mix.astype(np.float32)[:, :, None])


PATTERNS = (7.0, 3.0, 1.2, 1.5, 2.0, 1.0, 3.0, 1.2, 0.8)


@lru_cache(maxsize=8)
def _wrinkles(number: int) -> NDArray[np.float32]:
    random = generator(0, _TAG_WRINKLES, number)
    return smooth(random, ROWS, COLUMNS, 9, 7) * np.float32(0.6) + smooth(random, ROWS, COLUMNS, 20, 24) * np.float32(0.4)


def folds(random: np.random.Generator, texture: Pixels, depth: float) -> Pixels:
    """Wrinkles and weave on a texture: one of a few fields, turned around the tube."""
    field = np.roll(_wrinkles(int(random.integers(8))), int(random.integers(COLUMNS)), axis=1)
    return to_pixels(texture * (1 + np.float32(depth) * field)[:, :, None])


def upper_garment(random: np.random.Generator, kind: str, base: Colour, second: Colour, skin: Colour) -> Pixels:
    """The torso of a "shirt", "jacket", "hoodie", "coat" or "vest" [ROWS, COLUMNS, 3] before straps and folds."""
    cloth = fabric(random, base, second, PATTERNS if kind != "coat" else (6.0, 0.0, 0.0, 0.5, 1.0, 0.0, 0.5, 0.0, 0.0))
    image = Image.fromarray(cloth)
    pen = ImageDraw.Draw(image)
    if kind in ("jacket", "coat", "vest"):
        under = contrast(random, base, TOPS)
        opening = int(random.integers(0, 9))
        if opening > 2:
            pen.polygon(
                [(FRONT - opening, 0), (FRONT + opening, 0), (FRONT + opening // 2, 63), (FRONT - opening // 2, 63)],
                under,
            )
        else:
            pen.line([(FRONT, 0), (FRONT, 63)], fill=contrast(random, base, TOPS), width=1 + int(random.integers(0, 2)))
        for side in (-1, 1):  # pockets
            row = int(random.integers(36, 44))
            pen.line([(FRONT + side * 16 - 4, row), (FRONT + side * 16 + 4, row + 3)], fill=second, width=2)
    elif random.random() < 0.3:  # button row
        pen.line([(FRONT, 4), (FRONT, 63)], fill=second, width=1)
    if kind == "shirt" and random.random() < 0.5:  # neckline
        pen.polygon([(FRONT - 9, 0), (FRONT + 9, 0), (FRONT, int(random.integers(5, 12)))], fill=skin)
    if kind != "coat":
        ink = contrast(random, base, TOPS)
        if random.random() < 0.55:
            size, row = int(random.integers(6, 13)), int(random.integers(14, 24))
            bits = logo(random, int(random.integers(3, 7)), int(random.integers(4, 8)))
            shift = int(random.choice([0, 0, -11, 11]))
            stamp(image, bits, (FRONT + shift - size, row, FRONT + shift + size, row + int(size * 1.5)), ink)
        if random.random() < 0.45:  # back print, over the seam at column 0
            size = int(random.integers(7, 13))
            whole = Image.new("RGB", (COLUMNS, ROWS))
            whole.paste(image.crop((FRONT, 0, COLUMNS, ROWS)), (0, 0))
            whole.paste(image.crop((0, 0, FRONT, ROWS)), (FRONT, 0))
            bits = logo(random, int(random.integers(3, 7)), int(random.integers(4, 8)))
            stamp(whole, bits, (FRONT - size, 12, FRONT + size, 12 + int(size * 1.8)), ink)
            image.paste(whole.crop((FRONT, 0, COLUMNS, ROWS)), (0, 0))
            image.paste(whole.crop((0, 0, FRONT, ROWS)), (FRONT, 0))
        pen = ImageDraw.Draw(image)
        if random.random() < 0.12:  # work wear: bright bands
            for row in (24, 40):
                pen.rectangle([0, row, COLUMNS, row + 4], fill=(214, 218, 150))
    if random.random() < 0.4:
        pen.rectangle([0, 59, COLUMNS, 63], fill=second)
    return np.asarray(image).copy()


def head(random: np.random.Generator, skin: Colour, hair: Colour, length: int) -> Pixels:
    """A head from crown (row 0) to chin: hair down to row `length` at the back, and a face at the front."""
    image = Image.fromarray(plain(skin))
    pen = ImageDraw.Draw(image)
    dark = (skin[0] * 4 // 5, skin[1] * 3 // 4, skin[2] * 3 // 4)
    line = int(random.integers(12, 19))
    if length:
        pen.rectangle([0, 0, COLUMNS, line], fill=hair)
        side = int(random.integers(15, 20))
        pen.rectangle([0, 0, FRONT - side, length], fill=hair)
        pen.rectangle([FRONT + side, 0, COLUMNS, length], fill=hair)
        part = int(random.integers(-12, 13))
        pen.polygon([(FRONT - side, line), (FRONT + part, line - 5), (FRONT + side, line), (FRONT + side, line + 8),
                     (FRONT + part, line - 1), (FRONT - side, line + 8)], fill=hair)  # fmt: skip
    for eye in (FRONT - 7, FRONT + 7):
        pen.line([(eye - 4, 33), (eye + 4, 33)], fill=dark, width=2)
        pen.rectangle([eye - 2, 29, eye + 2, 31], fill=(48, 38, 36))
        pen.line([(eye - 4, 26), (eye + 4, 25)], fill=hair if length else dark, width=1)
    pen.polygon([(FRONT, 31), (FRONT - 4, 42), (FRONT + 3, 42)], fill=dark)
    if random.random() < 0.22:  # beard
        pen.polygon(
            [(FRONT - 18, 40), (FRONT - 8, 45), (FRONT + 8, 45), (FRONT + 18, 40), (FRONT + 14, 63), (FRONT - 14, 63)],
            hair,
        )
    pen.rectangle([FRONT - 6, 49, FRONT + 6, 51], fill=(max(20, skin[0] - 60), skin[1] // 2, skin[2] // 2))
    if random.random() < 0.2:  # glasses
        pen.rectangle([FRONT - 13, 26, FRONT - 2, 35], outline=(34, 34, 36), width=1)
        pen.rectangle([FRONT + 2, 26, FRONT + 13, 35], outline=(34, 34, 36), width=1)
    for ear in (FRONT - 23, FRONT + 23):
        pen.rectangle([ear - 2, 30, ear + 2, 42], fill=dark)
    return folds(random, np.asarray(image), 0.14)
