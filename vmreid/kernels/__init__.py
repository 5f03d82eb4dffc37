"""The selective scan behind one call. Nothing above this package knows which backend runs."""

from __future__ import annotations

import difflib

import torch

from vmreid.errors import UserError
from vmreid.kernels import causal_conv, fused, mamba_ssm_scan
from vmreid.kernels.causal_conv import causal_conv_silu
from vmreid.kernels.mamba_ssm_scan import selective_scan_mamba_ssm
from vmreid.kernels.reference import selective_scan_reference
from vmreid.kernels.torch_scan import selective_scan_torch
from vmreid.kernels.watch import Scanned, tell, watched

_SCANS = {
    "reference": selective_scan_reference,
    "torch": selective_scan_torch,
    "mamba_ssm": selective_scan_mamba_ssm,
}
__all__ = ["BACKENDS", "causal_conv_silu", "choose_backend", "selective_scan"]
BACKENDS = ("auto", *_SCANS, "fused")
INSTALL = "pip install -e '.[cuda]' brings the fast CUDA scans on a CUDA machine"


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

    ``backend`` is a name that ``choose_backend`` returned for sequences. Group k of K owns the k-th of K equal runs of channels.
    """
    if watched():
        u_BKDL, delta_BKDL = (torch.unflatten(v, 1, (B_BKNL.shape[1], -1)) for v in (u_BDL, delta_BDL))
        A_KDN, bias_KD = (torch.unflatten(v, 0, (B_BKNL.shape[1], -1)) for v in (A_DN, delta_bias_D))
        tell(Scanned(u_BKDL, delta_BKDL, A_KDN, B_BKNL, bias_KD))
    return _SCANS[backend](u_BDL, delta_BDL, A_DN, B_BKNL, C_BKNL, D_D, delta_bias_D)


def choose_backend(name: str, device: torch.device, maps: bool, deterministic: bool = False) -> tuple[str, str]:
    """Return the backend to run on ``device`` and one sentence for the log that says why.

    ``name`` is one of ``BACKENDS``; "auto" takes the fastest that runs: on CUDA fused, then mamba_ssm, else torch. ``maps``:
    whether what is scanned are maps in four directions (``ss2d``), which is all that fused knows, or sequences.
    ``deterministic`` asks for the same bits in every run, which mamba_ssm does not give. Raises UserError for an unknown
    name, and for a backend that is asked for by name and cannot run.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, BACKENDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"scan backend {name!r} is unknown: {hint}Choose one of {', '.join(BACKENDS)}")
    if name in ("reference", "torch"):
        return name, f"{name}: asked for by name"
    hindrances, installable = [], False
    for candidate in ("fused", "mamba_ssm") if name == "auto" else (name,):
        unfit = _unfit(candidate, maps, deterministic)
        available, reason = (False, unfit) if unfit else _probe(candidate, device)
        if available:
            convolutions = f"; convolutions: {causal_conv.probe()[1]}" if candidate == "mamba_ssm" and not maps else ""
            return candidate, f"{candidate}: {'asked for by name' if name == candidate else reason}{convolutions}"
        if name == candidate:
            way = "take model.scan_backend=auto" if unfit else f"{INSTALL}, backend 'torch' runs everywhere"
            raise UserError(f"scan backend {name!r} cannot run: {reason}; {way}")
        hindrances.append(reason)
        installable = installable or not unfit
    if device.type != "cuda":
        return "torch", f"torch: the others run on CUDA only, and the device is {device.type}"
    return "torch", f"torch: {'; '.join(hindrances)}{f'; {INSTALL}' if installable else ''}"


def _unfit(name: str, maps: bool, deterministic: bool) -> str:
    if name == "fused" and not maps:
        return "fused scans maps in four directions, and this backbone scans sequences"
    if name == "mamba_ssm" and deterministic:
        return "train.deterministic is on, and mamba_ssm's backward adds in an order that varies"
    return ""


def _probe(name: str, device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"{name} runs on CUDA only, and the device is {device.type}"
    return fused.probe() if name == "fused" else mamba_ssm_scan.probe()
