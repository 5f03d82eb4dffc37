"""The selective scan behind one call. Nothing above this package knows which backend runs."""

from __future__ import annotations

import difflib

import torch

from vmreid.errors import UserError
from vmreid.kernels.mamba_ssm_scan import probe, selective_scan_mamba_ssm
from vmreid.kernels.reference import selective_scan_reference
from vmreid.kernels.torch_scan import selective_scan_torch

_SCANS = {
    "reference": selective_scan_reference,
    "torch": selective_scan_torch,
    "mamba_ssm": selective_scan_mamba_ssm,
}
BACKENDS = ("auto", *_SCANS)


def selective_scan(
    u_BDL: torch.Tensor,
    delta_BDL: torch.Tensor,
    A_DN: torch.Tensor,
    B_BKNL: torch.Tensor,
    C_BKNL: torch.Tensor,
    D_D: torch.Tensor,
    delta_bias_D: torch.Tensor,
    backend: str,
) -> torch.Tensor:
    """Return y_BDL of the selective state space model that ``selective_scan_reference`` defines, with u's dtype.

    ``backend`` is a name that ``choose_backend`` returned. Group k of K owns the k-th of K equal runs of channels.
    """
    return _SCANS[backend](u_BDL, delta_BDL, A_DN, B_BKNL, C_BKNL, D_D, delta_bias_D)


def choose_backend(name: str, device: torch.device, deterministic: bool = False) -> tuple[str, str]:
    """Return the backend to run on ``device`` and one sentence for the log that says why.

    ``name`` is one of ``BACKENDS``; "auto" takes mamba_ssm on CUDA where it imports, else torch.
    ``deterministic`` asks for the same bits in every run, which mamba_ssm does not give. Raises UserError for
    an unknown name, and for a backend that is asked for by name and cannot run.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, BACKENDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"scan backend {name!r} is unknown: {hint}Choose one of {', '.join(BACKENDS)}")
    if name in ("reference", "torch"):
        return name, f"{name}: asked for by name"
    if device.type == "cuda":
        available, reason = probe()
    else:
        available, reason = False, f"mamba_ssm runs on CUDA only, and the device is {device.type}"
    if deterministic and available:
        available, reason = False, "train.deterministic is on, and mamba_ssm's backward adds in an order that varies"
    if available:
        return "mamba_ssm", f"mamba_ssm: {'asked for by name' if name == 'mamba_ssm' else reason}"
    if name == "mamba_ssm":
        if deterministic and device.type == "cuda":
            raise UserError(f"scan backend 'mamba_ssm' cannot run: {reason}; take model.scan_backend=torch")
        raise UserError(
            f"scan backend 'mamba_ssm' cannot run: {reason}; pip install -e '.[cuda]' brings it on a CUDA machine, "
            "backend 'torch' runs everywhere"
        )
    missing = device.type == "cuda" and not deterministic
    way = "; pip install -e '.[cuda]' brings the faster CUDA scan" if missing else ""
    return "torch", f"torch: {reason}{way}"
