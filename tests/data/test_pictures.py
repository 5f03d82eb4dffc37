"""Decoding of what people have: every kind of picture, upright and in its colours, or one line that says why not."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image
from small_set import picture_bytes

from vmreid.data import pictures
from vmreid.data.pictures import decode, pixels
from vmreid.data.transforms import TrainTransform, resize
from vmreid.errors import UserError
from vmreid.recipes.schema import Augment


def saved(picture: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def quarters() -> Image.Image:
    picture = Image.new("RGB", (60, 120))
    for colour, (x, y) in zip(("red", "lime", "blue", "white"), ((0, 0), (30, 0), (0, 60), (30, 60)), strict=True):
        picture.paste(Image.new("RGB", (30, 60), colour), (x, y))
    return picture


def corners(picture: Image.Image) -> list[tuple[int, ...]]:
    """Colours near the four corners, each channel rounded to 0 or 255."""
    width, height = picture.size
    places = [(x, y) for y in (10, height - 10) for x in (10, width - 10)]
    return [tuple(255 * (value > 127) for value in picture.getpixel(place)) for place in places]  # type: ignore[union-attr]


def exif(orientation: int) -> Image.Exif:
    fields = Image.Exif()
    fields[ExifTags.Base.Orientation] = orientation
    return fields


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("WEBP", "RGB"), ("BMP", "RGB")],
)
def test_other_kinds_decode_to_rgb(kind: str, mode: str) -> None:
    picture = decode(picture_bytes(1, 2, kind, mode), "picture")
    assert (picture.mode, picture.size) == ("RGB", (24, 36))


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("JPEG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("GIF", "P")]
)
def test_colours_stay(kind: str, mode: str) -> None:
    assert corners(decode(saved(quarters().convert(mode), kind), "x")) == corners(quarters())


def test_greyscale_of_16_bits_keeps_its_upper_8() -> None:
    grey_HW = np.linspace(0, 65535, 100, dtype=np.uint16).reshape(10, 10)
    picture = decode(saved(Image.fromarray(grey_HW), "PNG"), "x")
    assert np.array_equal(np.asarray(picture), np.repeat((grey_HW >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_obeyed(kind: str, orientation: int) -> None:
    """What a camera held in each of 8 ways writes, shows the same scene."""
    held = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters().transpose(held[orientation]) if orientation > 1 else quarters()
    data = saved(stored, kind, exif=exif(orientation))
    picture = decode(data, "x", (15, 7.5))
    assert picture.size == ((60, 120) if kind != "JPEG" else (30, 60))  # the JPEG at half its size, for its longer side
    assert corners(picture) == corners(quarters())
    assert corners(decode(data, "x")) == corners(quarters())  # in full


@pytest.mark.parametrize(
    "broken", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", b"Exif\0\0nothing"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_counts_as_none(kind: str, broken: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor does it fill the log
        assert corners(decode(saved(quarters(), kind, exif=broken), "x")) == corners(quarters())


def test_a_palette_with_transparency_says_nothing() -> None:
    data = saved(quarters().convert("P"), "PNG", transparency=bytes([0, 7, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert corners(decode(data, "x")) == corners(quarters())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        picture_bytes(0, 0)[:300],
        picture_bytes(0, 0)[:-9],
        picture_bytes(0, 0, "PNG")[:300],
        picture_bytes(0, 0, "PCX"),  # a kind that nobody needs, as EPS, for which Pillow starts an interpreter
    ],
)
def test_what_does_not_decode(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^x\.tar picture 7: does not decode as a picture .*shards\.verify") as caught:
        decode(data, "x.tar picture 7")
    assert "\n" not in str(caught.value)
    assert "object at 0x" not in str(caught.value)  # the same words each time


@pytest.mark.parametrize("side", [10_000, 14_000])  # Pillow warns of the first and refuses the second
def test_decompression_bombs(side: int) -> None:
    with pytest.raises(UserError, match=r"^picture 7: does not decode.*pixels"):
        decode(saved(Image.new("1", (side, side)), "PNG"), "picture 7")


def test_a_text_bomb() -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("it", "0" * 3_000_000, zip=True)
    with pytest.raises(UserError, match=r"^x: does not decode"):
        decode(saved(quarters(), "PNG", pnginfo=text), "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damaged_bytes_raise_nothing_else(kind: str) -> None:
    random = np.random.default_rng(0)
    whole = saved(quarters(), kind, **({"exif": exif(6)} if kind in ("JPEG", "PNG", "WEBP") else {}))
    for number in range(200):
        data = bytearray(whole)
        for place in random.integers(0, len(data) if number % 2 else 200, 3):
            data[place % len(data)] = random.integers(0, 256)
        try:
            assert decode(bytes(data), "x").mode == "RGB"
        except UserError:
            continue


def detailed(width: int, height: int) -> Image.Image:
    """Detail of every size down to a few pixels, as in a sharp photograph."""
    random = np.random.default_rng(0)
    layers = [
        np.asarray(Image.fromarray(random.integers(0, 256, (height // step, width // step, 3), np.uint8)).resize((width, height)))
        for step in (2, 4, 8, 16, 32)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((64, 128), (64, 128)),
        ((127, 256), (127, 256)),  # four times as large in one direction alone
        ((128, 256), (64, 128)),
        ((300, 512), (75, 128)),
        ((1024, 2048), (128, 256)),  # a JPEG has no smaller scale
    ],
)
def test_a_jpeg_much_larger_than_wanted_decodes_at_a_smaller_scale(size: tuple[int, int], decoded: tuple[int, int]) -> None:
    picture = detailed(*size)
    for kind, expected in (("JPEG", decoded), ("PNG", size)):
        data = saved(picture, kind)
        small, whole = decode(data, "x", (64, 32)), decode(data, "x")
        assert (small.size, whole.size) == (expected, size)
        difference = resize(small, (64, 32)).float() - resize(whole, (64, 32)).float()
        assert difference.abs().mean() < 1
        if expected == size:
            assert difference.abs().max() == 0


def test_the_smallest_crop_of_training_is_never_enlarged() -> None:
    """The decoded picture, less than which a crop may keep, still has all that the image size can show, twice over."""
    for scale in (0.2, 0.8, 1.0):
        transform = TrainTransform((64, 32), Augment(crop_scale=(scale, 1.0), flip=0, colour_jitter=0))
        picture = decode(saved(detailed(512, 1024), "JPEG"), "x", transform.least)
        width = picture.width * (scale * 0.9) ** 0.5  # as narrow as a crop may be
        assert 2 * 32 <= width < 4 * 32


def jpegs() -> dict[str, bytes]:
    """Of every kind that people's tools write, the sides no multiples of anything."""
    picture = detailed(61, 83)
    samplings = {
        name: simplejpeg.encode_jpeg(np.array(picture), 85, colorsubsampling=name) for name in ("444", "422", "440", "411")
    }
    return samplings | {
        "best": saved(picture, "JPEG", quality=100, subsampling=0),
        "worst": saved(picture, "JPEG", quality=1),
        "progressive": saved(picture, "JPEG", progressive=True),
        "restarts": saved(picture, "JPEG", restart_marker_blocks=2),
        "grey": saved(picture.convert("L"), "JPEG"),
        "RGB inside": saved(picture, "JPEG", keep_rgb=True, subsampling=0),
        "one pixel": saved(picture.crop((0, 0, 1, 1)), "JPEG"),
        "a comment": saved(picture, "JPEG", comment=b"by hand", dpi=(300, 300)),
        "more behind it": saved(picture, "JPEG") + b"more",
    }


def test_a_plain_jpeg_has_the_pixels_that_pillow_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: pixels(data, name) for name, data in jpegs().items()}
    taken = {name: decode(data, name) for name, data in jpegs().items()}
    monkeypatch.setattr(pictures, "_plain_jpeg", lambda data, least: None)
    for name, data in jpegs().items():
        expected_HWC = np.asarray(decode(data, name))
        assert np.array_equal(found[name], expected_HWC), name
        assert np.array_equal(np.asarray(taken[name]), expected_HWC), name


def test_most_jpegs_need_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_by_pillow", lambda data, name, least: pytest.fail(name))
    for name, data in jpegs().items():
        assert pixels(data, name, (83, 61)).shape == ((1, 1, 3) if name == "one pixel" else (83, 61, 3))


@pytest.mark.parametrize("limit", [61 * 83 - 1, None])
def test_a_jpeg_bomb(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit is None:
        assert pixels(jpegs()["444"], "x").shape == (83, 61, 3)
    else:
        with pytest.raises(UserError, match=r"^x: does not decode.*pixels"):
            pixels(jpegs()["444"], "x")


def test_damaged_jpegs_are_what_pillow_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, or of the same pixels: what looks whole to one and not to the other is left to Pillow."""
    random, kinds = np.random.default_rng(0), list(jpegs().values())
    damaged = []
    for number in range(1500):
        data = bytearray(kinds[number % len(kinds)])
        for place in random.integers(0, len(data) if number % 2 else 300, 2):
            data[place % len(data)] = random.integers(0, 256)
        damaged.append(bytes(data) if number % 7 else bytes(data[: random.integers(len(data))]))

    def seen(data: bytes) -> bytes | None:
        try:
            return pixels(data, "x").tobytes()
        except UserError:
            return None

    found = [seen(data) for data in damaged]
    monkeypatch.setattr(pictures, "_plain_jpeg", lambda data, least: None)
    assert found == [seen(data) for data in damaged]
    assert 100 < found.count(None) < 1400
