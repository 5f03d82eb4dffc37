"""Numbers of tokens that a benchmark may be asked for."""

from __future__ import annotations

import math

from vmreid.errors import UserError


def map_of(tokens: int) -> tuple[int, int]:
    """Height and width of the map, twice as high as wide, that has ``tokens`` with the class token. Raises UserError."""
    width = max(1, round(math.sqrt((tokens - 1) / 2))) if tokens > 1 else 1
    if tokens != 2 * width**2 + 1:
        raise UserError(
            f"--tokens {tokens}: must be 2·m² + 1, the patches of a picture twice as high as wide and the class token; the "
            f"nearest is {2 * width**2 + 1}"
        )
    return 2 * width, width
