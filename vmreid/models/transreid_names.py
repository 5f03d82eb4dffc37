"""The part of TransReID's published weights (He et al. 2021, arXiv 2102.04378) that is a ViT: its global branch."""

from __future__ import annotations

import re

from vmreid.models.published import State

_BASE, _JIGSAW = "base.", "b1."
_LEFT = re.compile(r"(base\.(fc|sie_embed)|b2|classifier(_\d)?|bottleneck(_\d)?)(?=\.|$)")


def is_transreid(state: State) -> bool:
    """Whether the names are TransReID's."""
    return f"{_BASE}pos_embed" in state


def global_branch(state: State) -> tuple[State, list[str]]:
    """The state dict of a timm ViT, and the parts that are left out: heads, necks, camera embedding, local branch.

    With the jigsaw module (JPM) the global feature goes through ``b1``, a copy of the last block and the norm that was trained
    in their stead: theirs are as before the training and left out. What is unknown keeps its name, for the caller to refuse.
    """
    state = dict(state)
    left = {}
    if any(key.startswith(_JIGSAW) for key in state):
        last = max(int(match[1]) for key in state if (match := re.match(r"base\.blocks\.(\d+)\.", key)))
        for own, trained in ((f"base.blocks.{last}.", "b1.0."), ("base.norm.", "b1.1.")):
            for key in [key for key in state if key.startswith(own)]:
                left[key] = own.rstrip(".")
                del state[key]
            for key in [key for key in state if key.startswith(trained)]:
                state[own + key.removeprefix(trained)] = state.pop(key)
    for key in list(state):
        if part := _LEFT.match(key):
            left[key] = part[0]
            del state[key]
    return {key.removeprefix(_BASE): value for key, value in state.items()}, sorted(set(left.values()))
