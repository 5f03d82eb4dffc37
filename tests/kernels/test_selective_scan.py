from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from vmreid.kernels import choose_backend, selective_scan, torch_scan
from vmreid.kernels.torch_scan import STEPS

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and torch sees none")


def make_inputs(
    batch: int = 2,
    channels: int = 8,
    length: int = 7,
    states: int = 4,
    groups: int = 1,
    dtype: torch.dtype = torch.float64,
    weight_dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> list[torch.Tensor]:
    """The seven inputs in the range of a fresh Mamba block (delta about 0.05 to 0.5), as leaves that want gradients."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    token = [draw(batch, channels, length), draw(batch, channels, length) * 0.5 - 1]
    token += [draw(batch, groups, states, length), draw(batch, groups, states, length)]
    weight = [-torch.exp(draw(channels, states)), draw(channels), draw(channels) * 0.5]
    u, delta, B, C = (x.to(device, dtype) for x in token)
    A, D, delta_bias = (x.to(device, weight_dtype or dtype) for x in weight)
    return [x.requires_grad_() for x in (u, delta, A, B, C, D, delta_bias)]


def scan(backend: str, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    u, delta, A, B, C, D, delta_bias = inputs
    return selective_scan(u, delta, A, B, C, D, delta_bias, backend)


def output_and_gradients(backend: str, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    y = scan(backend, inputs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return {"y": y.detach(), **dict(zip(NAMES, torch.autograd.grad(y, inputs, dy), strict=True))}


def relative_error(value: torch.Tensor, wanted: torch.Tensor) -> float:
    wanted = wanted.double()
    return float((value.double() - wanted).norm() / wanted.norm())


def assert_close_to_reference(backend: str, inputs: list[torch.Tensor], tolerance: float) -> None:
    """Output and all gradients against the float64 reference on the same (already rounded) numbers."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found = output_and_gradients(backend, inputs)
    wanted = output_and_gradients("reference", exact)
    for x, name in zip((inputs[0], *inputs), ("y", *NAMES), strict=True):
        assert found[name].dtype == x.dtype, name
        assert found[name].shape == wanted[name].shape, name
        assert torch.isfinite(found[name]).all(), name
    # dA is zero at L = 1, where no relative error exists
    errors = {k: relative_error(found[k], wanted[k]) if wanted[k].any() else float(found[k].norm()) for k in wanted}
    assert max(errors.values()) <= tolerance, errors


# The reference itself, against mathematics


def test_reference_with_constant_inputs_is_a_geometric_sum() -> None:
    length, delta, a, b, c, d, u = 12, 0.3, -0.7, 1.5, 0.4, 2.0, -1.1
    raw = float(np.log(np.expm1(delta)))  # softplus(raw - 0.25 + 0.25) = delta
    fill = functools.partial(torch.full, dtype=torch.float64)
    inputs = [fill((1, 1, length), u), fill((1, 1, length), raw - 0.25), fill((1, 1), a)]
    inputs += [fill((1, 1, 1, length), b), fill((1, 1, 1, length), c), fill((1,), d), fill((1,), 0.25)]
    y = scan("reference", inputs)[0, 0].numpy()
    decay = np.exp(delta * a)
    state = delta * b * u * (1 - decay ** np.arange(1, length + 1)) / (1 - decay)
    np.testing.assert_allclose(y, c * state + d * u, rtol=1e-13)


def test_reference_equals_the_full_decay_matrix() -> None:
    inputs = make_inputs(batch=2, channels=6, length=9, states=3, groups=2)
    u, delta, A, B, C, D, bias = (x.detach().numpy() for x in inputs)
    delta = np.log1p(np.exp(delta + bias[:, None]))
    total = np.cumsum(delta, axis=2)
    lag_BDLL = total[:, :, :, None] - total[:, :, None, :]
    decay = np.tril(np.exp(lag_BDLL[:, :, None] * A[:, :, None, None]))  # B D N L L: from step j to step i
    B, C = (np.repeat(x, 3, axis=1) for x in (B, C))  # channels 0 to 2 are group 0, 3 to 5 group 1
    wanted = np.einsum("bdni,bdnij,bdj,bdnj,bdj->bdi", C, decay, delta, B, u) + D[:, None] * u
    y = scan("reference", inputs).detach().numpy()
    np.testing.assert_allclose(y, wanted, rtol=1e-11, atol=1e-12)


# The torch backend against the reference


@pytest.mark.parametrize("states", [1, 16])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("length", [1, 2, 7, STEPS - 1, STEPS, STEPS + 1, 33])
def test_torch_equals_reference_in_float64(length: int, groups: int, states: int) -> None:
    assert_close_to_reference("torch", make_inputs(length=length, groups=groups, states=states), 1e-10)


def test_torch_equals_reference_where_the_batch_is_cut_in_uneven_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(batch=5, length=STEPS + 1, groups=2)
    monkeypatch.setattr(torch_scan, "CACHED_ELEMENTS", 2 * STEPS * inputs[2].numel())  # 2 + 2 + 1 pictures
    assert_close_to_reference("torch", inputs, 1e-10)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 5e-6), (torch.bfloat16, 5e-3)],  # bfloat16 rounds each result by up to 2**-9 = 2e-3
)
def test_torch_in_low_precision_stays_near_the_exact_result(dtype: torch.dtype, tolerance: float, groups: int) -> None:
    inputs = make_inputs(length=129, channels=16, states=16, groups=groups, dtype=dtype, weight_dtype=torch.float32)
    assert_close_to_reference("torch", inputs, tolerance)


def test_gradcheck_across_a_chunk_border() -> None:
    inputs = make_inputs(batch=1, channels=2, length=STEPS + 1, states=2, groups=2)
    assert torch.autograd.gradcheck(lambda *x: scan("torch", x), inputs)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_huge_delta_forgets_the_past_without_nan(backend: str) -> None:
    inputs = make_inputs(length=33, dtype=torch.float32)
    with torch.no_grad():
        inputs[1].fill_(1e4)
        inputs[2].fill_(-1.0)
    result = output_and_gradients(backend, inputs)
    assert all(torch.isfinite(x).all() for x in result.values())
    u, delta, _, B, C, D, bias = (x.detach() for x in inputs)
    alone = (C * B).sum(2) * (delta + bias[:, None]) * u + D[:, None] * u
    assert relative_error(result["y"], alone) < 1e-6


def test_layout_in_memory_does_not_matter() -> None:
    inputs = make_inputs(length=33, groups=4, dtype=torch.float32)
    wanted = output_and_gradients("torch", inputs)
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in inputs]
    assert not strided[0].is_contiguous()
    found = output_and_gradients("torch", strided)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    inputs = make_inputs(length=33, groups=4, dtype=dtype, weight_dtype=torch.float32)
    wanted = output_and_gradients("torch", inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = output_and_gradients("torch", inputs)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_long_sequences_do_not_keep_every_state() -> None:
    batch, channels, length, states = 1, 32, 512, 16
    kept: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    inputs = make_inputs(batch, channels, length, states, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        scan("torch", inputs)
    assert 0 < sum(kept.values()) < batch * channels * length * states / 2


# On a GPU


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("backend", ["torch", "mamba_ssm"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("length", [1, 33, 129])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
def test_cuda_backends_stay_near_the_exact_result(
    backend: str, groups: int, length: int, dtype: torch.dtype, tolerance: float
) -> None:
    if backend == "mamba_ssm":
        chosen, why = choose_backend("auto", torch.device("cuda"), maps=False)
        if chosen != "mamba_ssm":
            pytest.skip(why)
    inputs = make_inputs(
        channels=64, length=length, states=16, groups=groups, dtype=dtype, weight_dtype=torch.float32, device="cuda"
    )
    assert_close_to_reference(backend, inputs, tolerance)
