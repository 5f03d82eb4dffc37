"""The names of VMamba's published weights, present and older ones, and what they are called here."""

from __future__ import annotations

import re

from vmreid.models.published import Names, State, own_name

_NAMES: Names = (
    (r"^patch_embed\.(0|proj)\.", "stem.0.convolve."),
    (r"^patch_embed\.(2|norm)\.", "stem.0.norm."),
    (r"^patch_embed\.5\.", "stem.2.convolve."),
    (r"^patch_embed\.7\.", "stem.2.norm."),
    (r"^classifier\.", ""),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1."),
    (r"^layers\.(\d+)\.downsample\.1\.", r"shrinks.\1.convolve."),
    (r"^layers\.(\d+)\.downsample\.(3|norm)\.", r"shrinks.\1.norm."),
    (r"^layers\.(\d+)\.downsample\.reduction\.", r"shrinks.\1.project."),
    (r"\.ln_1\.", ".norm."),
    (r"\.mlp\.", "."),
    (r"\.(op|self_attention)\.", ".scan."),
    (r"\.scan\.in_proj\.", ".scan.project_in."),
    (r"\.scan\.conv2d\.", ".scan.convolve."),
    (r"\.scan\.out_norm\.", ".scan.norm."),
    (r"\.scan\.out_proj\.", ".scan.project_out."),
    (r"\.scan\.x_proj_weight$", ".scan.x_proj_KED"),
    (r"\.scan\.dt_projs_weight$", ".scan.dt_proj_KDR"),
    (r"\.scan\.dt_projs_bias$", ".scan.dt_bias_KD"),
    (r"\.scan\.A_logs$", ".scan.A_log"),
    (r"\.scan\.Ds$", ".scan.D"),
)
_LINEAR = re.compile(r"\.(project_in|project_out|fc1|fc2)\.weight$")


def own_names(state: State) -> State:
    """The same tensors under this repository's names; linear weights that come as 1x1 convolutions lose their last two axes."""
    renamed: State = {}
    for key, value in state.items():
        key = own_name(key, _NAMES)
        renamed[key] = value.flatten(1) if _LINEAR.search(key) and value.shape[2:] == (1, 1) else value
    return renamed
