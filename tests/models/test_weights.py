"""Published timm weights into the ViTs, and what is said where they do not fit."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from tiny import seal

from vmreid.compat import prepare_torchvision
from vmreid.errors import UserError
from vmreid.models import ReIDModel, build_backbone
from vmreid.models.backbone import Backbone
from vmreid.models.registry import check_backbone, load_weights, weights_file
from vmreid.recipes.schema import Model

prepare_torchvision()
import timm  # noqa: E402

PUBLISHED = "vit_small_patch16_224"
SMALL = Model(backbone="VIT-S", dim=32, depth=2, heads=2)  # for what fails before a size matters
State = dict[str, torch.Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published() -> Any:
    torch.manual_seed(0)
    model = timm.create_model(PUBLISHED, pretrained=False).eval()
    torch.nn.init.normal_(model.pos_embed, std=0.5)  # far from what a fresh model holds
    return model


def build(size: tuple[int, int], model: Model | None = None) -> Backbone:
    torch.manual_seed(1)
    return build_backbone(model or Model(backbone="VIT-S"), size, "torch").eval()


def small_state() -> State:
    return {name: value.clone() for name, value in build((32, 32), SMALL).vit.state_dict().items()}


def refusal(tmp_path: Path, state: object) -> str:
    """The message for what a .pth holds; and that the backbone has stayed as it was."""
    backbone = build((32, 32), SMALL)
    before = copy.deepcopy(backbone.state_dict())
    path = tmp_path / "given.pth"
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        load_weights(backbone, path)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert "given.pth" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@torch.no_grad()
def test_features_equal_timms_at_the_published_size(published: Any, tmp_path: Path, wrapper: str | None) -> None:
    backbone, path = build((224, 224)), tmp_path / "weights.pth"
    torch.save({wrapper: published.state_dict(), "epoch": 300} if wrapper else published.state_dict(), path)
    report = load_weights(backbone, path)
    assert report == "150 tensors from weights.pth, resized: none, left: head.bias, head.weight"
    image_BCHW = torch.randn(2, 3, 224, 224)
    wanted_BC = published.forward_features(image_BCHW)[:, 0]
    assert torch.equal(backbone(image_BCHW), wanted_BC)


@torch.no_grad()
def test_positions_are_resized_to_another_map(published: Any, tmp_path: Path) -> None:
    backbone, path = build((256, 128)), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(published.state_dict(), path)
    report = load_weights(backbone, path)
    assert report == "150 tensors from weights.safetensors, resized: pos_embed, left: head.bias, head.weight"
    given, own = published.state_dict(), backbone.vit.state_dict()
    map_BCHW = given["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    resized_BCHW = F.interpolate(map_BCHW, (16, 8), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(own["pos_embed"][:, 1:], resized_BCHW.flatten(2).transpose(1, 2))
    assert torch.equal(own["pos_embed"][:, 0], given["pos_embed"][:, 0])
    assert all(torch.equal(own[name], given[name]) for name in own if name != "pos_embed")
    assert backbone(torch.randn(2, 3, 256, 128)).shape == (2, 384)


@torch.no_grad()
def test_a_turned_map_of_as_many_patches_is_resized_too(tmp_path: Path) -> None:
    """The number of positions does not tell a map of 14 x 14 patches from one of 28 x 7."""
    tall, square = build((448, 112), SMALL), build((224, 224), SMALL)
    path = tmp_path / "square.pth"
    torch.save(square.vit.state_dict(), path)
    assert "resized: pos_embed, left: none" in load_weights(tall, path)
    map_BCHW = square.vit.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    wanted_BCHW = F.interpolate(map_BCHW, (28, 7), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(tall.vit.pos_embed[:, 1:], wanted_BCHW.flatten(2).transpose(1, 2))


def test_weights_of_another_patch_are_resized_and_named(tmp_path: Path) -> None:
    given, backbone = build((32, 32), SMALL.model_copy(update={"patch": 8})), build((32, 32), SMALL)
    path = tmp_path / "patch8.pth"
    torch.save(given.vit.state_dict(), path)
    assert "resized: patch_embed.proj.weight, pos_embed, left: none" in load_weights(backbone, path)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"dim": 64}, r"^given\.pth: has another shape of \S+ \(\d+ such\): "),
        ({"depth": 1}, r"^given\.pth: has no blocks\.1\.attn\.proj\.bias \(12 such\): "),
        ({"depth": 3}, r"^given\.pth: has an unknown blocks\.2\.attn\.proj\.bias \(12 such\): "),
    ],
)
def test_another_backbones_weights_are_refused(tmp_path: Path, other: dict[str, int], complaint: str) -> None:
    message = refusal(tmp_path, build((32, 32), SMALL.model_copy(update=other)).vit.state_dict())
    assert re.search(complaint, message)
    assert "choose the backbone that it was published for" in message


def missing(state: State) -> None:
    del state["norm.weight"]


def unexpected(state: State) -> None:
    state["blocks.0.ls1.gamma"] = torch.ones(32)


def flat_patches(state: State) -> None:
    state["patch_embed.proj.weight"] = torch.zeros(7)


def no_tensor(state: State) -> None:
    state["norm.weight"] = 3  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (missing, "has no norm.weight (1 such)"),
        (unexpected, "has an unknown blocks.0.ls1.gamma (1 such)"),
        (flat_patches, "timm cannot read it as a ViT"),
        (no_tensor, "not a state dict"),
    ],
)
def test_a_spoilt_state_dict_is_refused(tmp_path: Path, spoil: Callable[[State], None], complaint: str) -> None:
    state = small_state()
    spoil(state)
    assert complaint in refusal(tmp_path, state)


@pytest.mark.parametrize(
    "state", [[1, 2], torch.zeros(3), {"model": 3}, {"state_dict": [torch.zeros(2)]}, {1: torch.zeros(2)}, {}]
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, state: object) -> None:
    refusal(tmp_path, state)


def test_a_pickled_object_is_never_run(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"model": torch.nn.Linear(2, 2)})
    assert "not readable as weights" in message
    assert "give a plain state dict" in message


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(UserError, match=rf"{re.escape(name)}: not readable as weights") as caught:
        load_weights(build((32, 32), SMALL), tmp_path / name)
    assert "\n" not in str(caught.value)


def a_run(folder: Path, model: Model, size: tuple[int, int]) -> tuple[Path, Backbone]:
    """A run's folder as training leaves it, and the backbone that its newest weights hold."""
    torch.manual_seed(2)
    backbone = build_backbone(model, size, "torch")
    state = ReIDModel(backbone, 5, (0.5,) * 3, (0.5,) * 3).state_dict()
    (folder / "checkpoints/step-000007").mkdir(parents=True)
    safetensors.torch.save_file(state, folder / "checkpoints/step-000007/weights.safetensors")
    seal(folder / "checkpoints/step-000007")
    (folder / "checkpoints/latest").write_text("step-000007\n")
    return folder, backbone


@pytest.mark.parametrize("name", ["VIT-S", "MAMBA-S", "MAMBA-V2"])
def test_a_run_begins_from_another_runs_backbone(tmp_path: Path, name: str) -> None:
    model = SMALL.model_copy(update={"backbone": name, "heads": None, "dim": 48})
    run, trained = a_run(tmp_path / "run", model, (64, 32))
    backbone = build((64, 32), model)
    report = load_weights(backbone, weights_file(str(run)))
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in trained.state_dict().items())
    left = "head.classifier.weight, head.neck.running_mean, head.neck.running_var, head.neck.weight"
    assert report == f"{len(trained.state_dict())} tensors from {weights_file(str(run))}, left: {left}"


def test_a_run_of_another_size_or_backbone_is_refused(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "run", SMALL, (64, 32))
    for size, model in (((64, 64), SMALL), ((64, 32), SMALL.model_copy(update={"backbone": "MAMBA-S", "heads": None}))):
        backbone = build(size, model)
        before = copy.deepcopy(backbone.state_dict())
        with pytest.raises(UserError, match=r"give a run of the same backbone and data.image_size$"):
            load_weights(backbone, weights_file(str(run)))
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["MAMBA-S", "MAMBA-V2"])
def test_backbones_without_published_weights_say_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"cls_token": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"is no vmreid run's weights\.safetensors, and no published weights are known for Mamba"):
        load_weights(build((32, 32), Model(backbone=name, dim=32, depth=1)), path)


@pytest.mark.parametrize(("made", "words"), [(False, "no such file"), (True, "a folder without a checkpoint")])
def test_weights_that_are_not_there_are_refused_before_anything_starts(tmp_path: Path, made: bool, words: str) -> None:
    if made:
        (tmp_path / "given").mkdir()
    with pytest.raises(UserError, match=rf"^model\.weights .*/given: {words}"):
        check_backbone(Model(backbone="VIT-S", weights=str(tmp_path / "given")))


def as_published(test_data: Path, name: str) -> State:
    keys = json.loads((test_data / "upstream" / f"keys_timm_{name}.json").read_text())
    return {key: torch.full(shape, 0.25) for key, shape in keys["state_dict"].items()}


@pytest.mark.parametrize(
    ("name", "backbone"), [("vit_tiny_patch16_224", "VIT-T"), (PUBLISHED, "VIT-S"), ("vit_base_patch16_224", "VIT-B")]
)
def test_every_published_key_loads(test_data: Path, tmp_path: Path, name: str, backbone: str) -> None:
    state, path = as_published(test_data, name), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    built = build((256, 128), Model(backbone=backbone))
    assert load_weights(built, path).startswith(f"{len(state) - 2} tensors from weights.safetensors, resized: pos_embed,")
    for key, value in built.vit.state_dict().items():
        torch.testing.assert_close(value, torch.full_like(value, 0.25), rtol=1e-4, atol=0, msg=key)


def test_weights_of_a_model_with_layer_scale_are_refused(test_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "dinov2.pth"
    torch.save(as_published(test_data, "vit_small_patch14_dinov2"), path)
    with pytest.raises(UserError, match=r"^dinov2\.pth: has an unknown blocks\.0\.ls1\.gamma \(24 such\)"):
        load_weights(build((256, 128)), path)
