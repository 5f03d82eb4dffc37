from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vmreid.errors import UserError
from vmreid.kernels import causal_conv, causal_conv_silu, choose_backend, fused, mamba_ssm_scan, selective_scan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SCAN = """
import mamba_ssm.ops
def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    assert delta_softplus and z is None
    assert {A.dtype, D.dtype, delta_bias.dtype} == {__import__("torch").float32}
    assert {delta.dtype, B.dtype, C.dtype} == {u.dtype}
    return u + 1
"""
CONVOLUTION = """
def causal_conv1d_fn(x, weight, bias=None, activation=None):
    assert activation == "silu" and weight.shape == (3, 4) and bias.shape == (3,)
    return x + 1
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of importable modules on a machine that claims to have CUDA; every import is forgotten afterwards."""

    def forget() -> None:
        causal_conv.probe.cache_clear()
        mamba_ssm_scan.probe.cache_clear()
        mamba_ssm_scan._import_scan.cache_clear()
        for name in list(sys.modules):
            if name.partition(".")[0] in ("causal_conv1d", "mamba_ssm", "selective_scan_cuda"):
                del sys.modules[name]

    forget()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def install_mamba_ssm(site: Path, extension: str) -> None:
    (site / "mamba_ssm/ops").mkdir(parents=True)
    (site / "mamba_ssm/__init__.py").write_text("raise RuntimeError('the heavy package was imported')")
    (site / "mamba_ssm/ops/__init__.py").write_text("")
    (site / "mamba_ssm/ops/selective_scan_interface.py").write_text(SCAN)
    (site / "selective_scan_cuda.py").write_text(extension)


def test_auto_takes_torch_on_the_cpu_and_says_why() -> None:
    name, why = choose_backend("auto", CPU, maps=False)
    assert name == "torch"
    assert "CUDA" in why
    assert "\n" not in why


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_a_backend_asked_for_by_name_is_taken(name: str) -> None:
    assert choose_backend(name, CPU, maps=False) == (name, f"{name}: asked for by name")


def test_an_unknown_backend_is_an_error_with_the_list_and_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"'mamba_sm'.*did you mean 'mamba_ssm'.*auto, reference, torch, mamba_ssm"):
        choose_backend("mamba_sm", CPU, maps=False)
    with pytest.raises(UserError, match=r"'xyz' is unknown: Choose one of auto"):
        choose_backend("xyz", CPU, maps=False)


def test_mamba_ssm_on_the_cpu_is_an_error_with_the_installing_line() -> None:
    with pytest.raises(UserError, match=r"device is cpu.*pip install -e '\.\[cuda\]'"):
        choose_backend("mamba_ssm", CPU, maps=False)


def test_mamba_ssm_not_installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(site)])  # hides a real one
    name, why = choose_backend("auto", CUDA, maps=False)
    assert name == "torch"
    assert "mamba_ssm is not installed" in why
    assert "pip install -e '.[cuda]'" in why
    with pytest.raises(UserError, match=r"mamba_ssm is not installed.*pip install -e '\.\[cuda\]'"):
        choose_backend("mamba_ssm", CUDA, maps=False)
    assert "mamba_ssm" not in sys.modules


def test_mamba_ssm_with_a_broken_extension_is_reported_and_leaves_no_module_behind(site: Path) -> None:
    install_mamba_ssm(site, extension="raise ImportError('undefined symbol:\\n _ZN2at')")
    name, why = choose_backend("auto", CUDA, maps=False)
    assert name == "torch"
    assert "undefined symbol: _ZN2at" in why
    assert not [module for module in sys.modules if module.partition(".")[0] == "mamba_ssm"]


def test_mamba_ssm_is_imported_without_its_heavy_package_and_gets_the_dtypes_it_wants(site: Path) -> None:
    install_mamba_ssm(site, extension="")
    assert choose_backend("auto", CUDA, maps=False)[0] == "mamba_ssm"
    assert choose_backend("mamba_ssm", CUDA, maps=False)[0] == "mamba_ssm"
    u = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    token, weight = torch.zeros(1, 1, 4, 3), torch.zeros(2, 4, dtype=torch.bfloat16)
    y = selective_scan(u, u.float(), weight, token, token, weight[:, 0], weight[:, 0], backend="mamba_ssm")
    assert torch.equal(y, u + 1)


def test_beside_mamba_ssm_causal_conv1d_convolves_where_it_is_installed(site: Path) -> None:
    install_mamba_ssm(site, extension="")
    x, weight, bias = torch.randn(2, 3, 5), torch.randn(3, 1, 4), torch.randn(3)
    last = sum(weight[:, 0, 3 - back] * x[:, :, 4 - back] for back in range(4)) + bias
    found = causal_conv_silu(x, weight, bias, "mamba_ssm")
    torch.testing.assert_close(found[:, :, 4], F.silu(last))
    assert found.shape == x.shape
    assert "convolutions: causal_conv1d does not import" in choose_backend("mamba_ssm", CUDA, maps=False)[1]
    causal_conv.probe.cache_clear()
    (site / "causal_conv1d.py").write_text(CONVOLUTION)
    assert choose_backend("mamba_ssm", CUDA, maps=False)[1].endswith("convolutions: causal_conv1d imports")
    assert torch.equal(causal_conv_silu(x, weight, bias, "mamba_ssm"), x + 1)
    assert torch.equal(causal_conv_silu(x, weight, bias, "torch"), found)
    for dtype, longest in ((torch.float32, 512), (torch.bfloat16, 1024)):
        x = torch.randn(2, len(bias), longest + 1, dtype=dtype)
        assert torch.equal(causal_conv_silu(x[..., 1:], weight, bias, "mamba_ssm"), x[..., 1:] + 1), "one chunk"
        found = causal_conv_silu(x, weight, bias, "mamba_ssm")
        assert found.dtype == dtype
        assert torch.equal(found, causal_conv_silu(x, weight, bias, "torch")), "more than one"


def test_fused_is_for_maps_on_cuda_and_says_so_elsewhere() -> None:
    with pytest.raises(UserError, match=r"'fused' cannot run.*maps.*sequences; take model.scan_backend=auto"):
        choose_backend("fused", CUDA, maps=False)
    with pytest.raises(UserError, match=r"'fused' cannot run.*device is cpu; pip install -e '\.\[cuda\]'"):
        choose_backend("fused", CPU, maps=True)


def test_auto_takes_fused_for_maps_and_what_else_runs_for_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "probe", lambda: (True, "NVRTC compiles"))
    monkeypatch.setattr(mamba_ssm_scan, "probe", lambda: (True, "mamba_ssm imports"))
    assert choose_backend("auto", CUDA, maps=True) == ("fused", "fused: NVRTC compiles")
    assert choose_backend("auto", CUDA, maps=True, deterministic=True)[0] == "fused"
    monkeypatch.setattr(causal_conv, "probe", lambda: (True, "causal_conv1d imports"))
    wanted = ("mamba_ssm", "mamba_ssm: mamba_ssm imports; convolutions: causal_conv1d imports")
    assert choose_backend("auto", CUDA, maps=False) == wanted
    name, why = choose_backend("auto", CUDA, maps=False, deterministic=True)
    assert name == "torch"
    assert "deterministic" in why
    assert "pip install" not in why
    monkeypatch.setattr(fused, "probe", lambda: (False, "no NVRTC"))
    assert choose_backend("auto", CUDA, maps=True)[0] == "mamba_ssm"


def test_mamba_ssm_is_refused_where_the_same_bits_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"'mamba_ssm' cannot run.*deterministic.*take model.scan_backend=auto"):
        choose_backend("mamba_ssm", CUDA, maps=True, deterministic=True)


def test_a_gpu_whose_blocks_have_too_little_memory_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def attribute(has: Any, number: int, device: int) -> int:
        has._obj.value = {97: 101376}[number]
        return device

    monkeypatch.setattr(fused, "_driver", lambda: SimpleNamespace(cuDeviceGetAttribute=attribute))
    available, why = fused.probe.__wrapped__()
    assert not available
    assert why == "fused needs 132 KiB of shared memory a block, and the GPU has 99"
