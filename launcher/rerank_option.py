"""The option ``--rerank`` of the commands that score."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmreid.recipes.schema import Rerank


def add_rerank_option(parser: ArgumentParser, otherwise: str) -> None:
    """``otherwise``: what holds where the option is not given."""
    parser.add_argument(
        "--rerank", type=values, nargs="?", const="20,6,0.3", metavar="K1,K2,LAMBDA",
        help=f"scores after k-reciprocal re-ranking beside the plain ones; without values: 20,6,0.3; default: {otherwise}",
    )  # fmt: skip


def values(word: str) -> Rerank:
    """What ``--rerank`` gets."""
    from vmreid.recipes.schema import Rerank

    try:
        k1, k2, lambda_value = word.split(",")
        return Rerank(k1=int(k1), k2=int(k2), lambda_value=float(lambda_value))
    except ValueError:
        raise ArgumentTypeError(
            f"{word!r}: must be K1,K2,LAMBDA with 1 <= K2 <= K1 <= 500 and LAMBDA from 0 to 1, such as 20,6,0.3"
        ) from None
