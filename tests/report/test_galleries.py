"""Sheets of pictures and curves, read back from their pixels: every picture has one colour of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from shards.sources import Picture, Splits
from shards.writer import write_shards
from vmreid.data.contact_sheet import draw_contact_sheet
from vmreid.data.manifest import Manifest, read_index
from vmreid.data.sheet import BORDER, FRAMES, PAPER, THUMBNAIL
from vmreid.evaluation.histogram import BINS, Histogram
from vmreid.evaluation.nearest import Example
from vmreid.report.curves import INK, OTHER, SAME, draw_cmc, draw_distances, draw_precision_recall
from vmreid.report.galleries import draw_galleries

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
SIZES = [(32, 64), (50, 40), (400, 300), (7, 21)]
ORDER = [3, 0, 4, 2, 1, 5]


def png(colour: Colour, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def colour_of(split: str, row: int) -> Colour:
    return (40 + 60 * ("train", "query", "gallery").index(split), 50 + 3 * row, 230 - 3 * row)


def write_coloured(folder: Path, **ids: list[tuple[int, int]]) -> Manifest:
    """Splits given as (pid, camid) by index row."""
    splits: Splits = {"train": [], "query": [], "gallery": []}
    for split, rows in ids.items():
        for row, (pid, camid) in enumerate(rows):
            read = partial(png, colour_of(split, row), SIZES[row % len(SIZES)])
            splits[split].append(Picture(pid, camid, f"{row}.png", read))
    return write_shards(splits, folder, {"name": "coloured"})


def pixels(content: bytes) -> Pixels:
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def place(sheet: Pixels, colour: Colour) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of the picture of a colour, or None where there is none."""
    y, x = (sheet == colour).all(axis=2).nonzero()
    return (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1) if len(x) else None


@pytest.fixture
def shown(tmp_path: Path) -> tuple[Pixels, Pixels]:
    """Two examples, the second identity's query first; and the same without anything found."""
    gallery = [(1, 2), (1, 3), (4, 1), (4, 2), (9, 1), (9, 2)]
    manifest = write_coloured(tmp_path, query=[(1, 1), (4, 3)], gallery=gallery)
    assert [tuple(row)[:2] for row in read_index(tmp_path, manifest.splits["gallery"])] == gallery
    examples = [Example("worst 1 of 2", 1, 0.25, 2, ORDER), Example("median", 0, 0.5, 1, [])]
    few = [Example("worst 1 of 2", 1, 0.25, 2, [])]
    return tuple(pixels(draw_galleries(each, tmp_path, manifest, "run")) for each in (examples, few))  # type: ignore[return-value]


def test_frames_are_green_exactly_where_the_identity_is_the_querys(shown: tuple[Pixels, Pixels]) -> None:
    sheet = shown[0]
    for row in range(6):
        left, top, width, height = place(sheet, colour_of("gallery", row)) or pytest.fail(f"picture {row} is not there")
        wanted = ImageColor.getrgb(FRAMES["right" if row in (2, 3) else "wrong"])
        for x, y in ((left - 1, top), (left - BORDER, top + height // 2), (left + width // 2, top - 1), (left + width, top)):
            assert tuple(sheet[y, x]) == wanted
        assert tuple(sheet[top, left - BORDER - 1]) == ImageColor.getrgb(PAPER)


def test_right_and_wrong_differ_in_shape_as_well_as_in_colour(shown: tuple[Pixels, Pixels]) -> None:
    """The signs at the lower right corner, white on the frame's colour: not the same where colours are taken away."""
    signs = []
    for row in (2, 4):
        left, top, _, _ = place(shown[0], colour_of("gallery", row)) or pytest.fail(f"picture {row} is not there")
        width, height = (max(1, round(side * THUMBNAIL / max(SIZES[row % 4]))) for side in SIZES[row % 4])
        right, bottom = left + width + BORDER, top + height + BORDER
        signs.append(shown[0][bottom - 16 : bottom - 3, right - 16 : right - 3].min(axis=2) > 200)
    assert all(sign.sum() > 15 for sign in signs)
    assert (signs[0] != signs[1]).sum() > 15


def test_pictures_found_stand_nearest_first_behind_their_query(shown: tuple[Pixels, Pixels]) -> None:
    sheet = shown[0]
    places = [place(sheet, colour_of("query", 1)), *(place(sheet, colour_of("gallery", row)) for row in ORDER)]
    lefts = [found[0] for found in places if found]
    assert len(lefts) == 7
    assert lefts == sorted(lefts)
    second = place(sheet, colour_of("query", 0))
    assert second
    assert second[0] == lefts[0]
    assert second[1] > max(found[1] + found[3] for found in places if found)
    assert [place(shown[1], colour_of("gallery", row)) for row in range(6)] == [None] * 6


def test_pictures_keep_their_aspect_ratio(shown: tuple[Pixels, Pixels]) -> None:
    for row in range(2):
        _, _, width, height = place(shown[0], colour_of("query", row)) or pytest.fail("the query is not there")
        assert max(width, height) == THUMBNAIL
        assert width / height == pytest.approx(SIZES[row][0] / SIZES[row][1], abs=0.02)


def test_the_contact_sheet_spreads_identities_and_cameras(tmp_path: Path) -> None:
    """15 identities: every second is shown. Identity 0 has cameras 2, 5, 7 and 9 pictures, the others one of camera 1."""
    first = [(0, camid) for camid in (2, 2, 2, 2, 5, 5, 5, 7, 7)]
    manifest = write_coloured(tmp_path, train=first + [(pid, 1) for pid in range(1, 15)])
    sheet = pixels(draw_contact_sheet(tmp_path, manifest))
    places = [place(sheet, colour_of("train", row)) for row in range(23)]
    order = sorted((found[0], row) for row, found in enumerate(places[:9]) if found)
    assert [row for _, row in order] == [0, 1, 4, 5, 7, 8]  # two of each camera
    assert len({found[1] for found in places[:9] if found}) == 1  # in one line
    below = [row for row, found in enumerate(places) if found and row >= 9]
    assert below == [8 + pid for pid in range(2, 15, 2)]
    others = [found for row in below if (found := places[row])]
    tops = [min(found[1] for found in places[:9] if found), *(top for _, top, _, _ in others)]
    assert tops == sorted(set(tops))
    assert len({left for left, _, _, _ in others}) == 1  # in one column, with two left of the first line's
    assert order[0][0] > 2 * THUMBNAIL + others[0][0]


def test_a_set_for_evaluation_alone_shows_its_gallery(tmp_path: Path) -> None:
    """30 cameras: 24 of them, from the first to the last."""
    manifest = write_coloured(tmp_path, query=[(1, 0)], gallery=[(1, camid) for camid in range(30)])
    sheet = pixels(draw_contact_sheet(tmp_path, manifest))
    shown = [row for row in range(30) if place(sheet, colour_of("gallery", row))]
    assert len(shown) == 24
    assert {0, 29} <= set(shown)
    lefts = [found[0] for row in shown if (found := place(sheet, colour_of("gallery", row)))]
    assert lefts == sorted(set(lefts))


def test_few_identities_are_each_shown_once(tmp_path: Path) -> None:
    sheet = pixels(draw_contact_sheet(tmp_path, write_coloured(tmp_path, train=[(3, 0), (8, 0), (9, 1)])))
    assert all(place(sheet, colour_of("train", row)) for row in range(3))


def test_a_better_curve_lies_higher_and_each_direction_has_a_panel() -> None:
    def height_of_the_models_curve(cmc: list[float]) -> tuple[float, int]:
        image = pixels(draw_cmc({"query to gallery": {"model": cmc, "chance": [k / 50 for k in range(50)]}}, "run $x$"))
        y, _ = (image == ImageColor.getrgb(INK)).all(axis=2).nonzero()
        return float(np.median(y)), image.shape[1]

    (good, width), (bad, _) = (height_of_the_models_curve([value] * 50) for value in (0.75, 0.25))
    assert good < bad - 100
    curves = {"model": [0.5] * 50}
    assert pixels(draw_cmc({"a": curves, "b": curves}, "run")).shape[1] > 1.5 * width


def test_precision_is_drawn_over_recall() -> None:
    """A model that finds half of the right pictures at once and the rest late: high at the left, low at the right."""
    image = pixels(draw_precision_recall({"query to gallery": {"model": [0.9] * 51 + [0.1] * 50}}, "run"))
    y, x = (image == ImageColor.getrgb(INK)).all(axis=2).nonzero()
    middle = image.shape[1] // 2
    left, right = (np.median(y[(x > low) & (x < high)]) for low, high in ((120, middle - 60), (middle + 60, image.shape[1] - 60)))
    assert left < right - 100


def test_distances_of_positive_pairs_lie_where_they_were_counted() -> None:
    """Positives in bins 200 to 299, negatives, a thousand times as many, in 600 to 799: two areas, the first twice as high."""

    def counted(first: int, end: int, count: int) -> list[int]:
        return [count * (first <= place < end) for place in range(BINS)]

    drawn = draw_distances(Histogram("cosine", 0.002, counted(200, 300, 3), counted(600, 800, 3000), 7, 9), "run $x$")
    image = pixels(drawn).astype(int)
    areas = []
    for colour in (SAME, OTHER):
        shade = np.array([round(255 + 0.3 * (value - 255)) for value in ImageColor.getrgb(colour)])
        y, x = (np.abs(image - shade).max(axis=2) <= 2).nonzero()
        areas.append((int(x.min()), int(x.max()), int(np.ptp(y))))
    (left, right, height), (other_left, other_right, other_height) = areas
    assert left < right < other_left < other_right
    assert (other_right - other_left) / (right - left) == pytest.approx(2, rel=0.1)
    assert height / other_height == pytest.approx(2, rel=0.1)


def test_what_trains_does_not_import_matplotlib() -> None:
    """Nor do the sheets; it takes about as long as a step of training."""
    program = (
        "import sys, launcher.train, vmreid.engine.trainer, vmreid.data.contact_sheet; assert 'matplotlib' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0
