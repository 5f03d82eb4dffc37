"""The one door to mamba_ssm, the optional package with the CUDA selective scan.

mamba_ssm's own ``__init__`` imports transformers and more, for many seconds, and the scan needs none of it. So an empty
package module with the right path stands in for it in ``sys.modules`` (and stays there), and only the scan's own module
is imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable

import torch

from vmreid.kernels.optional import imports


@functools.cache
def probe() -> tuple[bool, str]:
    """Whether mamba_ssm's scan runs in this process, and why (not): asked once, by importing its CUDA extension."""
    return imports("mamba_ssm", _import_scan)


def selective_scan_mamba_ssm(
    u_BDL: torch.Tensor,
    delta_BDL: torch.Tensor,
    A_DN: torch.Tensor,
    B_BKNL: torch.Tensor,
    C_BKNL: torch.Tensor,
    D_D: torch.Tensor,
    delta_bias_D: torch.Tensor,
) -> torch.Tensor:
    """Return y_BDL, with u's dtype; the definition is that of ``selective_scan_reference``, the state is float32.

    CUDA tensors only, and no float64. Raises ImportError where ``probe`` says no.
    """
    return _import_scan()(
        u_BDL,
        delta_BDL.to(u_BDL.dtype),
        A_DN.float(),
        B_BKNL.to(u_BDL.dtype),
        C_BKNL.to(u_BDL.dtype),
        D_D.float(),
        delta_bias=delta_bias_D.float(),
        delta_softplus=True,
    )


@functools.cache
def _import_scan() -> Callable[..., torch.Tensor]:
    before = set(sys.modules)
    try:
        if "mamba_ssm" not in sys.modules:
            sys.modules["mamba_ssm"] = _empty_package("mamba_ssm")
        importlib.import_module("selective_scan_cuda")
        scan: Callable[..., torch.Tensor] = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
        return scan
    except Exception:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "mamba_ssm":
                del sys.modules[name]
        raise


def _empty_package(name: str) -> types.ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{name} is not installed")
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    return package
