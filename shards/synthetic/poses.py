"""Poses: puts a person into a picture, limb by limb, from far to near. Lengths are in body heights."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from shards.synthetic.draw import Light, pick, strips, tube
from shards.synthetic.people import Person
from shards.synthetic.view import View

Joint = tuple[float, float, float]
BLUNT = ("shoe", "forearm", "brim", "thigh", "hand")  # seen end on, still as long as they are thick


class Tube(NamedTuple):
    """A part of the body in place: its ends, its turn against the body, and how much nearer it counts."""

    name: str
    start: Joint
    end: Joint
    turn: float
    front: float


class Add(Protocol):
    """Places a part, if this person has it."""

    def __call__(self, name: str, start: Joint, end: Joint, turn: float = 0.0, front: float = 0.0) -> None: ...


def draw(image: Image.Image, person: Person, view: View, light: Light, random: np.random.Generator) -> None:
    """Draws the person onto an RGB image in a pose drawn from `random`."""
    tubes: list[Tube] = []

    def add(name: str, start: Joint, end: Joint, turn: float = 0.0, front: float = 0.0) -> None:
        if name in person.parts:
            tubes.append(Tube(name, start, end, turn, front))

    _pose(add, person, random)
    ends = np.array([joint for piece in tubes for joint in (piece.start, piece.end)])
    points = view.project(ends).tolist()
    near = view.axes((ends[0::2] + ends[1::2]) / 2)[:, 2] + np.array([piece.front for piece in tubes])
    parts = [person.parts[piece.name] for piece in tubes]
    yaws = [view.yaw + piece.turn for piece in tubes]
    along = [(x1 - x0, y1 - y0) for (x0, y0, _), (x1, y1, _) in zip(points[0::2], points[1::2], strict=True)]
    lengths = [math.hypot(dx, dy) or 1.0 for dx, dy in along]
    ways = [(dx / length, dy / length) for (dx, dy), length in zip(along, lengths, strict=True)]
    seen = strips([part.texture for part in parts], ways, yaws, light)
    for index in near.argsort(kind="stable").tolist():
        part, yaw, length, (dx, dy) = parts[index], yaws[index], lengths[index], ways[index]
        (x0, y0, zoom0), (x1, y1, zoom1) = points[2 * index], points[2 * index + 1]
        half = math.sqrt((part.width * math.cos(yaw)) ** 2 + (part.depth * math.sin(yaw)) ** 2)
        radius = half * (view.scale_x * abs(dy) + view.scale_y * abs(dx)) * (zoom0 + zoom1) / 2
        if length < 2 * radius and tubes[index].name in BLUNT:
            grow = (2 * radius - length) * 0.3
            x0, y0, x1, y1 = x0 - dx * grow, y0 - dy * grow, x1 + dx * grow, y1 + dy * grow
        tube(image, (x0, y0), (x1, y1), radius, part.outline, seen[index])


def _pose(add: Add, person: Person, random: np.random.Generator) -> None:
    walking = random.random() < 0.8
    lean = person.stoop + random.uniform(-0.015, 0.02)
    swing = math.sin(random.uniform(0, 2 * math.pi)) * person.stride if walking else random.uniform(-0.15, 0.15)
    for side in (1, -1):
        _leg(add, person, side, swing * side, random)
        _arm(add, person, side, -swing * side, lean, random)
    add("torso", (0.0, lean, 0.862), (0.0, 0.0, person.hem))
    add("skirt", (0.0, 0.0, 0.53), (0.0, 0.0, 0.34 if person.hem > 0.4 else 0.31), front=-0.001)
    look = random.uniform(-0.6, 0.6)
    x, y = 0.02 * math.sin(look), lean + 0.012
    add("neck", (0.0, lean, 0.87), (0.0, lean, 0.82), front=-0.01)
    add("head", (x, y, 1.0), (x, y + 0.012, 0.86), look, 0.03)
    add("mane", (x, y - 0.025, 0.995), (x, y - 0.04, 0.8), look)
    add("bun", (x, y - 0.05, 0.985), (x, y - 0.055, 0.93), look)
    add("hat", (x, y, 1.015), (x, y + 0.004, 0.945), look, 0.04)
    add("brim", (x, y + 0.035, 0.956), (x, y + 0.09, 0.945), look, 0.05)
    add("hood", (0.0, lean - 0.05, 0.885), (0.0, lean - 0.065, 0.79))
    add("backpack", (0.0, lean - 0.1, 0.83), (0.0, -0.1, 0.56))
    bag = person.bag_side
    add("shoulder bag", (bag * 0.125, 0.0, 0.56), (bag * 0.13, 0.0, 0.43), front=0.01)
    add("suitcase", (bag * 0.2, -0.16, 0.3), (bag * 0.2, -0.16, 0.02))


def _leg(add: Add, person: Person, side: int, swing: float, random: np.random.Generator) -> None:
    hip = (side * person.hip, 0.0, person.leg + 0.03)
    angle = swing * 0.36
    bend = max(0.0, -swing) * random.uniform(0.3, 0.9) + 0.03
    thigh, shin = person.leg * 0.5, person.leg * 0.47
    knee = (side * (person.hip + 0.003), thigh * math.sin(angle), hip[2] - 0.01 - thigh * math.cos(angle))
    ankle = (side * person.hip, knee[1] + shin * math.sin(angle - bend), knee[2] - shin * math.cos(angle - bend))
    add("thigh", hip, knee, front=-0.02)
    add("shin", (knee[0], knee[1], knee[2] + 0.02), ankle, front=-0.015)
    pitch = -max(0.0, -swing) * 0.5
    heel = (ankle[0], ankle[1] - 0.03, ankle[2] - 0.012 - pitch * 0.05)
    toe = (ankle[0] + side * 0.015, ankle[1] + 0.085 * math.cos(pitch), ankle[2] - 0.022 + 0.09 * math.sin(pitch))
    add("shoe", heel, toe, front=0.0)


def _arm(add: Add, person: Person, side: int, swing: float, lean: float, random: np.random.Generator) -> None:
    shoulder = (side * person.shoulder * 0.96, lean, 0.818)
    mode = pick(random, (6, 1.5, 1, 1))
    out, upper, fore = random.uniform(0.012, 0.035), 0.165, 0.15
    angle = swing * 0.5 + random.uniform(-0.1, 0.1)
    elbow = (shoulder[0] + side * out, lean + upper * math.sin(angle), 0.818 - upper * math.cos(angle))
    if mode == 0:
        bent = angle + random.uniform(0.1, 0.5)
        wrist = (elbow[0] + side * 0.01, elbow[1] + fore * math.sin(bent), elbow[2] - fore * math.cos(bent))
    elif mode == 1:  # hand in a pocket
        elbow = (shoulder[0] + side * 0.05, lean - 0.04, 0.66)
        wrist = (side * person.shoulder * 0.95, 0.05, 0.52)
    elif mode == 2:  # telephone at the ear
        elbow = (shoulder[0] + side * 0.03, lean + 0.07, 0.68)
        wrist = (side * 0.065, lean + 0.05, 0.87)
    else:  # something held in front of the chest
        elbow = (shoulder[0] + side * 0.03, lean + 0.02, 0.66)
        wrist = (side * 0.04, lean + 0.15, 0.68)
    add("upper arm", shoulder, elbow, front=0.012)
    add("forearm", elbow, wrist, front=0.016)
    x, y, z = (w + (w - e) * 0.28 for w, e in zip(wrist, elbow, strict=True))
    add("hand", wrist, (x, y, z), front=0.014)
    if side == person.bag_side and mode == 0:
        add("hand bag", (x, y, z - 0.02), (x, y, z - 0.17), front=0.02)
