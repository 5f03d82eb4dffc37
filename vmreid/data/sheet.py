"""Sheets of pictures: lines of thumbnails with captions, drawn with Pillow alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from vmreid.data.folder import Place
from vmreid.data.manifest import Split, read_index
from vmreid.data.pictures import decode
from vmreid.data.ranges import ShardRanges

Frame = Literal["query", "right", "wrong", "none"]
PAPER, INK, MUTED = "#ffffff", "#1c2733", "#5b6874"
FRAMES: dict[Frame, str] = {"query": INK, "right": "#1a8a3c", "wrong": "#c62f2f", "none": "#dfe3e6"}
THUMBNAIL = 128  # longer side, pixels
BORDER = 4
GAP, MARGIN = 10, 20
TITLE, CAPTION, LABEL = 20, 15, 12  # font sizes
SIGN = 20


@dataclass(frozen=True)
class Cell:
    """A picture with a label above it. ``right`` has a green frame and a tick, ``wrong`` a red one and a cross."""

    picture: Image.Image
    label: str
    frame: Frame = "none"


@dataclass(frozen=True)
class Line:
    """Cells beside each other below a caption; None leaves a place empty."""

    caption: str
    cells: Sequence[Cell | None]


class SplitPictures:
    """A split's pictures by index row; ``index`` has their identities and cameras."""

    def __init__(self, folder: Place, split: Split) -> None:
        self.index = read_index(folder, split)
        self._ranges = ShardRanges(folder, split, self.index)

    def cell(self, row: int, frame: Frame = "none") -> Cell:
        """The picture of a row, small, its camera above it. Raises UserError where it cannot be read."""
        label = f"camera {self.index[row]['camid']}"
        picture = _thumbnail(decode(*self._ranges.picture(row), (THUMBNAIL, THUMBNAIL)))
        return Cell(picture, f"query, {label}" if frame == "query" else label, frame)


def draw_sheet(title: str, note: str, lines: list[Line]) -> bytes:
    """A PNG file: title, a note below it, the lines in one grid. Pictures keep their aspect ratio."""
    title, note = (" ".join(text.split()) for text in (title, note))
    texts = [(title, TITLE), (note, CAPTION), *((line.caption, CAPTION) for line in lines)]
    cells = [cell for line in lines for cell in line.cells if cell]
    widest = max(max(cell.picture.width + 2 * BORDER, _width(cell.label, LABEL)) for cell in cells)
    right = [x + widest for line in lines for _, x in _placed(line, widest)]
    width = max(*right, *(MARGIN + _width(text, size) for text, size in texts)) + MARGIN
    heights = [_line_height(line) for line in lines]
    top = MARGIN + 2 * TITLE + CAPTION
    sheet = Image.new("RGB", (width, top + sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN), title, TITLE, INK)
    _write(draw, (MARGIN, MARGIN + TITLE + GAP // 2), note, CAPTION, MUTED)
    for line, height in zip(lines, heights, strict=True):
        _write(draw, (MARGIN, top), line.caption, CAPTION, INK)
        for cell, x in _placed(line, widest):
            _draw_cell(sheet, draw, cell, x, top + CAPTION + GAP)
        top += height
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _placed(line: Line, widest: int) -> Iterator[tuple[Cell, int]]:
    """Each cell with its left edge; what is found stands apart from its query."""
    x = MARGIN
    for cell in line.cells:
        if cell:
            yield cell, x
        x += widest + GAP + (2 * GAP if cell and cell.frame == "query" else 0)


def _line_height(line: Line) -> int:
    return (
        CAPTION
        + GAP
        + LABEL
        + GAP // 2
        + 2 * BORDER
        + max((cell.picture.height for cell in line.cells if cell), default=0)
        + 2 * GAP
    )


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    _write(draw, (x, y), cell.label, LABEL, MUTED)
    y += LABEL + GAP // 2
    width, height = (side + 2 * BORDER for side in cell.picture.size)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=FRAMES[cell.frame])
    sheet.paste(cell.picture, (x + BORDER, y + BORDER))
    if cell.frame in ("right", "wrong"):
        sign = _sign(cell.frame)
        sheet.paste(sign, (x + width - SIGN, y + height - SIGN), sign)


def _sign(frame: Frame) -> Image.Image:
    """A white tick or cross on the frame's colour; drawn four times as large, for smooth edges."""
    unit = SIGN // 5 * 4
    sign = Image.new("RGBA", (5 * unit, 5 * unit))
    draw = ImageDraw.Draw(sign)
    draw.rounded_rectangle((0, 0, 5 * unit - 1, 5 * unit - 1), unit, FRAMES[frame])
    strokes = {"right": [[(1, 2.6), (2.1, 3.7), (4, 1.4)]], "wrong": [[(1.3, 1.3), (3.7, 3.7)], [(1.3, 3.7), (3.7, 1.3)]]}
    for stroke in strokes[frame]:
        draw.line([(x * unit, y * unit) for x, y in stroke], PAPER, unit // 2, joint="curve")
    return sign.resize((SIGN, SIGN), Image.Resampling.LANCZOS)


def _thumbnail(picture: Image.Image) -> Image.Image:
    scale = THUMBNAIL / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, colour: str) -> None:
    draw.text(place, text, colour, ImageFont.load_default(size))


def _width(text: str, size: int) -> int:
    return int(ImageFont.load_default(size).getlength(text)) + 1
