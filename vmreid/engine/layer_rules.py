"""What layers' numbers mean, in words: rules whose limits stand here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

HALF = 0.5  # of a block's channels
WEAK, STRONG = 1e-3, 1e3  # a block's gradient norm, of the median block's
LARGE_UPDATE = 0.1  # of the weights' norm, in one step
LARGE_STATE = 1e4

Layers = Mapping[str, Sequence[float]]  # a quantity's values, first block to last
RULES: dict[str, tuple[float, str]] = {  # above which value, and what that means
    "short_share": (HALF, "block {block} forgets within 2 tokens in {value:.0%} of its channels"),
    "dead_share": (HALF, "block {block} takes nothing in (delta below 1e-4) in {value:.0%} of its channels"),
    "alike_share": (HALF, "block {block}: all states of a channel decay alike in {value:.0%} of its channels"),
    "state_rms": (LARGE_STATE, "block {block}: its last states have grown to {value:.1e}"),
    "update_share": (LARGE_UPDATE, "block {block}: one step changes its weights by {value:.0%}"),
}


def layer_warnings(layers: Layers) -> dict[str, str]:
    """Warnings by a key of rule and block; blocks count from 1."""
    found = {}
    for quantity, (most, words) in RULES.items():
        for block, value in enumerate(layers.get(quantity, ()), 1):
            if value > most:
                found[f"{quantity} {block}"] = words.format(block=block, value=value)
    return found | _gradient_warnings(layers.get("gradient_norm", ()))


def _gradient_warnings(norms: Sequence[float]) -> dict[str, str]:
    median = statistics.median(norms) if norms else 0.0
    if not median:
        return {}
    shares = {block: norm / median for block, norm in enumerate(norms, 1)}
    weak = {b: f"block {b} gets hardly any gradient: {x:.1e} of the median block's" for b, x in shares.items() if x < WEAK}
    strong = {b: f"block {b}'s gradient is {x:.1e} times the median block's" for b, x in shares.items() if x > STRONG}
    return {f"gradient_norm {block}": words for block, words in (weak | strong).items()}
