"""Drawing primitives: seeded generators, smooth noise, shaded tubes, textured quads and soft shadows.

Arithmetic that reaches a pixel is integer or plain IEEE (+, -, *, /, sqrt); sines and powers come from `math` and are
rounded before use. So one release of numpy and Pillow gives the same bytes on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Packed = NDArray[np.uint32]
Colour = tuple[int, int, int]
Point = tuple[float, float]

_TAG_FIELD = 8
ROWS = 64  # rows of every tube texture and profile, along the tube
STRIP = 40  # columns of the visible half of a tube
_Q = np.linspace(-1, 1, STRIP)
_FACING = np.sqrt(1 - _Q * _Q * 0.98)
_ROUND = 0.7 + 0.3 * _FACING  # less light reaches the sides
_ANGLE = np.array([math.asin(q) / (2 * math.pi) for q in _Q])


def generator(seed: int, tag: int, *key: int) -> np.random.Generator:
    """The random stream of one thing, independent of every other (seed, tag, key)."""
    return np.random.default_rng(np.random.SeedSequence([seed, tag, *key]))


def pick(random: np.random.Generator, weights: Sequence[float]) -> int:
    """An index drawn with the given weights (they need not sum to one)."""
    left = random.random() * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return len(weights) - 1


def smooth(random: np.random.Generator, height: int, width: int, cells_y: int, cells_x: int) -> Floats:
    """A smooth field in [-1, 1] of shape [height, width]: a coarse random grid, scaled up."""
    grid_HW = random.integers(0, 256, (max(cells_y, 2), max(cells_x, 2)), dtype=np.uint8)
    grid_HW[:, -1] = grid_HW[:, 0]  # closes around a tube
    field = Image.fromarray(grid_HW).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(field, np.float32) / 127.5 - 1


@lru_cache(maxsize=8)
def _field(cell: int) -> Floats:
    return smooth(generator(0, _TAG_FIELD, cell), 400, 560, 400 // cell, 560 // cell)


def clouds(random: np.random.Generator, height: int, width: int, cell: int) -> Floats:
    """Like `smooth`, quicker: a window of one large field whose grid is `cell` pixels wide."""
    field = _field(cell)
    top, left = int(random.integers(400 - height)), int(random.integers(560 - width))
    return field[top : top + height, left : left + width]


def to_pixels(values: NDArray[np.floating]) -> Pixels:
    clipped: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return clipped


def packed(texture_HWC: Pixels) -> Packed:
    """An RGB texture with each pixel in one 32-bit word, the form that `strips` reads."""
    words = np.zeros((*texture_HWC.shape[:2], 4), np.uint8)
    words[:, :, :3] = texture_HWC
    return words.view(np.uint32).reshape(texture_HWC.shape[:2])


@dataclass(frozen=True)
class Light:
    """Direction of the light in the picture's frame (right, up, towards the viewer), and its two strengths."""

    right: float
    up: float
    front: float
    ambient: float
    diffuse: float

    def on(self, right: float, up: float, front: float) -> float:
        """Brightness of a surface with this unit normal."""
        return self.ambient + self.diffuse * max(0.0, right * self.right + up * self.up + front * self.front)


def profile(points: Sequence[Point], cap_start: float = 0.0, cap_end: float = 0.0) -> Floats:
    """The outline of a tube: its radius at ROWS places between two margins, where -1 ends it.

    From (position in [0, 1], radius) points, with round caps of the given lengths.
    """
    position = (np.arange(ROWS) + 0.5) / ROWS
    radius = np.interp(position, [p for p, _ in points], [r for _, r in points])
    if cap_start:
        radius *= np.sqrt(1 - np.clip(1 - position / cap_start, 0, 1) ** 2)
    if cap_end:
        radius *= np.sqrt(1 - np.clip(1 - (1 - position) / cap_end, 0, 1) ** 2)
    return np.concatenate([[-1.0], radius, [-1.0]]).astype(np.float32)


def strips(textures: Sequence[Packed], directions: Sequence[Point], yaws: Sequence[float], light: Light) -> NDArray[np.uint32]:
    """What the viewer sees of each of T textures that wrap tubes, lit: [T, ROWS + 2, STRIP], margin rows included.

    `textures` [ROWS, columns], from `packed`, have their middle column at the front; `directions` are unit vectors
    along the tubes, y downwards; `yaws` turn the fronts away from the viewer, in radians.
    """
    count = len(textures)
    seen = np.empty((count, ROWS + 2, STRIP), np.uint32)
    for index, (texture, (_, dy), yaw) in enumerate(zip(textures, directions, yaws, strict=True)):
        columns = ((_ANGLE if dy >= 0 else -_ANGLE) + (0.5 - yaw / (2 * math.pi))) * texture.shape[1]
        texture.take(columns.astype(np.intp), axis=1, mode="wrap", out=seen[index, 1:-1])
    seen[:, 0], seen[:, -1] = seen[:, 1], seen[:, -2]
    sideways = np.array([[dy * light.right + dx * light.up] for dx, dy in directions])
    shade = np.maximum(0, _Q * sideways + _FACING * light.front) * light.diffuse
    bright = np.minimum((shade + light.ambient) * _ROUND * 128, 256).astype(np.uint16).repeat(4, axis=1)
    lit = seen.view(np.uint8) * bright[:, None, :]
    lit >>= 7
    words: NDArray[np.uint32] = np.minimum(lit, 255, out=lit).astype(np.uint8).view(np.uint32)
    return words


def tube(image: Image.Image, start: Point, end: Point, radius: float, outline: Floats, strip: NDArray[np.uint32]) -> None:
    """Draws a tube with smooth edges onto an RGB image; `radius`, in pixels, scales its outline."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    if length < 0.5:
        return
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    limit = outline * np.float32(radius) + np.float32(0.5)
    reach = float(limit.max()) + 0.5
    wide, high = reach * abs(dy), reach * abs(dx)
    left, right = max(0, int(min(x0, x1) - wide)), min(image.width, int(max(x0, x1) + wide) + 2)
    top, bottom = max(0, int(min(y0, y1) - high)), min(image.height, int(max(y0, y1) + high) + 2)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x0)
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y0))[:, None]
    along = x * np.float32(dx * ROWS / length) + (y * np.float32(dy * ROWS / length) + np.float32(1))
    across = x * np.float32(dy) - y * np.float32(dx)
    row = along.astype(np.intp)  # beyond the tube: clipped to a margin, where nothing is covered
    cover = limit.take(row, mode="clip")
    cover -= np.abs(across)
    np.maximum(cover, 0, out=cover)
    np.minimum(cover, 1, out=cover)
    cover *= 255
    across *= (np.float32(STRIP / 2 - 0.5) / np.maximum(limit, np.float32(1))).take(row, mode="clip")
    across += np.float32(STRIP / 2)
    row *= STRIP
    row += across.astype(np.intp)
    # One 32-bit word is fetched several times faster than three bytes.
    colour = strip.reshape(-1).take(row, mode="clip")
    size = (right - left, bottom - top)
    patch = Image.frombuffer("RGB", size, colour, "raw", "RGBX", 0, 1)
    mask = Image.frombuffer("L", size, cover.astype(np.uint8), "raw", "L", 0, 1)
    image.paste(patch, (left, top), mask)


def homography(corners: Sequence[Point], width: float, height: float) -> tuple[float, ...]:
    """The eight coefficients that take a point of the quad to a texture of this size (Pillow's PERSPECTIVE).

    `corners` are the images of the texture's top left, top right, bottom right and bottom left. Square to quad as in
    Heckbert, "Fundamentals of Texture Mapping and Image Warping" (1989), section 2.2.3, then the adjugate.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    det = dx1 * dy2 - dx2 * dy1 or 1e-9
    g, h = (sx * dy2 - dx2 * sy) / det, (dx1 * sy - sx * dy1) / det
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    scale = (a * e - b * d) or 1e-9
    return (
        width * (e - f * h) / scale,
        width * (c * h - b) / scale,
        width * (b * f - c * e) / scale,
        height * (f * g - d) / scale,
        height * (a - c * g) / scale,
        height * (c * d - a * f) / scale,
        (d * h - e * g) / scale,
        (b * g - a * h) / scale,
    )


def quad(image: Image.Image, corners: Sequence[Point], texture: Pixels, shade: float) -> None:
    """Pastes an RGBA texture [height, width, 4], lit by `shade`, onto a quad.

    `corners`: where the texture's top left, top right, bottom right and bottom left go.
    """
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    left, right = max(0, math.floor(min(xs))), min(image.width, math.ceil(max(xs)))
    top, bottom = max(0, math.floor(min(ys))), min(image.height, math.ceil(max(ys)))
    if left >= right or top >= bottom:
        return
    local = [(x - left, y - top) for x, y in corners]
    level = int(shade * 64)
    lit = (texture * np.array([level, level, level, 64], np.uint16)) >> 6
    patch = Image.fromarray(np.minimum(lit, 255, out=lit).astype(np.uint8)).transform(
        (right - left, bottom - top),
        Image.Transform.PERSPECTIVE,
        homography(local, texture.shape[1], texture.shape[0]),
        Image.Resampling.BILINEAR,
    )
    image.paste(patch, (left, top), patch)


def shadow(image: Image.Image, outline: Sequence[Point], strength: float, softness: float) -> None:
    """Darkens the inside of a polygon with a soft edge; worked out at a quarter of the size."""
    small = Image.new("L", (image.width // 4, image.height // 4))
    ImageDraw.Draw(small).polygon([(x / 4, y / 4) for x, y in outline], fill=int(255 * strength))
    mask = small.filter(ImageFilter.BoxBlur(softness / 4)).resize(image.size, Image.Resampling.BILINEAR)
    image.paste((10, 12, 16), (0, 0), mask)
