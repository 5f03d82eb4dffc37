"""Tables of text, for a terminal and as markdown."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Headings, a rule, and one row a line, in columns as wide as their widest cell."""
    table = [headings, *rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(headings))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; a bar within a cell is escaped."""
    lines = (headings, ["---"] * len(headings), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
