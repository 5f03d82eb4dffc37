"""Synthetic pictures: repeatable, told apart by identity, changed by camera, and not solved by colour alone."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.synthetic import HEIGHT, WIDTH, people, poses, render, traffic, vehicles
from shards.synthetic.camera import camera_of
from shards.synthetic.draw import Light, generator
from shards.synthetic.view import View

LIGHT = Light(right=0.4, up=0.5, front=0.7, ambient=0.5, diffuse=0.5)
KEYS = [(0, 0, 0, 0), (0, 1, 0, 0), (0, 6, 2, 5), (0, 7, 1, 3), (3, 10**6, 40, 10**4), (3, 10**6 + 1, 40, 10**4)]


def digest(picture: NDArray[np.uint8]) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def mean_average_precision(features: NDArray[np.float64], pids: NDArray[np.int_], camids: NDArray[np.int_]) -> float:
    """Cosine; every picture is a query; pictures of the same identity by the same camera are left out."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    precisions = []
    for query, scores in enumerate(features @ features.T):
        kept = (pids != pids[query]) | (camids != camids[query])
        hits = (pids[kept] == pids[query])[np.argsort(-scores[kept], kind="stable")]
        ranks = np.flatnonzero(hits) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(precisions))


def rgb_histogram(picture: NDArray[np.uint8]) -> NDArray[np.int_]:
    level = (picture >> 5).astype(np.int64)
    return np.bincount((level[..., 0] * 64 + level[..., 1] * 8 + level[..., 2]).ravel(), minlength=512)


def hsv_histogram(picture: NDArray[np.uint8]) -> NDArray[np.int_]:
    hsv = np.asarray(Image.fromarray(picture).convert("HSV")).astype(np.int64)
    return np.bincount((hsv[..., 0] // 16 * 16 + hsv[..., 1] // 64 * 4 + hsv[..., 2] // 64).ravel(), minlength=256)


def portrait(identity: int, yaw: float) -> NDArray[np.int16]:
    """An identity before grey, lit and posed the same for all."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
    if identity % 2:
        vehicle = vehicles.build(0, identity)
        view = View(yaw, 0.5, 16, 0.7).fitted(vehicle.corners.reshape(-1, 3), (8, 20, 120, 240), (0.9, 2.0))
        traffic.park(image, vehicle, view, LIGHT)
    else:
        body = np.array([[-0.12, 0, 0], [0.12, 0, 1.0]])
        view = View(yaw, 0.2, 4, 0.5).fitted(body, (0, 15, 128, 245), (1.0, 1.0))
        poses.draw(image, people.build(0, identity), view, LIGHT, generator(0, 99))
    return np.asarray(image).astype(np.int16)


@pytest.mark.parametrize("key", KEYS)
def test_picture_is_a_full_rgb_image(key: tuple[int, int, int, int]) -> None:
    picture = render(*key)
    assert picture.shape == (HEIGHT, WIDTH, 3) == (256, 128, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 8


def test_result_depends_on_the_four_numbers_alone() -> None:
    """A fresh process that draws other things first, in another order, gets the same bytes."""
    code = (
        "import hashlib\nfrom shards.synthetic import render\n"
        "for identity in range(70): render(0, identity, identity % 3, 1)\n"
        f"for key in reversed({KEYS}): print(hashlib.sha256(render(*key).tobytes()).hexdigest())\n"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [digest(render(*key)) for key in KEYS] == other[::-1]


def test_returned_picture_is_the_callers_own() -> None:
    before = digest(render(0, 2, 1, 0))
    render(0, 2, 1, 0)[:] = 0
    assert digest(render(0, 2, 1, 0)) == before


@pytest.mark.parametrize("place", range(4))
def test_each_number_changes_the_picture(place: int) -> None:
    key, other = [5, 8, 3, 2], [5, 8, 3, 2]
    other[place] += 2
    assert np.abs(render(*key).astype(int) - render(*other)).mean() > 5


@pytest.mark.parametrize("place", range(4))
def test_negative_number_is_refused(place: int) -> None:
    key = [0, 0, 0, 0]
    key[place] = -1
    with pytest.raises(ValueError, match="non-negative"):
        render(*key)


@pytest.mark.parametrize("kind", [0, 1])
def test_identities_look_different_in_the_same_pose(kind: int) -> None:
    for yaw in (0.4, 3.4):
        portraits = [portrait(identity, yaw) for identity in range(kind, kind + 24, 2)]
        assert (portraits[0] == portrait(kind, yaw)).all()
        for one, other in pairwise(portraits):
            foreground = (one != 128).any(axis=2) | (other != 128).any(axis=2)
            assert np.abs(one - other)[foreground].mean() > 12


def test_people_differ_in_what_they_carry() -> None:
    kits = {tuple(sorted(people.build(0, identity).parts)) for identity in range(0, 80, 2)}
    assert len(kits) > 12


def test_front_and_back_of_a_person_differ() -> None:
    assert np.abs(portrait(4, 0.0) - portrait(4, np.pi)).mean() > 3


def test_each_camera_has_its_own_white_balance_and_exposure() -> None:
    """The same grey card, seen by each camera."""
    shots = []
    for number in range(8):
        camera = camera_of(0, number)
        card = Image.new("RGB", camera.falloff.size, (128, 128, 128))
        shots.append([camera.capture(card, generator(0, 99, k)).mean(axis=(0, 1)) for k in range(4)])
    means = np.array(shots)
    for value in (np.log(means[..., 0] / means[..., 2]), np.log(means.mean(axis=2))):
        assert value.mean(axis=1).std() > 0.15
        assert value.mean(axis=1).std() > 1.2 * value.std(axis=1).mean()


def test_cameras_change_whole_pictures_more_than_poses_do() -> None:
    means = np.array([[render(0, 2 * k, camera, k).mean(axis=(0, 1)) for k in range(6)] for camera in range(6)])
    for value in (np.log(means[..., 0] / means[..., 2]), np.log(means.mean(axis=2))):
        assert value.mean(axis=1).std() > 1.2 * value.std(axis=1).mean()


def test_colour_histograms_do_not_solve_it() -> None:
    identities, cameras = 30, 6
    keys = [(identity, (identity + k) % cameras, k) for identity in range(identities) for k in range(4)]
    pictures = [render(0, *key) for key in keys]
    pids, camids = np.array([k[0] for k in keys]), np.array([k[1] for k in keys])
    for histogram in (rgb_histogram, hsv_histogram):
        features = np.array([histogram(picture) for picture in pictures], np.float64)
        assert mean_average_precision(features, pids, camids) < 0.15
