"""Puts a vehicle into a picture: which faces are seen, in what order, how brightly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shards.synthetic.draw import Light, Point, quad, shadow
from shards.synthetic.solids import Vehicle
from shards.synthetic.view import View


def park(image: Image.Image, vehicle: Vehicle, view: View, light: Light) -> None:
    """Draws a vehicle onto an RGB image: its shadow, then the faces that look at the camera, from far to near."""
    _cast(image, vehicle, view, light)
    pen = ImageDraw.Draw(image)
    corners_F43 = vehicle.corners
    flat_F43 = view.project(corners_F43.reshape(-1, 3)).reshape(-1, 4, 3)
    middle_F3 = corners_F43.mean(axis=1)
    normal_F3 = view.axes(vehicle.normals)
    spot_F3 = view.axes(middle_F3 - np.array([0.0, 0.0, view.middle]))
    facing_F = normal_F3[:, 2] * view.distance - (normal_F3 * spot_F3).sum(axis=1)
    near_F = spot_F3[:, 2] + vehicle.nearer
    shade_F = [light.on(right, up, front) for right, up, front in normal_F3.tolist()]
    seen = sorted(np.flatnonzero(facing_F > 0).tolist(), key=lambda index: float(near_F[index]))
    # The edges of textures fade over a pixel, which smooths the outline; slightly shrunk flat faces under all of them
    # keep the background from showing between two textures.
    heart_F43 = flat_F43 + (flat_F43[seen].mean(axis=(0, 1)) - flat_F43) * 0.025
    for face in seen:
        fill, texture, shade = vehicle.fills[face], vehicle.textures[face], shade_F[face]
        if fill is not None and texture is not None:
            pen.polygon(_flat(heart_F43[face]), fill=(int(fill[0] * shade), int(fill[1] * shade), int(fill[2] * shade)))
    for face in seen:
        fill, texture, shade = vehicle.fills[face], vehicle.textures[face], shade_F[face]
        if texture is not None:
            quad(image, _flat(flat_F43[face]), texture, shade)
        elif fill is not None:
            pen.polygon(_flat(flat_F43[face]), fill=(int(fill[0] * shade), int(fill[1] * shade), int(fill[2] * shade)))


def _flat(corners_43: NDArray[np.float64]) -> list[Point]:
    return [(x, y) for x, y, _ in corners_43.tolist()]


def _cast(image: Image.Image, vehicle: Vehicle, view: View, light: Light) -> None:
    """The vehicle's shadow on the ground."""
    half, front, _ = (vehicle.corners[:9].max(axis=(0, 1)) * 1.06).tolist()
    flat = view.project(np.array([(-half, front, 0.0), (half, front, 0.0), (half, -front, 0.0), (-half, -front, 0.0)]))
    shift = -light.right * view.scale_x * 0.5
    outline = [(x, y) for x, y, _ in flat.tolist()]
    shadow(image, [(x + (shift if index % 2 else 0.0), y) for index, (x, y) in enumerate(outline)], 0.62, 8)
