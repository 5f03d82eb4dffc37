"""Bytes of a picture file to an upright RGB picture: whatever they are, a picture or one line that says why not."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from vmreid.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow knows more, and runs Ghostscript for one of them
COLOURS = ("YCbCr", "RGB", "Gray")  # of a JPEG that turns into RGB in one way only
ROOM = 2  # a picture decoded at a reduced scale stays this many times as large as what is made of it


def decode(data: bytes, name: str, least: tuple[float, float] | None = None) -> Image.Image:
    """An RGB picture of 8 bits a channel. Raises UserError that names the picture, in one line.

    ``least``: height and width of the smallest picture that is going to be made of it. A JPEG decodes at 1/2, 1/4 or 1/8
    of its size where ``ROOM`` times ``least`` remains on both sides, which is faster; the resized picture then differs by
    less than one grey level on average. Pictures less than twice ``ROOM`` times as large as ``least`` stay as they are.

    The Exif orientation is obeyed, as fast-reid does: crops cut by a tool have none, photographs from a telephone need it.
    Broken Exif data counts as none. Alpha is dropped; greyscale of 16 bits keeps its upper 8; of several frames the first
    counts. More pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` are refused before they are decoded.
    """
    image_HWC = _plain_jpeg(data, least)
    return _by_pillow(data, name, least) if image_HWC is None else Image.fromarray(image_HWC)


def pixels(data: bytes, name: str, least: tuple[float, float] | None = None) -> np.ndarray:
    """``decode`` as an array, uint8 [height, width, 3], which takes less time where no picture is needed."""
    image_HWC = _plain_jpeg(data, least)
    return np.asarray(_by_pillow(data, name, least)) if image_HWC is None else image_HWC


def _plain_jpeg(data: bytes, least: tuple[float, float] | None) -> np.ndarray | None:
    """Most pictures, in half to two thirds of Pillow's time to the same array: a JPEG that libjpeg-turbo has nothing to say
    about, upright and to be decoded in full. None for all others, of which Pillow has the last word."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in COLOURS or height * width > (Image.MAX_IMAGE_PIXELS or math.inf) or b"Exif\0\0" in data:
            return None
        if least and min(height // math.ceil(ROOM * least[0]), width // math.ceil(ROOM * least[1])) > 1:
            return None
        image_HWC: np.ndarray = simplejpeg.decode_jpeg(data)
        return image_HWC
    except ValueError:
        return None


def _by_pillow(data: bytes, name: str, least: tuple[float, float] | None) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of a thumbnail that is cut off; what matters is said below
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if least:
                height, width = least if "exif" not in picture.info else (max(least), max(least))  # it may lie on its side
                picture.draft(None, (math.ceil(ROOM * width), math.ceil(ROOM * height)))
            picture.load()
            return _upright(_rgb(picture))
    except UnidentifiedImageError:
        reason = f"{len(data)} bytes that are none of {', '.join(FORMATS)}"
    except Exception as error:  # Pillow's parsers may trip over any byte, each in its own way
        reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(
        f"{name}: does not decode as a picture ({reason}); python -m shards.verify lists all such, then write the set again"
    )


def _rgb(picture: Image.Image) -> Image.Image:
    """Pillow's own conversion would cut 16 bits off at 255, which leaves white."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    if "exif" not in picture.info:
        return picture
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture
