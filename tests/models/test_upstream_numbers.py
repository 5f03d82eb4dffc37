"""VMamba, Vim and TransReID against numbers that the published code gave: outputs, gradients of the input and of all weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vmreid.models import vim_names, vmamba_names
from vmreid.models.vim import BidirectionalMamba, Vim
from vmreid.models.vit import ViT
from vmreid.models.vmamba import SS2D, VMamba

State = dict[str, torch.Tensor]
OUTPUT, GRADIENT, EXACT = 1e-5, 5e-5, 1e-12  # largest difference over largest value: float32, its gradients, float64

pytestmark = pytest.mark.usefixtures("one_thread")


class Case:
    """One file: input, weights ``w.``, outputs, and gradients ``g.`` or their norms ``gnorm.``."""

    def __init__(self, folder: Path, name: str) -> None:
        with np.load(folder / "upstream" / f"{name}.npz", allow_pickle=False) as file:
            self.config: dict[str, Any] = json.loads(str(file["meta_json"]))["config"]
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta_json"}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.arrays[key]

    def named(self, kind: str, before: str = "") -> State:
        """All that the file calls ``kind``.NAME, as ``before``NAME."""
        return {before + key.removeprefix(f"{kind}."): x for key, x in self.arrays.items() if key.startswith(f"{kind}.")}


def assert_near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    assert found.shape == wanted.shape, what
    error = ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()
    assert error <= tolerance, f"{what}: {error:.1e}"


def assert_weight_gradients(module: nn.Module, case: Case, rename: Callable[[str], State]) -> None:
    full, norms = rename("g"), rename("gnorm")
    assert full.keys() or norms.keys()
    without = {key for key, parameter in module.named_parameters() if parameter.grad is None}
    assert {key for key, _ in module.named_parameters()} - without == full.keys() | norms.keys()
    for key, wanted in full.items():
        assert_near(module.get_parameter(key).grad, wanted, GRADIENT, key)
    for key, wanted in norms.items():  # of what was stacked here, one for each part
        assert_near(module.get_parameter(key).grad.norm(), wanted.norm(), GRADIENT, key)


def check_block(
    module: nn.Module,
    case: Case,
    rename: Callable[[str], State],
    forward: Callable[[torch.Tensor], torch.Tensor],
    exact: bool = True,
) -> None:
    module.load_state_dict(rename("w"))
    x = case["x"].clone().requires_grad_()
    y = forward(x)
    assert_near(y, case["y"], OUTPUT, "y")
    (y * case["r"]).sum().backward()
    assert_near(x.grad, case["gx"], GRADIENT, "gx")
    assert_weight_gradients(module, case, rename)
    if exact:
        with torch.no_grad():
            module.double()
            assert_near(forward(case["x"].double()), case["y64"], EXACT, "y64")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """A scan backend by its name; ``fused`` by its kernels' own source, which knows no float64."""
    if request.param == "fused":
        request.getfixturevalue("emulated")
    return request.param


@pytest.mark.parametrize("backend", ["reference", "torch", "fused"], indirect=True)
@pytest.mark.parametrize(
    "name", ["d32_n1_6x5", "d32_n1_channel_last_convbias_6x5", "d32_n16_r2_6x5", "d40_n16_8x8", "d48_n1_8x8", "v0_d32_n16_6x5"]
)
def test_ss2d(test_data: Path, name: str, backend: str) -> None:
    case = Case(test_data, f"ss2d_{name}")
    config = case.config
    block = SS2D(config["d_model"], int(config["ssm_ratio"]), config["d_state"], config["forward_type"] == "v0", backend)
    if config["conv_bias"]:
        block.convolve.bias = nn.Parameter(torch.zeros(config["d_inner"]))  # no published whole model has it without a gate

    def rename(kind: str) -> State:
        named = vmamba_names.own_names(case.named(kind, "layers.0.blocks.0.op."))
        return {key.removeprefix("stages.0.0.scan."): value for key, value in named.items()}

    def forward(x: torch.Tensor) -> torch.Tensor:
        return block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if config["channel_first"] else block(x)

    check_block(block, case, rename, forward, exact=backend != "fused")


@pytest.mark.parametrize("backend", ["reference", "torch", "fused"], indirect=True)
@pytest.mark.parametrize("name", ["16_32_64_128_64x32", "vanilla_v0_16_32_48_64_64x32"])
def test_vmamba(test_data: Path, name: str, backend: str) -> None:
    case = Case(test_data, f"vssm_{name}")
    config = case.config
    vanilla = config["forward_type"] == "v0"
    model = VMamba(
        tuple(config["dims"]), tuple(config["depths"]), int(config["ssm_ratio"]), config["ssm_d_state"], vanilla, backend
    )
    report = model.load_published(case.named("w"), name)
    assert report == f"{len(model.state_dict())} tensors from {name}, resized: none, left: head.bias, head.weight"
    seen: State = {}
    for part, module in [("patch", model.stem), *((f"blocks{i}", stage) for i, stage in enumerate(model.stages))]:
        module.register_forward_hook(lambda _, __, y, part=part: seen.update({part: y if vanilla else y.permute(0, 3, 1, 2)}))
    x = case["x"].clone().requires_grad_()
    assert_near(model(x), case["pooled"], OUTPUT, "pooled")
    for part, y in seen.items():
        assert_near(y, case[part], OUTPUT, part)
    (seen["blocks3"] * case["r"]).sum().backward()
    assert_near(x.grad, case["gx"], GRADIENT, "gx")
    assert_weight_gradients(model, case, lambda kind: vmamba_names.own_names(case.named(kind)))
    if backend != "fused":
        with torch.no_grad():
            model.double()(case["x"].double())
        assert_near(seen["blocks3"], case["y64"], EXACT, "y64")


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", ["d32_L12", "d48_L17"])
def test_vims_block(test_data: Path, name: str, backend: str) -> None:
    case = Case(test_data, f"vim_mamba_v2_{name}")
    block = BidirectionalMamba(case.config["d_model"], case.config["expand"], case.config["d_state"], backend)

    def rename(kind: str) -> State:
        named = vim_names.own_names(case.named(kind, "layers.0.mixer."))
        return {key.removeprefix("blocks.0."): value for key, value in named.items()}

    check_block(block, case, rename, block)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", ["p16", "p16_s8", "p8"])
def test_vim(test_data: Path, name: str, backend: str) -> None:
    case = Case(test_data, f"vim_e32_32x16_{name}")
    config = case.config
    patch, mixer = config["patch_size"], config["mixer"]
    size = tuple(side * patch for side in config["grid"])
    model = Vim(size, patch, config["embed_dim"], config["depth"], mixer["expand"], config["d_state"], backend)
    model.project.stride = (config["stride"],) * 2  # overlapping patches, which no recipe asks for
    assert model.load_published(case.named("w"), name).endswith(", resized: none, left: head.bias, head.weight")

    def rename(kind: str) -> State:
        named = vim_names.own_names(case.named(kind))
        return {key: value for key, value in named.items() if not key.startswith("head.")}

    check_block(model, case, rename, model)
    logits = model.float()(case["x"]) @ case["w.head.weight"].T + case["w.head.bias"]
    assert_near(logits, case["logits"], OUTPUT, "logits")


@pytest.mark.parametrize("name", ["sie_s16_64x32", "jpm_s16_64x32_shift5"])
@torch.no_grad()
def test_transreids_global_branch(test_data: Path, name: str) -> None:
    """The camera's embedding, which is left out, is added to the positions first: the rest is TransReID's to the last digit."""
    case = Case(test_data, f"transreid_{name}")
    config = case.config
    weights = case.named("w") if "jpm" in name else case.named("w", "base.")
    for picture, camera in enumerate(case["cam_label"].tolist()):
        positions = weights["base.pos_embed"] + 3 * weights["base.sie_embed"][camera]
        model = ViT((64, 32), 16, 48, depth=2, heads=4).eval()
        report = model.load_published({**weights, "base.pos_embed": positions}, name)
        left = "base.fc, base.sie_embed"
        if "jpm" in name:
            assert config["SIE_COE"] == 3
            numbered = [f"{part}{end}" for part in ("bottleneck", "classifier") for end in ("", "_1", "_2", "_3", "_4")]
            left = ", ".join(["b2", "base.blocks.1", "base.fc", "base.norm", "base.sie_embed", *numbered])
        assert report == f"{len(model.vit.state_dict())} tensors from {name}, resized: none, left: {left}"
        x = case["x"][picture : picture + 1]
        assert_near(model(x)[0], case["y"][picture, :48], OUTPUT, "y")
        assert_near(model.double()(x.double())[0], case["y64"][picture, :48], EXACT, "y64")
