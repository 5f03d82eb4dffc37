"""Published weights of VMamba, Vim, TransReID and DINOv2: every name finds its place, and what finds none is told or refused."""

from __future__ import annotations

import copy
import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vmreid.errors import UserError
from vmreid.models import build_backbone
from vmreid.models.backbone import Backbone
from vmreid.models.published import resize_positions
from vmreid.models.registry import load_weights
from vmreid.recipes.schema import Model

State = dict[str, torch.Tensor]
HEADS = r"(classifier\.)?head\.(weight|bias)"
TRANSREID = r"base\.fc\..*|base\.sie_embed|b2\..*|(classifier|bottleneck)(_\d)?\..*"
JPM = r"base\.blocks\.11\..*|base\.norm\..*|" + TRANSREID
PERSON = (256, 128)

pytestmark = pytest.mark.usefixtures("one_thread")


def build(size: tuple[int, int], **settings: Any) -> Backbone:
    torch.manual_seed(1)
    return build_backbone(Model(**settings), size, "torch").eval()


# The whole lists of names and shapes; without memory, on torch's device "meta"


@pytest.mark.parametrize(
    ("name", "size", "left", "settings"),
    [
        ("vmamba_tiny_s1l8", PERSON, HEADS, {"backbone": "VMAMBA-T"}),
        ("vmamba_small_s2l15", PERSON, HEADS, {"backbone": "VMAMBA-S"}),
        ("vmamba_base_s2l15", PERSON, HEADS, {"backbone": "VMAMBA-B"}),
        ("vmamba_small_s1l20", PERSON, HEADS, {"backbone": "VMAMBA-S", "depth": 20, "expand": 1}),
        ("vmamba_base_s1l20", PERSON, HEADS, {"backbone": "VMAMBA-B", "depth": 20, "expand": 1}),
        ("vmamba_vanilla_v0_tiny", PERSON, HEADS, {"backbone": "VMAMBA-T-V0"}),
        ("vim_tiny_patch16_224_midclstok", (224, 224), HEADS, {"backbone": "VIM-T"}),
        ("vim_small_patch16_224_midclstok", (224, 224), HEADS, {"backbone": "VIM-S"}),
        ("vim_small_patch16_224_midclstok", PERSON, HEADS, {"backbone": "VIM-S"}),
        ("timm_vit_tiny_patch16_224", (224, 224), HEADS, {"backbone": "VIT-T"}),
        ("timm_vit_small_patch16_224", (224, 224), HEADS, {"backbone": "VIT-S"}),
        ("timm_vit_base_patch16_224", (224, 224), HEADS, {"backbone": "VIT-B"}),
        ("timm_vit_small_patch14_dinov2", (518, 518), "nothing", {"backbone": "DINOV2-S", "patch": 14}),
        ("timm_vit_small_patch14_dinov2", (252, 126), "nothing", {"backbone": "DINOV2-S", "patch": 14}),
        ("transreid_vit_base_base", PERSON, TRANSREID, {"backbone": "VIT-B"}),
        ("transreid_vit_base_sie", PERSON, TRANSREID, {"backbone": "VIT-B"}),
        ("transreid_vit_base_jpm", PERSON, JPM, {"backbone": "VIT-B"}),
        ("transreid_vit_base_sie_jpm", PERSON, JPM, {"backbone": "VIT-B"}),
        ("transreid_vit_base_sie_jpm_stride12", PERSON, JPM, {"backbone": "VIT-B"}),
    ],
)
def test_every_published_list_loads(
    test_data: Path, name: str, size: tuple[int, int], left: str, settings: dict[str, Any]
) -> None:
    keys = json.loads((test_data / "upstream" / f"keys_{name}.json").read_text())
    with torch.device("meta"):
        backbone = build(size, **settings)
        state = {key: torch.empty(shape) for key, shape in keys["state_dict"].items()}
    report = backbone.load_published(state, name)
    outside = {key: value for key, value in state.items() if re.fullmatch(left, key)}
    positions = next((key for key in state if key.endswith("pos_embed")), None)
    own = sum(value.numel() for key, value in backbone.state_dict().items() if not key.endswith("pos_embed"))
    own += state[positions].numel() if positions else 0
    assert own + sum(value.numel() for key, value in outside.items() if key not in keys["buffers"]) == keys["parameters"]
    wanted = next((value.shape for key, value in backbone.state_dict().items() if key.endswith("pos_embed")), None)
    resized = "pos_embed" if positions and state[positions].shape != wanted else "none"
    assert report.startswith(f"{len(backbone.state_dict())} tensors from {name}, resized: {resized}, left: ")
    told = report.partition("left: ")[2].split(", ") if outside else []
    for key in outside:  # by its own name, or the part of the model that it belongs to
        assert any(key in (part, f"classifier.{part}") or key.startswith(f"{part}.") for part in told), key


# By hand, without the lists: each name's place, older names, and what is refused


def vmamba_state(backbone: Backbone) -> State:
    """A present checkpoint for a VMAMBA-T of 8 channels, every tensor like no other, by the names written down here."""
    blocks = {
        "norm.weight": "norm.weight", "norm.bias": "norm.bias", "op.x_proj_weight": "scan.x_proj_KED", "op.A_logs": "scan.A_log",
        "op.Ds": "scan.D", "op.dt_projs_weight": "scan.dt_proj_KDR", "op.dt_projs_bias": "scan.dt_bias_KD",
        "op.out_norm.weight": "scan.norm.weight", "op.out_norm.bias": "scan.norm.bias",
        "op.in_proj.weight": "scan.project_in.weight", "op.conv2d.weight": "scan.convolve.weight",
        "op.out_proj.weight": "scan.project_out.weight", "norm2.weight": "norm2.weight", "norm2.bias": "norm2.bias",
        "mlp.fc1.weight": "fc1.weight", "mlp.fc1.bias": "fc1.bias", "mlp.fc2.weight": "fc2.weight", "mlp.fc2.bias": "fc2.bias",
    }  # fmt: skip
    own = {"classifier.norm.weight": "norm.weight", "classifier.norm.bias": "norm.bias"}
    for kind in ("weight", "bias"):
        for number, part in ((0, "0.convolve"), (2, "0.norm"), (5, "2.convolve"), (7, "2.norm")):
            own[f"patch_embed.{number}.{kind}"] = f"stem.{part}.{kind}"
        for stage in range(3):
            own[f"layers.{stage}.downsample.1.{kind}"] = f"shrinks.{stage}.convolve.{kind}"
            own[f"layers.{stage}.downsample.3.{kind}"] = f"shrinks.{stage}.norm.{kind}"
    for stage, depth in enumerate((2, 2, 1, 2)):
        for block in range(depth):
            own |= {f"layers.{stage}.blocks.{block}.{name}": f"stages.{stage}.{block}.{here}" for name, here in blocks.items()}
    shapes = {key: value.shape for key, value in backbone.state_dict().items()}
    assert sorted(own.values()) == sorted(shapes)
    state = {name: torch.randn(shapes[here]) for name, here in own.items()}
    backbone.wanted = {here: state[name] for name, here in own.items()}
    return {**state, "classifier.head.weight": torch.randn(5, 64), "classifier.head.bias": torch.randn(5)}


def as_it_is(state: State) -> State:
    return state


def older(state: State) -> State:
    """Names of VMamba's first releases, where they differ."""
    changes = (
        (r"\.norm\.(?=(weight|bias)$)", ".ln_1."),
        (r"\.op\.", ".self_attention."),
        (r"^classifier\.(ln_1\.)?", lambda found: "norm." if found[1] else ""),
        (r"^patch_embed\.0\.", "patch_embed.proj."),
        (r"^patch_embed\.2\.", "patch_embed.norm."),
    )
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in changes:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    assert {"patch_embed.proj.bias", "norm.bias", "head.bias", "layers.0.blocks.0.ln_1.weight"} <= renamed.keys()
    return renamed


def as_convolutions(state: State) -> State:
    """Linear weights of the channel-first form."""
    linear = ("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")
    return {key: value[..., None, None] if key.endswith(linear) else value for key, value in state.items()}


@pytest.mark.parametrize("change", [as_it_is, older, as_convolutions])
def test_vmambas_names_find_their_places(tmp_path: Path, change: Callable[[State], State]) -> None:
    backbone = build((64, 32), backbone="VMAMBA-T", dim=8, depth=1)
    torch.save({"model": change(vmamba_state(backbone)), "args": Namespace(lr=1e-3)}, tmp_path / "vssm.pth")
    report = load_weights(backbone, tmp_path / "vssm.pth")
    assert report == f"{len(backbone.state_dict())} tensors from vssm.pth, resized: none, left: head.bias, head.weight"
    assert all(torch.equal(value, backbone.wanted[key]) for key, value in backbone.state_dict().items())


VIM = {"backbone": "VIM-T", "dim": 16, "depth": 1, "d_state": 2}


def vim_state(patches: int) -> State:
    """A checkpoint for one block of 16 channels, by the names written down here."""
    shapes = {"cls_token": (1, 1, 16), "pos_embed": (1, patches + 1, 16), "patch_embed.proj.weight": (16, 3, 16, 16)}
    shapes |= {"patch_embed.proj.bias": (16,), "norm_f.weight": (16,), "layers.0.norm.weight": (16,), "head.weight": (5, 16)}
    shapes |= {"head.bias": (5,), "layers.0.mixer.in_proj.weight": (64, 16), "layers.0.mixer.out_proj.weight": (16, 32)}
    for b in ("", "_b"):
        mixer = {f"A{b}_log": (32, 2), f"D{b}": (32,), f"conv1d{b}.weight": (32, 1, 4), f"conv1d{b}.bias": (32,)}
        mixer |= {f"x_proj{b}.weight": (5, 32), f"dt_proj{b}.weight": (32, 1), f"dt_proj{b}.bias": (32,)}
        shapes |= {f"layers.0.mixer.{name}": shape for name, shape in mixer.items()}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def test_vims_directions_are_stacked_and_the_middle_position_is_the_class_tokens() -> None:
    backbone, state = build((64, 32), **VIM), vim_state(16)
    report = backbone.load_published(copy.copy(state), "vim.pth")
    assert report == f"{len(backbone.state_dict())} tensors from vim.pth, resized: pos_embed, left: head.bias, head.weight"
    own, mixer = backbone.state_dict(), "layers.0.mixer."
    assert torch.equal(own["blocks.0.A_log"], torch.cat([state[mixer + "A_log"], state[mixer + "A_b_log"]]))
    assert torch.equal(own["blocks.0.x_proj_KED"][1], state[mixer + "x_proj_b.weight"])
    assert torch.equal(own["blocks.0.convolve.weight"][:32], state[mixer + "conv1d.weight"])
    assert torch.equal(own["norms.0.weight"], state["layers.0.norm.weight"])
    map_1CHW = torch.cat([state["pos_embed"][:, :8], state["pos_embed"][:, 9:]], dim=1).transpose(1, 2).unflatten(2, (4, 4))
    wanted_1LC = F.interpolate(map_1CHW, (4, 2), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    assert torch.equal(own["pos_embed"][:, 4], state["pos_embed"][:, 8])
    torch.testing.assert_close(torch.cat([own["pos_embed"][:, :4], own["pos_embed"][:, 5:]], dim=1), wanted_1LC)


def without(*keys: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key not in keys}


def instead(key: str, *shape: int) -> Callable[[State], State]:
    return lambda state: {**state, key: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without("layers.0.mixer.D_b"), r"has no blocks\.0\.D \(1 such\)"),
        (without("pos_embed"), r"has no pos_embed \(1 such\)"),
        (instead("layers.0.mixer.D_b", 3), r"has no blocks\.0\.D \(1 such\)"),
        (instead("layers.0.mixer.D_c", 3), r"has an unknown blocks\.0\.D_c \(1 such\)"),
        (instead("layers.1.norm.weight", 16), r"has an unknown norms\.1\.weight \(1 such\)"),
        (instead("pos_embed", 9, 16), r"has another shape of pos_embed \(1 such\)"),
        (instead("pos_embed", 1, 0, 16), r"has another shape of pos_embed \(1 such\)"),
        (instead("norm_f.weight", 15), r"has another shape of norm\.weight \(1 such\)"),
    ],
)
def test_what_does_not_fit_a_vim_is_named(spoil: Callable[[State], State], complaint: str) -> None:
    backbone = build((64, 32), **VIM)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(UserError, match=rf"^vim\.pth: {complaint}: .*choose the backbone that it was published for$"):
        backbone.load_published(spoil(vim_state(8)), "vim.pth")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without("layers.1.blocks.0.op.Ds"), r"has no stages\.1\.0\.scan\.D \(1 such\)"),
        (instead("layers.1.blocks.0.op.z.weight", 3), r"has an unknown stages\.1\.0\.scan\.z\.weight \(1 such\)"),
        (instead("layers.1.blocks.0.op.in_proj.weight", 16, 16, 3, 3), r"has another shape of stages\.1\.0\.scan\.project_in"),
    ],
)
def test_what_does_not_fit_a_vmamba_is_named(spoil: Callable[[State], State], complaint: str) -> None:
    backbone = build((64, 32), backbone="VMAMBA-T", dim=8, depth=1)
    state = spoil(vmamba_state(backbone))
    with pytest.raises(UserError, match=rf"^vssm\.pth: {complaint}"):
        backbone.load_published(state, "vssm.pth")


VIT = {"backbone": "VIT-B", "dim": 32, "depth": 3, "heads": 2}


def transreid_state(jigsaw: bool) -> State:
    """Names as TransReID saves them at 256 x 128, for a ViT of 32 channels and 3 blocks."""
    vit = build(PERSON, **VIT).vit.state_dict()
    state = {f"base.{key}": torch.randn(value.shape) for key, value in vit.items()}
    state |= {"base.fc.weight": torch.zeros(4, 32), "classifier.weight": torch.zeros(5, 32), "bottleneck.bias": torch.zeros(32)}
    for branch in ("b1", "b2") if jigsaw else ():
        for key, value in vit.items():
            if key.startswith("blocks.2."):
                state[f"{branch}.0.{key.removeprefix('blocks.2.')}"] = torch.randn(value.shape)
        state |= {f"{branch}.1.weight": torch.randn(32), f"{branch}.1.bias": torch.randn(32)}
    return state


@pytest.mark.parametrize("jigsaw", [False, True])
def test_transreids_global_branch_is_the_backbone(jigsaw: bool) -> None:
    backbone, state = build(PERSON, **VIT), transreid_state(jigsaw)
    report = backbone.load_published(copy.copy(state), "deit.pth")
    left = "b2, base.blocks.2, base.fc, base.norm, bottleneck, classifier" if jigsaw else "base.fc, bottleneck, classifier"
    own = backbone.vit.state_dict()
    assert report == f"{len(own)} tensors from deit.pth, resized: none, left: {left}"
    for key, value in own.items():
        source = f"base.{key}"
        if jigsaw:
            source = source.replace("base.blocks.2.", "b1.0.").replace("base.norm.", "b1.1.")
        assert torch.equal(value, state[source]), key


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without("b1.0.attn.qkv.bias"), r"has no blocks\.2\.attn\.qkv\.bias \(1 such\)"),
        (instead("b3.0.norm1.weight", 32), r"has an unknown b3\.0\.norm1\.weight \(1 such\)"),
        (instead("base.fcx", 32), r"has an unknown fcx \(1 such\)"),
    ],
)
def test_what_is_no_part_of_transreid_is_named(spoil: Callable[[State], State], complaint: str) -> None:
    with pytest.raises(UserError, match=rf"^deit\.pth: {complaint}"):
        build(PERSON, **VIT).load_published(spoil(transreid_state(True)), "deit.pth")


@pytest.mark.parametrize(
    ("count", "grid", "old"),
    [
        (128, (16, 16), (16, 8)),
        (210, (16, 8), (21, 10)),
        (196, (28, 7), (14, 14)),
        (192, (16, 8), (24, 8)),
        (192, (24, 8), None),
        (192, (16, 12), None),
        (7, (4, 2), (7, 1)),
    ],
)
def test_the_number_of_positions_tells_the_map(count: int, grid: tuple[int, int], old: tuple[int, int] | None) -> None:
    given = {"pos_embed": torch.randn(1, count + 1, 3)}
    before = given["pos_embed"].clone()
    assert resize_positions(given, grid, middle=False) == (["pos_embed"] if old else [])
    wanted = before
    if old:
        map_1CHW = F.interpolate(before[:, 1:].transpose(1, 2).unflatten(2, old), grid, mode="bicubic", antialias=True)
        wanted = torch.cat([before[:, :1], map_1CHW.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(given["pos_embed"], wanted)


def test_dinov2_loads_with_its_layer_scale_and_without_its_mask_token() -> None:
    small = {"backbone": "DINOV2-S", "dim": 32, "depth": 2, "heads": 2, "patch": 14}
    backbone = build((56, 28), **small)
    state = {key: torch.randn(value.shape) for key, value in backbone.vit.state_dict().items()}
    report = backbone.load_published({**state, "mask_token": torch.zeros(1, 32)}, "dinov2.pth")
    assert report == f"{len(state)} tensors from dinov2.pth, resized: none, left: mask_token"
    assert torch.equal(backbone.vit.blocks[1].ls2.gamma, state["blocks.1.ls2.gamma"])
    assert build((56, 28), **small).vit.blocks[0].ls1.gamma[0].item() == pytest.approx(1e-5)
