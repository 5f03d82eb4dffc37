"""Cameras: where one hangs, its light, and what its lens, sensor and encoder do to a picture."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from shards.synthetic.draw import Light, Pixels, generator, smooth, to_pixels
from shards.synthetic.scenes import HIGH, WIDE, scene
from shards.synthetic.view import View

HEIGHT, WIDTH = 256, 128
_TAG, _TAG_NOISE = 4, 5


@dataclass(frozen=True)
class Camera:
    """What all pictures of one camera share. Angles are radians."""

    heading: float  # of most people; vehicles drive towards or away from the camera
    approaching: bool
    drift: float  # how vehicles turn from the line of sight
    pitch: float
    steep: float  # pitch onto the road, where the camera hangs higher
    distance: float  # in heights of what is seen
    squeeze: float  # vertical over horizontal scale
    light: Light
    gains: tuple[float, float, float]  # white balance and exposure
    curve: NDArray[np.uint8]  # delivered level of each quarter of a sensor level
    matrix: tuple[float, ...]  # saturation and cross-talk
    blur: float
    noise: float
    quality: int
    falloff: Image.Image  # light that arrives, over 1.3; as large as the sensor's picture
    street: Image.Image
    place: Image.Image

    def person_view(self, random: np.random.Generator) -> View:
        """A view of somebody who walks through the picture: lengths in body heights."""
        turn = self.heading + random.uniform(-0.55, 0.55) + (math.pi if random.random() < 0.2 else 0.0)
        view = View(turn, self.pitch + random.uniform(-0.05, 0.05), self.distance, 0.5)
        tall = HEIGHT * random.uniform(0.8, 1.02)
        middle, low = WIDTH / 2 + random.uniform(-10, 10), HEIGHT * random.uniform(0.95, 1.0) + (tall - 235) * 0.3
        squeeze = self.squeeze * random.uniform(0.93, 1.07)
        body = np.array([[0, 0, 0], [0, 0, 1.0], [-0.12, 0, 0.5], [0.12, 0, 0.5]])
        return view.fitted(body, (middle - WIDTH, low - tall, middle + WIDTH, low), (squeeze, squeeze))

    def vehicle_view(self, random: np.random.Generator, points_N3: NDArray[np.float64]) -> View:
        """A view of a vehicle that fills the picture: lengths in metres."""
        away = self.approaching == (random.random() < 0.15)
        turn = (math.pi if away else 0.0) + self.drift + random.uniform(-0.25, 0.25)
        view = View(turn, self.steep + random.uniform(-0.05, 0.05), self.distance * 3.5, 0.7)
        left, right = random.uniform(-4, 12), WIDTH - random.uniform(-4, 12)
        top, low = random.uniform(2, 24), HEIGHT - random.uniform(0, 20)
        return view.fitted(points_N3, (left, top, right, low), (0.9, 2.3))

    def captured(self, view: View) -> View:
        """A view onto the delivered picture, on the sensor's own, smaller one."""
        return view.reduced(self.falloff.width / WIDTH, self.falloff.height / HEIGHT)

    def backdrop(self, random: np.random.Generator, road: bool) -> Image.Image:
        """A cut of the place behind the subject, as large as the sensor."""
        source, (wide, high) = self.street if road else self.place, self.falloff.size
        left, top = int(random.integers(source.width - wide + 1)), int(random.integers(source.height - high + 1))
        return source.crop((left, top, left + wide, top + high))

    def capture(self, image: Image.Image, random: np.random.Generator) -> Pixels:
        """What is delivered for a scene: light falloff, lens, white balance, tone, noise, JPEG, scaling."""
        image = ImageChops.multiply(image, self.falloff)
        image = Image.blend(image, ImageChops.offset(image, 1, 1), self.blur)
        exposure = 2 ** random.uniform(-0.22, 0.22)
        tint = 2 ** random.uniform(-0.06, 0.06)
        gains = (self.gains[0] * exposure * tint, self.gains[1] * exposure, self.gains[2] * exposure / tint)
        image = image.convert("RGB", self.matrix).point([level for gain in gains for level in self._tone(gain)])
        noise = _noise(int(self.noise))
        left, top = int(random.integers(noise.width - WIDTH)), int(random.integers(noise.height - HEIGHT))
        image = ImageChops.add(image, noise.crop((left, top, left + image.width, top + image.height)), 1, -128)
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=max(20, min(95, self.quality + int(random.integers(-8, 9)))))
        return np.array(Image.open(encoded).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))

    def _tone(self, gain: float) -> list[int]:
        """Delivered level of each sensor level."""
        return self.curve.take((np.arange(256) * (gain * 4)).astype(np.intp), mode="clip").tolist()  # type: ignore[no-any-return]


@lru_cache(maxsize=16)
def _noise(level: int) -> Image.Image:
    """Sensor noise of standard deviation `level` about 128, mostly in brightness; pictures cut windows out of it."""
    random = generator(0, _TAG_NOISE)
    bright, colour = random.standard_normal((400, 288, 1)), random.standard_normal((400, 288, 3))
    return Image.fromarray(to_pixels((bright * 0.8 + colour * 0.6) * level + 128.5))


@lru_cache(maxsize=64)
def camera_of(seed: int, camera: int) -> Camera:
    """The camera of this number: a pure function of (seed, camera)."""
    random = generator(seed, _TAG, camera)
    exposure, warm, green = random.uniform(-0.4, 0.4), random.uniform(-0.3, 0.3), random.uniform(-0.1, 0.1)
    gamma, lift = random.uniform(0.7, 1.4), random.uniform(0, 36)
    saturation = random.uniform(0.45, 1.15)
    grey, matrix = (0.3, 0.59, 0.11), []
    for row in range(3):
        weights = [grey[column] * (1 - saturation) + saturation * (row == column) for column in range(3)]
        weights[(row + 1) % 3] += random.uniform(-0.08, 0.14)
        matrix += [*weights, 0.0]
    sharpness = random.uniform(0.5, 0.9)
    wide, high = int(WIDTH * sharpness), int(HEIGHT * sharpness)
    street, place = (scene(seed, camera, road).resize((int(WIDE * sharpness), int(HIGH * sharpness))) for road in (True, False))
    y, x = np.linspace(-1, 1, high)[:, None], np.linspace(-1, 1, wide)[None, :]
    slope = random.uniform(-0.25, 0.25) * x + random.uniform(-0.25, 0.25) * y
    falloff = 1 + slope - random.uniform(0, 0.2) * (x * x + y * y) + 0.12 * smooth(random, high, wide, 4, 3)
    return Camera(
        heading=int(random.integers(8)) * math.pi / 4 + random.uniform(-0.3, 0.3),
        approaching=bool(random.random() < 0.5),
        drift=random.uniform(-0.8, 0.8),
        pitch=random.uniform(0.05, 0.5),
        steep=random.uniform(0.3, 0.65),
        distance=random.uniform(2.2, 6.0),
        squeeze=random.uniform(0.9, 1.2),
        light=Light(
            right=random.uniform(-0.75, 0.75),
            up=random.uniform(0.3, 0.8),
            front=random.uniform(0.3, 0.75),
            ambient=random.uniform(0.4, 0.6),
            diffuse=random.uniform(0.4, 0.7),
        ),
        gains=(1.3 * 2 ** (exposure + warm), 1.3 * 2 ** (exposure + green), 1.3 * 2 ** (exposure - warm)),
        curve=np.array([int(lift + (255 - lift) * (level / 1023) ** gamma + 0.5) for level in range(1024)], np.uint8),
        matrix=tuple(matrix),
        blur=random.uniform(0.2, 0.5),
        noise=random.uniform(1.5, 9),
        quality=int(random.integers(45, 90)),
        falloff=Image.fromarray(to_pixels(falloff * (255 / 1.3))).convert("RGB"),
        street=street,
        place=place,
    )
