"""``--resize``: pictures that are larger than anybody will look at are shrunk before they are written."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from PIL import Image

from shards.sources.picture import Splits
from vmreid.data.pictures import decode
from vmreid.errors import UserError

JPEG_QUALITY = 92  # of all that is encoded here


def shrink_all(splits: Splits, longest: int) -> Splits:
    """The same pictures, whose bytes are shrunk when they are read; see ``shrink``."""
    return {
        split: [replace(picture, read=partial(_read, picture.read, longest, picture.name)) for picture in pictures]
        for split, pictures in splits.items()
    }


def _read(read: Callable[[], bytes], longest: int, name: str) -> bytes:
    return shrink(read(), longest, name)


def shrink(data: bytes, longest: int, name: str) -> bytes:
    """A picture whose longer side exceeds ``longest`` pixels as a JPEG that has it; the bytes of any other as they are.

    Raises UserError where the bytes are no picture.
    """
    try:
        picture = decode(data, name)
    except UserError as error:
        fault = str(error).partition(";")[0]
        raise UserError(f"{fault}, so it cannot be resized; replace it, or write without --resize") from None
    if max(picture.size) <= longest:
        return data
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
