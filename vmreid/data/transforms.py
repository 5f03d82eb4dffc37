"""Pictures to tensors: what training does to them at random, the plain resize of evaluation."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from vmreid.compat import prepare_torchvision
from vmreid.recipes.schema import Augment

prepare_torchvision()
from torchvision.transforms import RandomResizedCrop  # noqa: E402
from torchvision.transforms import v2 as transforms  # noqa: E402
from torchvision.transforms.v2 import functional  # noqa: E402

ASPECT = 0.9  # a crop is at most this much narrower or flatter than the picture
AREA, RATIO = (0.02, 0.4), (0.3, 1 / 0.3)  # of a rectangle that is erased or greyed, as both papers have it
FILL = [124, 116, 104]  # ImageNet's mean colour, which random erasing leaves behind
OPERATIONS, MAGNITUDE = 2, 9  # of RandAugment, as its paper has them for ImageNet


class TrainTransform:
    """``Augment``'s parts in its order, drawn from the sample's own seed, so from nothing that a machine changes.

    Works on Pillow pictures: on tensors this small, the threads of torch's operators cost far more than they give, and
    its resize gives other pixels on a processor without AVX2.
    """

    def __init__(self, size: tuple[int, int], augment: Augment) -> None:
        self.size, self.augment = size, augment
        strength = augment.colour_jitter
        self._jitter = transforms.ColorJitter(strength, strength, strength)
        self._shift = transforms.RandomCrop(size, padding=augment.pad)
        self._randomly = transforms.RandAugment(OPERATIONS, MAGNITUDE, interpolation=transforms.InterpolationMode.BILINEAR)
        self._rectangle = transforms.RandomErasing(scale=AREA, ratio=RATIO, value=FILL, inplace=True)
        smallest = math.sqrt(augment.crop_scale[0] * ASPECT)  # share of a side that a crop keeps
        self.least = size[0] / smallest, size[1] / smallest  # for ``decode``: a crop of it then is as large as ``size``

    def __call__(self, picture: Image.Image, seed: tuple[int, ...]) -> torch.Tensor:
        """A picture of any size to uint8 [3, height, width]."""
        augment = self.augment
        with _drawing_from(zlib.crc32(repr(seed).encode())):
            picture = self._cropped(picture)
            if _happens(augment.flip):
                picture = functional.horizontal_flip(picture)
            if augment.colour_jitter:
                picture = self._jitter.transform(picture, self._jitter.make_params([]))
            if _happens(augment.rand_augment):
                picture = self._randomly(picture)
            if augment.pad:
                picture = self._shift.transform(picture, self._shift.make_params([picture]))
            if _happens(augment.local_grayscale):
                self._turn_grey(picture)
            image_CHW = _to_tensor(np.asarray(picture))
            if _happens(augment.erasing):
                self._rectangle.transform(image_CHW, self._rectangle.make_params([image_CHW]))
        return image_CHW

    def _cropped(self, picture: Image.Image) -> Image.Image:
        if self.augment.crop_scale != (1, 1):
            aspect = picture.width / picture.height
            ratio = [aspect * ASPECT, aspect / ASPECT]
            top, left, height, width = RandomResizedCrop.get_params(picture, list(self.augment.crop_scale), ratio)
            picture = picture.crop((left, top, left + width, top + height))
        return picture.resize(self.size[::-1], Image.Resampling.BILINEAR)

    def _turn_grey(self, picture: Image.Image) -> None:
        """A random rectangle, in place (Gong et al., arXiv 2101.08533)."""
        place = self._rectangle.make_params([picture])
        if place["v"] is not None:
            box = (place["j"], place["i"], place["j"] + place["w"], place["i"] + place["h"])
            picture.paste(picture.crop(box).convert("L"), box)


def resize(picture: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """A picture to uint8 [3, *size], bilinear with antialiasing."""
    return _to_tensor(np.asarray(functional.resize(picture, list(size))))


def resize_pixels(image_HWC: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """``resize`` of an RGB picture's uint8 [height, width, 3]; no picture is made of one that has the size already."""
    return _to_tensor(image_HWC) if image_HWC.shape[:2] == size else resize(Image.fromarray(image_HWC), size)


@contextlib.contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """torchvision draws from torch's CPU generator alone; ``torch.random.fork_rng`` costs as much as the decoding."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _happens(probability: float) -> bool:
    return probability > 0 and bool(torch.rand(()) < probability)


def _to_tensor(image_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)))
