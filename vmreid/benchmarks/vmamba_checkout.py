"""A user's own checkout of VMamba (github.com/MzeroMiko/VMamba, Liu et al. 2024, arXiv 2401.10166), to be measured beside.

Nothing of it is part of this project: its code is imported from where it lies.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vmreid.errors import UserError
from vmreid.kernels.cross_scan import cross_scan_own
from vmreid.versions import commit

PREFIX = "vmamba="  # of what --against gets
MODELS = Path("classification", "models")
PACKAGE = "vmamba_checkout"  # stands in for MODELS, whose own __init__ imports far more than the models
NETWORKS = {
    "VMAMBA-T": "vmamba_tiny_s1l8",
    "VMAMBA-S": "vmamba_small_s2l15",
    "VMAMBA-B": "vmamba_base_s2l15",
    "VMAMBA-T-V0": "vanilla_vmamba_tiny",
}
SCANS = ("oflex", "core", "mamba")  # in the order in which its code takes what imports


class VMambaCheckout:
    """Scan and networks of the checkout that ``word``, "vmamba=PATH", points to. Raises UserError where they cannot run.

    ``scans`` are the extensions that its code can import; it takes the first.
    """

    def __init__(self, word: str, device: torch.device) -> None:
        self.word, self.path = word, Path(word.removeprefix(PREFIX))
        folder = self.path / MODELS
        for name in ("csm_triton", "csms6s", "vmamba"):
            if not (folder / f"{name}.py").is_file():
                raise UserError(
                    f"--against {word}: no {MODELS / name}.py there; give the folder of a checkout of github.com/MzeroMiko/VMamba"
                )
        if device.type != "cuda":
            raise UserError(f"--against {word}: VMamba's cross scan runs on CUDA only, and the device is {device}; leave it out")
        sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        sys.modules[PACKAGE].__path__ = [str(folder)]
        self._cross, self._selective = self._module("csm_triton"), self._module("csms6s")
        self.scans = [name for name in SCANS if getattr(self._selective, f"WITH_SELECTIVESCAN_{name.upper()}")]
        if not self.scans:
            raise UserError(
                f"--against {word}: none of the scan extensions that VMamba knows imports; build its kernels/selective_scan, or "
                "pip install -e '.[cuda]', which brings mamba_ssm's"
            )

    def __str__(self) -> str:
        return f"{self.path} at {commit(self.path)}, scan extension {self.scans[0]}"

    def prepare(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """The inputs of ``ss2d`` as VMamba's block hands them on: x_BDHW, the rest as the four sequences that it projects."""
        x_BHWD, delta_BHWKD, A_KDN, B_BHWKN, C_BHWKN, D_KD, delta_bias_KD = inputs
        sequences = [cross_scan_own(v).contiguous() for v in (delta_BHWKD, B_BHWKN, C_BHWKN)]
        delta_BKDL, B_BKNL, C_BKNL = sequences
        A_DN, D_D, delta_bias_D = (v.flatten(0, 1) for v in (A_KDN, D_KD, delta_bias_KD))
        return [x_BHWD.permute(0, 3, 1, 2).contiguous(), delta_BKDL.flatten(1, 2), A_DN, B_BKNL, C_BKNL, D_D, delta_bias_D]

    def scan(
        self,
        x_BDHW: torch.Tensor,
        delta_BDL: torch.Tensor,
        A_DN: torch.Tensor,
        B_BKNL: torch.Tensor,
        C_BKNL: torch.Tensor,
        D_D: torch.Tensor,
        delta_bias_D: torch.Tensor,
    ) -> torch.Tensor:
        """Return y_BDL: cross scan, selective scan and merge as ``SS2Dv2.forward_corev2`` calls them in the published models."""
        height, width = x_BDHW.shape[2:]
        x_BDL = self._cross.cross_scan_fn(x_BDHW).flatten(1, 2)
        y_BDL = self._selective.selective_scan_fn(x_BDL, delta_BDL, A_DN, B_BKNL, C_BKNL, D_D, delta_bias_D, True, True)
        y_BKDHW = y_BDL.unflatten(2, (height, width)).unflatten(1, (B_BKNL.shape[1], -1))
        merged_BDL: torch.Tensor = self._cross.cross_merge_fn(y_BKDHW)
        return merged_BDL

    def network(self, backbone: str) -> Callable[[], nn.Module]:
        """What builds VMamba's classifier of 1000 classes, as published under this name, without drop path: ours has none."""
        published = getattr(self._module("vmamba"), NETWORKS[backbone])
        if backbone == "VMAMBA-T-V0" and "mamba" not in self.scans:
            raise UserError(
                f"--against {self.word}: {NETWORKS[backbone]} needs mamba_ssm's scan; pip install -e '.[cuda]' brings it"
            )

        def build() -> nn.Module:
            network: nn.Module = published()
            for module in network.modules():
                if type(module).__name__ == "DropPath":
                    module.drop_prob = 0.0  # type: ignore[assignment]
            return network

        return build

    def _module(self, name: str) -> types.ModuleType:
        try:
            return importlib.import_module(f"{PACKAGE}.{name}")
        except Exception as error:  # another torch, a missing package, a broken build: all of them mean "not here"
            first: BaseException = error
            while first.__context__:  # its code tries other names next, which hide what was wrong
                first = first.__context__
            raise UserError(
                f"--against {self.word}: its {name}.py does not import ({type(first).__name__}: {first}); install what it needs"
            ) from error
