"""The map of blocks over steps."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from vmreid.report.heat_maps import draw_layers


def looks(layers: dict[str, list[float]], steps: int = 3) -> list[dict[str, Any]]:
    return [{"step": 1 + 100 * number, "layers": layers, "warnings": []} for number in range(steps)]


def drawn(entries: list[dict[str, Any]]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_layers(entries, "run"))).convert("RGB"))


def test_a_quantity_more_takes_a_row_more() -> None:
    few = {"gradient_norm": [1.0, 2.0], "update_share": [0.0, 1e-3], "output_rms": [0.1, 0.1]}
    assert drawn(looks(few)).shape[0] < drawn(looks({**few, "dead_share": [0.0, 1.0]})).shape[0]
    assert drawn(looks(few, steps=1)).shape == drawn(looks(few)).shape


def test_shares_have_one_scale_and_small_changes_look_small() -> None:
    """A share of 0.4 has another colour than one of 0.9; sizes that differ by a thousandth have nearly the same."""

    def colours(name: str, values: list[float]) -> int:
        picture_HWC = drawn(looks({name: values}))
        map_HWC = picture_HWC[80:340, 60:400]
        middle = map_HWC[:, map_HWC.shape[1] // 2].astype(int)
        return int(np.abs(middle[40] - middle[-60]).max())

    assert colours("dead_share", [0.4, 0.9]) > 60
    assert colours("state_rms", [1.0, 1.001]) < 10
    assert colours("state_rms", [1.0, 100.0]) > 60
