"""What a model finds: example queries, each beside the gallery pictures nearest to it."""

from __future__ import annotations

from collections.abc import Sequence

from vmreid.data.folder import Place
from vmreid.data.manifest import Manifest
from vmreid.data.sheet import Line, SplitPictures, draw_sheet
from vmreid.evaluation.nearest import Example

NOTE = (
    "Queries by AP, and the gallery pictures nearest to each. Green with a tick: of the query's identity. Red with a cross: not."
)


def draw_galleries(examples: Sequence[Example], data: Place, manifest: Manifest, title: str) -> bytes:
    """A PNG file with one line an example. Raises UserError where a picture cannot be read."""
    query, gallery = (SplitPictures(data, manifest.splits[name]) for name in ("query", "gallery"))
    lines = []
    for example in examples:
        identity = query.index[example.row]["pid"]
        found = [gallery.cell(row, "right" if gallery.index[row]["pid"] == identity else "wrong") for row in example.nearest]
        caption = f"{example.place} · AP {example.ap:.2f} · first match at rank {example.first_rank}"
        lines.append(Line(caption, [query.cell(example.row, "query"), *found]))
    return draw_sheet(title, NOTE, lines)
