"""People: what one identity wears and carries, and how it is built. Lengths are in body heights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.synthetic import cloth
from shards.synthetic.draw import ROWS, Colour, Floats, Packed, Pixels, generator, packed, pick, profile, to_pixels

_TAG = 1

LIMB = profile([(0, 1.0), (0.3, 1.04), (1, 0.84)], 0.12, 0.1)
SLEEVE = profile([(0, 0.78), (0.25, 1.05), (1, 0.95)], 0.3, 0.04)
SHIN = profile([(0, 0.95), (0.3, 1.05), (1, 0.62)], 0.1, 0.05)
ROUND = profile([(0, 1), (1, 1)], 0.5, 0.5)
SHOE = profile([(0, 0.9), (0.4, 1.05), (1, 0.85)], 0.2, 0.35)
BAG = profile([(0, 0.8), (0.15, 1.0), (1, 1.0)], 0.1, 0.08)
HEAD = profile([(0, 0.86), (0.45, 1.0), (0.75, 0.92), (1, 0.72)], 0.32, 0.14)
MANE = profile([(0, 0.9), (0.5, 1.0), (1, 0.95)], 0.25, 0.1)


@dataclass(frozen=True)
class Part:
    """One tube: its outline, half width seen from the front and from the side, and what wraps it."""

    outline: Floats
    width: float
    depth: float
    texture: Packed


def part(outline: Floats, width: float, depth: float, texture: Pixels) -> Part:
    return Part(outline, width, depth, packed(texture))


@dataclass(frozen=True)
class Person:
    """What makes one identity. Joint positions and the parts that hang on them; an absent accessory is not a key."""

    leg: float  # height of the hip
    shoulder: float  # half width at the shoulder joints
    hip: float  # half distance of the hip joints
    stoop: float
    stride: float
    hem: float  # height at which the upper garment ends
    bag_side: int
    parts: dict[str, Part]


def build(seed: int, identity: int) -> Person:
    """The person of this identity: a pure function of (seed, identity)."""
    random = generator(seed, _TAG, identity)
    girth, parts = random.uniform(0.86, 1.25), {}
    shoulder, hip = random.uniform(0.098, 0.122), random.uniform(0.044, 0.056)
    skin, hair = cloth.colour_of(random, cloth.SKIN), cloth.colour_of(random, cloth.HAIR)
    base, low = cloth.colour_of(random, cloth.TOPS), cloth.colour_of(random, cloth.BOTTOMS)
    second = cloth.contrast(random, base, cloth.TOPS)
    kind = ("shirt", "shirt", "jacket", "hoodie", "coat", "vest")[int(random.integers(6))]
    bare = cloth.plain(skin)

    torso = cloth.upper_garment(random, kind, base, second, skin)
    waist, flare = random.uniform(0.8, 0.96), random.uniform(0.92, 1.1)
    hem = random.uniform(0.32, 0.4) if kind == "coat" else random.uniform(0.455, 0.5)
    sleeve = _sleeve(random, torso, base, second)
    short = kind in ("shirt", "vest") and random.random() < 0.6
    arm = 0.03 * girth * (1.0 if kind == "shirt" else 1.1)
    parts["upper arm"] = part(SLEEVE, arm, arm, cloth.folds(random, sleeve, 0.16))
    parts["forearm"] = part(LIMB, arm * (0.76 if short else 0.92), arm * (0.76 if short else 0.9), bare if short else sleeve)
    parts["hand"] = part(ROUND, 0.02, 0.017, bare)

    trousers = _trousers(random, low)
    lower = ("trousers", "trousers", "trousers", "wide", "shorts", "skirt", "tights")[int(random.integers(7))]
    thigh = 0.047 * girth * (1.2 if lower == "wide" else 1.0)
    covered = bare if lower == "skirt" and random.random() < 0.5 else trousers
    parts["thigh"] = part(LIMB, thigh, thigh, covered)
    shin_outline = profile([(0, 0.95), (1, 1.0)], 0.1, 0.03) if lower == "wide" else SHIN
    parts["shin"] = part(shin_outline, thigh * 0.84, thigh * 0.84, bare if lower == "shorts" else covered)
    if lower in ("skirt", "tights"):
        skirt = cloth.folds(random, cloth.fabric(random, low, cloth.contrast(random, low, cloth.TOPS), cloth.PATTERNS), 0.2)
        outline = profile([(0, 0.86), (1, random.uniform(1.0, 1.5))], 0.05, 0.02)
        parts["skirt"] = part(outline, 0.1 * girth, 0.085 * girth, skirt)
    sole = cloth.plain(cloth.colour_of(random, cloth.SHOES))
    sole[:, : cloth.COLUMNS // 5] = cloth.colour_of(random, cloth.SHOES)
    parts["shoe"] = part(SHOE, 0.029, 0.026, sole)

    length = (0, 24, 30, 36, 40, 44, 58, 58, 58)[int(random.integers(9))]
    parts["head"] = part(HEAD, 0.05, 0.058, cloth.head(random, skin, hair, length))
    parts["neck"] = part(LIMB, 0.03, 0.03, bare)
    if length == 58 and random.random() < 0.8:
        parts["mane"] = part(MANE, random.uniform(0.046, 0.062), 0.03, cloth.folds(random, cloth.plain(hair), 0.3))
    elif length == 58:
        parts["bun"] = part(ROUND, 0.026, 0.026, cloth.plain(hair))
    if random.random() < 0.3:
        cap = cloth.fabric(random, cloth.colour_of(random, cloth.TOPS), second, (4, 1, 0, 0, 0, 0, 1, 0, 0))
        parts["hat"] = part(profile([(0, 0.9), (1, 1.02)], 0.7, 0.0), 0.053, 0.061, cloth.folds(random, cap, 0.1))
        if random.random() < 0.6:
            parts["brim"] = part(ROUND, random.uniform(0.042, 0.06), 0.014, cap)
    if kind == "hoodie":
        parts["hood"] = part(ROUND, 0.066, 0.05, cloth.plain(base))

    _bags(random, parts, torso)
    outline = profile([(0, 0.3), (0.05, 0.5), (0.13, 0.86), (0.2, 0.98), (0.4, 0.97), (0.68, waist), (1, flare)], 0.03, 0.02)
    if kind == "coat":
        outline = profile([(0, 0.3), (0.04, 0.5), (0.1, 0.88), (0.16, 0.98), (0.5, waist), (1, flare * 1.1)], 0.03, 0.01)
    parts["torso"] = part(outline, (shoulder + 0.002) * (0.75 + 0.25 * girth), 0.072 * girth, cloth.folds(random, torso, 0.17))
    return Person(
        leg=random.uniform(0.485, 0.525),
        shoulder=shoulder,
        hip=hip,
        stoop=random.uniform(-0.01, 0.04),
        stride=random.uniform(0.6, 1.15),
        hem=hem,
        bag_side=1 if random.random() < 0.5 else -1,
        parts=parts,
    )


def _sleeve(random: np.random.Generator, torso: Pixels, base: Colour, second: Colour) -> Pixels:
    kind = pick(random, (4, 2, 2, 1))
    if kind == 0:
        return cloth.plain(base)
    if kind == 1:
        return cloth.plain(second)
    sleeve = torso[:, :1].repeat(cloth.COLUMNS, axis=1) if kind == 2 else cloth.plain(base)
    if kind == 3:  # a stripe down the outside
        for side in (24, 72):
            sleeve[:, side - 6 : side + 6] = second
    return sleeve


def _trousers(random: np.random.Generator, low: Colour) -> Pixels:
    other = cloth.contrast(random, low, cloth.TOPS)
    trousers = cloth.fabric(random, low, other, (9, 0.3, 0.6, 0.3, 0.6, 0, 0.6, 0.8, 0.6))
    if random.random() < 0.25:  # side stripe
        for side in (24, 72):
            trousers[:, side - 4 : side + 4] = other
    if random.random() < 0.2:  # patch at the knee
        trousers[-14:-4, 40:56] = other
    return cloth.folds(random, trousers, 0.2)


def _bags(random: np.random.Generator, parts: dict[str, Part], torso: Pixels) -> None:
    """Adds a bag to the parts and its straps to the torso."""
    colour = cloth.colour_of(random, cloth.TOPS)
    other = cloth.contrast(random, colour, cloth.TOPS)
    bag = cloth.folds(random, cloth.fabric(random, colour, other, (5, 1, 1, 1, 1, 1, 3, 1, 0)), 0.15)
    kind = pick(random, (3, 3, 2, 2, 1))
    if kind == 1:
        for side in (-1, 1):
            torso[2:34, cloth.FRONT + side * 12 - 2 : cloth.FRONT + side * 12 + 2] = colour
        pocket = to_pixels(bag * np.float32(0.8))
        bag[34:56, 10:86] = pocket[34:56, 10:86]
        bag[34:36] = other
        bag[:, :14], bag[:, -14:] = bag[:, 20:34], bag[:, 20:34]
        bag[12:22, :5], bag[12:22, -5:] = other, other
        parts["backpack"] = part(BAG, random.uniform(0.07, 0.095), 0.055, bag)
    elif kind == 2:
        for row in range(ROWS):  # strap across chest and back
            for start in (20, 68):
                torso[row, start + row * 40 // ROWS : start + row * 40 // ROWS + 4] = colour
        parts["shoulder bag"] = part(BAG, random.uniform(0.05, 0.07), random.uniform(0.06, 0.085), bag)
    elif kind == 3:
        parts["hand bag"] = part(BAG, random.uniform(0.03, 0.05), random.uniform(0.05, 0.08), bag)
    elif kind == 4:
        bag[:, ::12] = (50, 50, 54)
        parts["suitcase"] = part(BAG, random.uniform(0.07, 0.1), 0.06, bag)
