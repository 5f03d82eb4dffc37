"""Pictures to tensors: decoding, the note's mild augmentation, the plain resize of evaluation."""

from __future__ import annotations

import io
import warnings
import zlib

import numpy as np
import torch
from PIL import Image

from vmreid.compat import prepare_torchvision
from vmreid.errors import UserError
from vmreid.recipes.schema import Augment

prepare_torchvision()
from torchvision.transforms import RandomResizedCrop  # noqa: E402
from torchvision.transforms import v2 as transforms  # noqa: E402
from torchvision.transforms.v2 import functional  # noqa: E402

ASPECT = 0.9  # a crop is at most this much narrower or flatter than the picture


def decode(data: bytes, name: str) -> Image.Image:
    """JPEG, PNG or other bytes to an RGB picture. Raises UserError that names the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{name}: does not decode as a picture ({error}); python -m shards.verify lists all such, then write the set again"
        ) from None


class TrainTransform:
    """Random resized crop, flip, colour jitter, drawn from the sample's own seed, so from nothing that a machine changes.

    Works on Pillow pictures: on tensors this small, the threads of torch's operators cost far more than they give.
    """

    def __init__(self, size: tuple[int, int], augment: Augment) -> None:
        self.size, self.augment = list(size), augment
        strength = augment.colour_jitter
        self._jitter = transforms.ColorJitter(strength, strength, strength) if strength else None

    def __call__(self, picture: Image.Image, seed: tuple[int, ...]) -> torch.Tensor:
        """A picture of any size to uint8 [3, height, width]."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(repr(seed).encode()))
            aspect = picture.width / picture.height
            ratio = [aspect * ASPECT, aspect / ASPECT]
            place = RandomResizedCrop.get_params(picture, list(self.augment.crop_scale), ratio)
            picture = functional.resized_crop(picture, *place, self.size)
            if torch.rand(()) < self.augment.flip:
                picture = functional.horizontal_flip(picture)
            if self._jitter:
                picture = self._jitter(picture)
        return _to_tensor(picture)


def resize(picture: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """A picture to uint8 [3, *size], bilinear with antialiasing."""
    return _to_tensor(functional.resize(picture, list(size)))


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)))
