"""What loading published weights has in common: names checked both ways, positions for another image size, one line of report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from vmreid.errors import UserError

State = dict[str, torch.Tensor]
Names = tuple[tuple[str, str], ...]  # pattern and replacement, applied in this order, each to the whole name


def own_name(published: str, names: Names) -> str:
    """What the tensor that was ``published`` under a name is called here."""
    for pattern, replacement in names:
        published = re.sub(pattern, replacement, published)
    return published


def load_exactly(module: nn.Module, given: State, name: str, *, resized: Iterable[str], left: Iterable[str]) -> str:
    """Load ``given`` without what is ``left`` out; it must name each tensor of ``module`` in its shape and no other.

    Returns a one-line report with what its caller has ``resized``, and what is ``left``: tensors of ``given``, and what the
    caller has taken out itself. Raises UserError where a tensor is missing, unexpected or of another shape; then nothing has
    been loaded.
    """
    left = set(left)
    given = {key: value for key, value in given.items() if key not in left}
    own = module.state_dict()
    shapes = [key for key in own if key in given and given[key].shape != own[key].shape]
    for what, keys in (
        ("has no", sorted(own.keys() - given.keys())),
        ("has an unknown", sorted(given.keys() - own.keys())),
        ("has another shape of", shapes),
    ):
        if keys:
            raise UserError(
                f"{name}: {what} {keys[0]} ({len(keys)} such): not a published checkpoint of this backbone's dim and depth; "
                "choose the backbone that it was published for"
            )
    module.load_state_dict(given)
    listed = (", ".join(sorted(keys)) or "none" for keys in (resized, left))
    return "{} tensors from {}, resized: {}, left: {}".format(len(given), name, *listed)


def resize_positions(given: State, grid: tuple[int, int], *, middle: bool) -> list[str]:
    """Resize ``given["pos_embed"]``, learned positions [1, L + 1, C], in place for a map of ``grid`` patches (height, width).

    Bicubic with antialiasing, as timm does it. The class token's position, first or with ``middle`` before patch L // 2, stays
    as it is. The file says nothing of its map, so L decides: a square where L is one, else ``grid`` where L fits it, else the
    map nearest to twice as high as wide (16 x 8, and 21 x 10 where patches overlap: the usual re-ID sizes). Returns the names of
    what was resized. What cannot be positions is left for ``load_exactly`` to refuse.
    """
    positions_1TC = given.get("pos_embed")
    if positions_1TC is None or positions_1TC.ndim != 3 or positions_1TC.shape[1] < 2:
        return []
    count, own = positions_1TC.shape[1] - 1, math.prod(grid)
    old = _grid_of(count, grid)
    if old == grid:
        return []
    at, own_at = (count // 2, own // 2) if middle else (0, 0)
    before, cls_11C, behind = torch.split(positions_1TC.float(), [at, 1, count - at], dim=1)
    map_1CHW = torch.unflatten(torch.cat([before, behind], dim=1).transpose(1, 2), 2, old)
    resized_1CHW = F.interpolate(map_1CHW, grid, mode="bicubic", antialias=True, align_corners=False)
    before, behind = torch.split(resized_1CHW.flatten(2).transpose(1, 2), [own_at, own - own_at], dim=1)
    given["pos_embed"] = torch.cat([before, cls_11C, behind], dim=1).to(positions_1TC.dtype)
    return ["pos_embed"]


def _grid_of(count: int, own: tuple[int, int]) -> tuple[int, int]:
    side = math.isqrt(count)
    if side * side == count:
        return side, side
    if math.prod(own) == count:
        return own
    widths = [width for width in range(1, side + 1) if count % width == 0]
    width = min(widths, key=lambda width: abs(math.log(count / width**2 / 2)))
    return count // width, width
