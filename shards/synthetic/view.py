"""Where a camera stands: from points of a subject, in its own units, to points of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.synthetic.draw import Point


@dataclass(frozen=True)
class View:
    """A pinhole camera that looks at the subject's middle.

    Subject axes: x to its left, y forwards, z up. At yaw 0 it faces the camera; at +90 degrees it faces the picture's
    right. `pitch` is how steeply the camera looks down; `distance` and `middle` (the height looked at) are in the
    subject's units; `scale_x` and `scale_y` are pixels a unit at the middle, which falls on (`centre_x`, `centre_y`).
    """

    yaw: float
    pitch: float
    distance: float
    middle: float
    scale_x: float = 1.0
    scale_y: float = 1.0
    centre_x: float = 0.0
    centre_y: float = 0.0

    def axes(self, points_N3: NDArray[np.float64]) -> NDArray[np.float64]:
        """Directions or points in the picture's frame: right, up, towards the viewer."""
        sin_yaw, cos_yaw = math.sin(self.yaw), math.cos(self.yaw)
        sin_pitch, cos_pitch = math.sin(self.pitch), math.cos(self.pitch)
        x, y, z = points_N3[:, 0], points_N3[:, 1], points_N3[:, 2]
        near = y * cos_yaw - x * sin_yaw
        return np.stack([x * cos_yaw + y * sin_yaw, z * cos_pitch - near * sin_pitch, near * cos_pitch + z * sin_pitch], axis=1)

    def project(self, points_N3: NDArray[np.float64]) -> NDArray[np.float64]:
        """Picture x, picture y (down), and the magnification at that depth, for each point: [N, 3]."""
        frame_N3 = self.axes(points_N3 - np.array([0.0, 0.0, self.middle]))
        zoom = self.distance / (self.distance - frame_N3[:, 2])
        return np.stack(
            [
                self.centre_x + self.scale_x * frame_N3[:, 0] * zoom,
                self.centre_y - self.scale_y * frame_N3[:, 1] * zoom,
                zoom,
            ],
            axis=1,
        )

    def fitted(self, points_N3: NDArray[np.float64], box: tuple[float, float, float, float], stretch: Point) -> View:
        """This view, scaled so that the points fill `box` (left, top, right, bottom).

        `stretch` bounds scale_y / scale_x; where the box would need more, the longer side fits and the other is short.
        """
        flat = replace(self, scale_x=1.0, scale_y=1.0, centre_x=0.0, centre_y=0.0).project(points_N3)
        low_x, high_x = float(flat[:, 0].min()), float(flat[:, 0].max())
        low_y, high_y = float(flat[:, 1].min()), float(flat[:, 1].max())
        scale_x, scale_y = (box[2] - box[0]) / (high_x - low_x), (box[3] - box[1]) / (high_y - low_y)
        scale_x, scale_y = min(scale_x, scale_y / stretch[0]), min(scale_y, scale_x * stretch[1])
        return replace(
            self,
            scale_x=scale_x,
            scale_y=scale_y,
            centre_x=(box[0] + box[2]) / 2 - scale_x * (low_x + high_x) / 2,
            centre_y=(box[1] + box[3]) / 2 - scale_y * (low_y + high_y) / 2,
        )

    def reduced(self, factor_x: float, factor_y: float) -> View:
        """This view on a picture whose width and height are these parts of before."""
        return replace(
            self,
            scale_x=self.scale_x * factor_x,
            scale_y=self.scale_y * factor_y,
            centre_x=self.centre_x * factor_x,
            centre_y=self.centre_y * factor_y,
        )
