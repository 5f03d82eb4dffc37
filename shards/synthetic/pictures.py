"""One picture: a place, a subject with its shadow, what stands in the way, and the camera's view of it all."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from shards.synthetic import cloth, people, poses, traffic, vehicles
from shards.synthetic.camera import HEIGHT, WIDTH, Camera, camera_of
from shards.synthetic.draw import Light, Pixels, generator, packed, profile, shadow, strips, tube
from shards.synthetic.people import Person
from shards.synthetic.view import View

_TAG, _TAG_CROWD = 6, 7
_CROWD = 24  # strangers of each kind
_POLE = profile([(0, 1), (1, 1)])

person_of = lru_cache(maxsize=64)(people.build)
vehicle_of = lru_cache(maxsize=64)(vehicles.build)


def render(seed: int, identity: int, camera: int, picture: int) -> Pixels:
    """The picture of this number of an identity by a camera: uint8 [256, 128, 3], RGB.

    Even identities are people, odd ones vehicles. All four numbers are zero or more and otherwise free; the result
    depends on nothing else. ValueError where one is negative.
    """
    random = generator(seed, _TAG, identity, camera, picture)
    lens = camera_of(seed, camera)
    light = replace(
        lens.light,
        right=lens.light.right + random.uniform(-0.2, 0.2),
        ambient=lens.light.ambient * random.uniform(0.92, 1.08),
    )
    road = identity % 2 == 1
    image = lens.backdrop(random, road)
    if road:
        _vehicle_scene(image, lens, light, seed, identity, random)
    else:
        _person_scene(image, lens, light, seed, identity, random)
    if random.random() < 0.15:
        _pole(image, light, random)
    if random.random() < 0.2:  # the shadow of a building or a tree falls across
        x, slant = image.width * random.uniform(-0.1, 1.1), random.uniform(-70, 70)
        far = -40 if random.random() < 0.5 else image.width + 40
        shadow(image, [(far, 0), (x, 0), (x + slant, image.height), (far, image.height)], 0.4, 6)
    return lens.capture(image, random)


def _person_scene(image: Image.Image, lens: Camera, light: Light, seed: int, identity: int, random: np.random.Generator) -> None:
    view = lens.person_view(random)
    company = random.random()
    if company < 0.16:
        _stranger(image, lens, light, seed, random, behind=True)
    _stand(image, person_of(seed, identity), lens.captured(view), light, random)
    if company > 0.92:
        _stranger(image, lens, light, seed, random, behind=False)
    elif company > 0.86:  # a parked car hides the legs
        vehicle = vehicle_of(seed, _stranger_number(random))
        top, shift = HEIGHT * random.uniform(0.62, 0.85), random.uniform(-60, 60)
        points = vehicle.corners.reshape(-1, 3)
        ahead = lens.vehicle_view(random, points).fitted(points, (shift - 70, top, shift + 200, top + 200), (0.7, 1.3))
        traffic.park(image, vehicle, lens.captured(ahead), light)


def _vehicle_scene(image: Image.Image, lens: Camera, light: Light, seed: int, identity: int, random: np.random.Generator) -> None:
    vehicle = vehicle_of(seed, identity)
    view = lens.vehicle_view(random, vehicle.corners.reshape(-1, 3))
    company = random.random()
    if company < 0.2:
        other = vehicle_of(seed, _stranger_number(random))
        beside = replace(
            view,
            centre_x=view.centre_x + (1 if random.random() < 0.5 else -1) * random.uniform(75, 110),
            centre_y=view.centre_y - random.uniform(20, 70),
        )
        traffic.park(image, other, lens.captured(beside), light)
    traffic.park(image, vehicle, lens.captured(view), light)
    if company > 0.86:
        _stranger(image, lens, light, seed, random, behind=False)


def _stranger_number(random: np.random.Generator) -> int:
    """Strangers are nobody's identity: their numbers lie beyond any that a data set holds."""
    return (1 << 40) + int(random.integers(_CROWD))


def _stranger(image: Image.Image, lens: Camera, light: Light, seed: int, random: np.random.Generator, behind: bool) -> None:
    """Somebody else, to one side; further away if behind."""
    view = lens.person_view(random)
    factor = random.uniform(0.6, 0.9) if behind else random.uniform(0.9, 1.1)
    side = 1 if random.random() < 0.5 else -1
    view = replace(
        view,
        scale_x=view.scale_x * factor,
        scale_y=view.scale_y * factor,
        centre_x=WIDTH / 2 + side * random.uniform(36, 68),
        centre_y=view.centre_y + (-20 if behind else 12),
    )
    _stand(image, person_of(seed, _stranger_number(random)), lens.captured(view), light, random)


def _stand(image: Image.Image, person: Person, view: View, light: Light, random: np.random.Generator) -> None:
    feet_x, feet_y, _ = view.project(np.zeros((1, 3)))[0].tolist()
    wide, flat = view.scale_x * 0.17, view.scale_y * (0.03 + 0.1 * math.sin(view.pitch))
    lean = -light.right * view.scale_x * 0.2
    ring = [(math.cos(step * math.pi / 6), math.sin(step * math.pi / 6)) for step in range(12)]
    shadow(image, [(feet_x + lean + c * wide, feet_y + s * flat) for c, s in ring], 0.55, 6)
    poses.draw(image, person, view, light, random)


def _pole(image: Image.Image, light: Light, random: np.random.Generator) -> None:
    """A lamp post, a sign or a trunk between camera and subject."""
    colour = cloth.colour_of(random, cloth.TOPS)
    texture = cloth.fabric(random, colour, (200, 200, 196), (6, 1, 0, 0, 0, 0, 1, 0.5, 0))
    x, tilt = random.uniform(4, image.width - 4), random.uniform(-6, 6)
    strip = strips([packed(texture)], [(0.0, 1.0)], [0.0], light)[0]
    tube(image, (x, -8), (x + tilt, image.height + 8), random.uniform(0.02, 0.055) * image.width, _POLE, strip)
