"""The names of Vim's published weights, and what they are called here."""

from __future__ import annotations

import torch

from vmreid.models.published import Names, State, own_name

_NAMES: Names = (
    (r"^patch_embed\.proj\.", "project."),
    (r"^norm_f\.", "norm."),
    (r"^layers\.(\d+)\.norm\.", r"norms.\1."),
    (r"^layers\.(\d+)\.mixer\.", r"blocks.\1."),
    (r"\.in_proj\.", ".project_in."),
    (r"\.out_proj\.", ".project_out."),
)
_DIRECTED = {  # published, for the direction forwards and "_b" backwards: here as one tensor, and its axes besides the direction
    "x_proj{}.weight": "x_proj_KED",
    "dt_proj{}.weight": "dt_proj_KDR",
    "dt_proj{}.bias": "dt_bias",
    "A{}_log": "A_log",
    "D{}": "D",
    "conv1d{}.weight": "convolve.weight",
    "conv1d{}.bias": "convolve.bias",
}


def own_names(state: State) -> State:
    """The same tensors under this repository's names, the two directions of a block stacked.

    What lacks its other direction, or has it in another shape, keeps its published name, by which ``load_exactly`` tells of it.
    """
    given, renamed = dict(state), State()
    for prefix in {key[: key.index(".mixer.") + len(".mixer.")] for key in state if ".mixer." in key}:
        for published, own in _DIRECTED.items():
            ahead, back = (prefix + published.format(direction) for direction in ("", "_b"))
            if ahead in given and back in given and given[ahead].shape == given[back].shape:
                pair = torch.stack([given.pop(ahead), given.pop(back)])
                given[prefix + own] = pair if own.endswith(("KED", "KDR")) else pair.reshape(-1, *pair.shape[2:])
            else:
                renamed |= {key: given.pop(key) for key in (ahead, back) if key in given}
    for key, value in given.items():
        renamed[own_name(key, _NAMES)] = value
    return renamed
