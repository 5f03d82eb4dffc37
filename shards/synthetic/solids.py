"""Solids: the flat faces that a vehicle is put together from. Lengths are in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.synthetic.draw import Colour, Pixels, Point

TYRE = (22, 22, 24)
Corner = tuple[float, float, float]
Station = tuple[float, float, float]  # forwards, up, half width


@dataclass(frozen=True)
class Box:
    """A fitting: its bounds (left, right), (rear, front), (low, high) and its colour."""

    x: Point
    y: Point
    z: Point
    colour: Colour
    texture: Image.Image | None = None


@dataclass(frozen=True)
class Vehicle:
    """What makes one identity: flat faces, each with its corners in the order top left, top right, bottom right, bottom
    left of its texture. `nearer` (metres) corrects the order of painting where the middles of faces do not tell it."""

    corners: NDArray[np.float64]  # [faces, 4, 3]
    normals: NDArray[np.float64]  # [faces, 3]
    nearer: NDArray[np.float64]  # [faces]
    fills: list[Colour | None]
    textures: list[Pixels | None]  # RGBA


class Assembly:
    """The faces of a vehicle, as they are put together."""

    def __init__(self) -> None:
        self.corners: list[list[Corner]] = []
        self.normals: list[Corner] = []
        self.nearer: list[float] = []
        self.fills: list[Colour | None] = []
        self.textures: list[Image.Image | None] = []

    def add(self, corners: list[Corner], normal: Corner, fill: Colour | None, texture: Image.Image | None, nearer: float) -> None:
        self.corners.append(corners)
        self.normals.append(normal)
        self.fills.append(fill)
        self.textures.append(texture)
        self.nearer.append(nearer)

    def along(self, outline: list[Station], textures: list[Image.Image], fill: Colour) -> None:
        """The faces from the front bumper over the roof to the rear bumper."""
        for index, ((y0, z0, w0), (y1, z1, w1)) in enumerate(pairwise(outline)):
            size = math.hypot(y1 - y0, z1 - z0)
            normal = (0.0, (z1 - z0) / size, (y0 - y1) / size)
            corners = [(-w1, y1, z1), (w1, y1, z1), (w0, y0, z0), (-w0, y0, z0)]
            if index > 4:  # behind the roof the texture stands the other way up
                corners = corners[2:] + corners[:2]
            self.add(corners, normal, fill, textures[index], 0.5 if index == 4 else 0.0)

    def sides(self, outline: list[Station], belt: float, upper: Image.Image, lower: Image.Image) -> None:
        half, (_, top, roof_half), front = outline[3][2], outline[4], outline[1][0]
        slope = math.hypot(top - belt, half - roof_half)
        for side in (-1.0, 1.0):
            x, roof = side * half, side * roof_half
            tilt = (side * (top - belt) / slope, 0.0, (half - roof_half) / slope)
            self.add([(roof, front, top), (roof, -front, top), (x, -front, belt), (x, front, belt)], tilt, None, upper, 0.3)
            low = [(x, front, belt), (x, -front, belt), (x, -front, 0.2), (x, front, 0.2)]
            self.add(low, (side, 0.0, 0.0), None, lower, -0.02)

    def wheels(self, half: float, wheels: tuple[float, float, float], disc: Image.Image) -> None:
        radius = wheels[2]
        for side in (-1.0, 1.0):
            rim, inner = side * half * 0.985, side * half * 0.72
            for y in wheels[:2]:
                front, rear, high = y + radius, y - radius, 2 * radius
                corners = [(rim, front, high), (rim, rear, high), (rim, rear, 0.0), (rim, front, 0.0)]
                self.add(corners, (side, 0.0, 0.0), None, disc, 0.25)
                for way in (-1.0, 1.0):
                    far, low = y + way * radius * 0.9, y + way * radius * 0.5
                    tread = [(rim, far, radius), (inner, far, radius), (inner, low, 0.0), (rim, low, 0.0)]
                    self.add(tread, (0.0, way, 0.0), TYRE, None, -0.6)

    def box(self, box: Box) -> None:
        (x0, x1), (y0, y1), (z0, z1) = box.x, box.y, box.z
        big = 0.0 if box.texture else 0.6
        top = [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)]
        self.add(top, (0.0, 0.0, 1.0), box.colour, None, big + 0.3)
        for x, side in ((x0, -1.0), (x1, 1.0)):
            flank = [(x, y1, z1), (x, y0, z1), (x, y0, z0), (x, y1, z0)]
            self.add(flank, (side, 0.0, 0.0), box.colour, box.texture, big + 0.1)
        for y, way in ((y0, -1.0), (y1, 1.0)):
            end = [(x0, y, z1), (x1, y, z1), (x1, y, z0), (x0, y, z0)]
            self.add(end, (0.0, way, 0.0), box.colour, box.texture, big + 0.1)

    def vehicle(self) -> Vehicle:
        corners = np.array(self.corners)
        return Vehicle(
            corners=corners,
            normals=np.array(self.normals),
            nearer=np.array(self.nearer),
            fills=self.fills,
            textures=[None if image is None else np.asarray(image) for image in self.textures],
        )
