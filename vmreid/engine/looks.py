"""``monitors.jsonl``: one line a look into the layers; and the same as single numbers for MLflow."""

from __future__ import annotations

import json
from pathlib import Path

from vmreid.run_folder import write_atomically


def keep_looks_until(path: Path, step: int) -> None:
    """Lines of later steps go, since those steps are taken again, and what a kill left of a line."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else ():
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    write_atomically(path, "".join(kept))


def by_layer(layers: dict[str, list[float]]) -> dict[str, float]:
    """``layers/QUANTITY/NN``: value, blocks from 01."""
    return {
        f"layers/{quantity}/{block:02d}": value for quantity, values in layers.items() for block, value in enumerate(values, 1)
    }
