"""Synthetic re-identification pictures: people (even identities) and vehicles (odd identities) seen by many cameras.

Every picture is a pure function of (seed, identity, camera, picture), whatever else was drawn before it. An identity
has its shape, clothes or paint, patterns, prints and accessories; a camera its viewpoint, light, colours, sharpness,
noise and place; a picture its pose, crop, occlusions and exposure. Colours come from short, common palettes and each
camera shifts them, so that colour alone does not tell identities apart.
"""

from __future__ import annotations

from shards.synthetic.camera import HEIGHT, WIDTH
from shards.synthetic.pictures import render

__all__ = ["HEIGHT", "WIDTH", "render"]
