"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Headings, a rule, and one row a line, in columns as wide as their widest cell."""
    table = [headings, *lines]
    widths = [max(len(line[column]) for line in table) for column in range(len(headings))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])
