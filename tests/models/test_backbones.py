"""Every backbone: shapes, gradients, parameter counts, start values; and the two Mamba blocks against plain loops."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vmreid.errors import UserError
from vmreid.kernels.cross_scan import cross_scan
from vmreid.models import BACKBONES, build_backbone
from vmreid.models.backbone import Backbone
from vmreid.models.mamba_s import GatedAttention
from vmreid.models.mamba_v2 import SS2D
from vmreid.recipes.schema import Model

SIZE = (48, 64)  # 3 x 4 patches
PATCHES = 12
VITS = ("VIT-T", "VIT-S", "VIT-B", "DINOV2-S", "DINOV2-B")
VMAMBAS, VIMS = ("VMAMBA-T", "VMAMBA-S", "VMAMBA-B", "VMAMBA-T-V0"), ("VIM-T", "VIM-S")
SMALL = {
    **{name: Model(backbone=name, dim=32, depth=2, heads=2) for name in VITS},
    **{name: Model(backbone=name, dim=8, depth=1) for name in VMAMBAS},
    **{name: Model(backbone=name, dim=32, depth=2, d_state=4) for name in VIMS},
    "MAMBA-S": Model(backbone="MAMBA-S", dim=32, depth=2, heads=2),
    "MAMBA-V2": Model(backbone="MAMBA-V2", dim=32, depth=2, d_state=4),
}
FEATURES = {name: 64 if name in VMAMBAS else 32 for name in SMALL}  # three times doubled in VMamba
REAL = {"VIT-T": 192, "VIT-S": 384, "VIT-B": 768, "DINOV2-S": 384, "MAMBA-S": 384, "MAMBA-V2": 384}
REAL |= {"VMAMBA-T": 768, "VMAMBA-T-V0": 768, "VIM-T": 192}  # the others differ in numbers alone

pytestmark = pytest.mark.usefixtures("one_thread")


def build(model: Model, seed: int = 0, size: tuple[int, int] = SIZE, scan_backend: str = "torch") -> Backbone:
    torch.manual_seed(seed)
    return build_backbone(model, size, scan_backend)


@functools.cache
def real(name: str) -> Backbone:
    """The backbone by its own definition, built once."""
    return build(Model(backbone=name))


def parameters(backbone: nn.Module) -> int:
    return sum(parameter.numel() for parameter in backbone.parameters())


def pictures(count: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def check_gradients(backbone: Backbone, dim: int) -> None:
    feature_BC = backbone(pictures())
    assert feature_BC.shape == (2, dim)
    assert backbone.dim == dim
    backbone.zero_grad()
    (feature_BC * torch.randn(2, dim)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", BACKBONES)
def test_small_shape_and_a_gradient_at_every_parameter(name: str) -> None:
    check_gradients(build(SMALL[name]), FEATURES[name])


@pytest.mark.parametrize(("name", "dim"), REAL.items())
def test_real_shape_and_a_gradient_at_every_parameter(name: str, dim: int) -> None:
    check_gradients(real(name), dim)


def test_each_direction_of_ss2d_gets_gradients_of_its_own() -> None:
    backbone = build(SMALL["MAMBA-V2"])
    (backbone(pictures()) * torch.randn(2, 32)).sum().backward()
    for block in backbone.blocks:
        for parameter in (block.x_proj_KED, block.dt_proj_KDR, block.dt_bias, block.A_log):
            by_direction_K = parameter.grad.reshape(4, -1).abs().amax(dim=1)
            assert (by_direction_K > 0).all()
            assert len(set(by_direction_K.tolist())) == 4  # D's are equal: the mean over the directions sees their sum alone


def token_count(dim: int, patch: int, patches: int) -> int:
    """Patch weights and bias, class token, positions."""
    return 3 * patch**2 * dim + dim + dim + (patches + 1) * dim


def vit_count(dim: int, depth: int, patch: int = 16, patches: int = PATCHES) -> int:
    attention, mlp, norms = (3 * dim + 1) * dim + 2 * dim + dim * dim + dim, 8 * dim**2 + 5 * dim, 4 * dim
    return token_count(dim, patch, patches) + depth * (attention + mlp + norms) + 2 * dim


def mamba_s_count(dim: int, depth: int, expand: int = 2, patch: int = 16, patches: int = PATCHES) -> int:
    inner = expand * dim
    return token_count(dim, patch, patches) + depth * (dim * 4 * inner + inner * dim + 2 * dim) + 2 * dim


def mamba_v2_count(dim: int, depth: int, expand: int = 2, d_state: int = 16, patch: int = 16, patches: int = PATCHES) -> int:
    inner, rank = expand * dim, -(-dim // 16)
    projections, convolution, norm = dim * 2 * inner + inner * dim, 9 * inner + inner, 2 * inner
    scan = 4 * ((rank + 2 * d_state) * inner + inner * rank + inner + inner * d_state + inner)  # x_proj, dt_proj and bias, A, D
    return token_count(dim, patch, patches) + depth * (projections + convolution + scan + norm + 2 * dim) + 2 * dim


@pytest.mark.parametrize(
    ("name", "with_classifier", "dim"),
    [("VIT-T", 5_717_416, 192), ("VIT-S", 22_050_664, 384), ("VIT-B", 86_567_656, 768)],
)
def test_real_vits_have_the_published_number_of_parameters(name: str, with_classifier: int, dim: int) -> None:
    """timm's at 224 x 224 with 1000 classes; the classifier is left out, and only the positions depend on the size."""
    published = with_classifier - 1000 * (dim + 1)
    assert vit_count(dim, 12, patches=196) == published
    assert parameters(real(name)) == published - (196 - PATCHES) * dim


def test_real_mambas_have_the_parameters_of_their_formula() -> None:
    assert parameters(real("MAMBA-S")) == mamba_s_count(384, 8)
    assert parameters(real("MAMBA-V2")) == mamba_v2_count(384, 8)
    assert mamba_s_count(384, 8, patches=128) == 12_148_608  # at 256 x 128
    assert mamba_v2_count(384, 8, patches=128) == 9_912_192


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (Model(backbone="VIT-S", depth=1, dim=48, heads=3), vit_count(48, 1)),
        (Model(backbone="VIT-S", depth=3, dim=48, heads=4), vit_count(48, 3)),
        (Model(backbone="VIT-T", depth=1, patch=8), vit_count(192, 1, patch=8, patches=48)),
        (Model(backbone="MAMBA-S", depth=1), mamba_s_count(384, 1)),
        (Model(backbone="MAMBA-S", depth=2, dim=40, expand=3), mamba_s_count(40, 2, expand=3)),
        (Model(backbone="MAMBA-S", depth=2, dim=40, heads=8), mamba_s_count(40, 2)),
        (Model(backbone="MAMBA-V2", depth=4, dim=40), mamba_v2_count(40, 4)),
        (Model(backbone="MAMBA-V2", depth=6, dim=40, d_state=8), mamba_v2_count(40, 6, d_state=8)),
        (Model(backbone="MAMBA-V2", depth=1, dim=32, expand=1, patch=8), mamba_v2_count(32, 1, expand=1, patch=8, patches=48)),
    ],
)
def test_deviations_in_the_recipe_change_the_number_of_parameters(model: Model, count: int) -> None:
    assert parameters(build(model)) == count


@pytest.mark.parametrize("name", ["VIT-S", "MAMBA-S"])
def test_heads_change_features_and_no_parameter(name: str) -> None:
    one, two = (build(SMALL[name].model_copy(update={"heads": heads})) for heads in (1, 2))
    two.load_state_dict(one.state_dict())
    assert not torch.allclose(one(pictures()), two(pictures()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REAL)
def test_linear_and_patch_weights_and_tokens_start_normal_with_deviation_0_02(name: str) -> None:
    backbone = real(name)
    weights = {
        key: module.weight
        for key, module in backbone.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }
    assert len(weights) > BACKBONES[name].depth
    weights |= {key: p for key, p in backbone.named_parameters() if key.endswith("pos_embed") or "x_proj" in key}
    for key, weight in weights.items():
        error = 5 / weight.numel() ** 0.5
        assert weight.std().item() == pytest.approx(0.02, rel=error), key
        assert abs(weight.mean().item()) < 0.02 * error, key
        assert (weight.abs() < 0.02).double().mean().item() == pytest.approx(0.683, abs=error), key  # uniform: 0.577
    tokens = [p for key, p in backbone.named_parameters() if key.endswith("cls_token")]
    assert len(tokens) == int(name not in VMAMBAS)
    assert all(token.std().item() == pytest.approx(0.02, rel=0.25) for token in tokens)
    zero = [key for key, p in backbone.named_parameters() if key.endswith("bias") and "dt_" not in key and "convolve" not in key]
    assert all(not backbone.get_parameter(key).any() for key in zero)


def test_scan_parameters_start_as_the_note_says() -> None:
    for block in real("MAMBA-V2").blocks:
        assert block.A_log.shape == (4 * 768, 16)
        torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 17).expand(4 * 768, -1))
        assert (block.D == 1).all()
        delta_D = F.softplus(block.dt_bias.double())
        assert delta_D.min() >= 1e-3 * (1 - 1e-4)
        assert delta_D.max() <= 1e-1 * (1 + 1e-4)
        share = delta_D.log10().add(3).div(2)  # of the way from 1e-3 to 1e-1: uniform
        assert share.mean().item() == pytest.approx(0.5, abs=0.03)
        assert share.std().item() == pytest.approx(12**-0.5, abs=0.02)
        assert {block.A_log.dtype, block.D.dtype, block.dt_bias.dtype} == {torch.float32}


def random_ss2d(dim: int, expand: int, d_state: int) -> SS2D:
    """In float64, every parameter far from its neighbours and from 0, so that no mistake hides behind a small number."""
    torch.manual_seed(3)
    block = SS2D(dim, expand, d_state, "torch").double()
    for parameter in block.parameters():
        parameter.data = some(*parameter.shape) * 0.7
    return block


def ss2d_by_loop(block: SS2D, tokens_LC: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """One picture, token by token: each direction runs over the patches, and the class token steps from its last state."""
    inner = len(block.D) // 4
    rank, d_state = block.dt_proj_KDR.shape[2], block.A_log.shape[1]
    x_LD, z_LD = (tokens_LC @ block.project_in.weight.T).split(inner, dim=1)
    padded = F.pad(x_LD[:-1].view(height, width, inner), (0, 0, 1, 1, 1, 1))
    u = {}
    for r, c in itertools.product(range(height), range(width)):
        window = padded[r : r + 3, c : c + 3]
        u[r, c] = F.silu((window * block.convolve.weight[:, 0].permute(1, 2, 0)).sum(dim=(0, 1)) + block.convolve.bias)
    by_rows = [(r, c) for r in range(height) for c in range(width)]
    by_columns = [(r, c) for c in range(width) for r in range(height)]
    y: dict[Any, torch.Tensor] = {place: torch.zeros(inner, dtype=torch.float64) for place in (*by_rows, "class")}
    u["class"] = F.silu(x_LD[-1])
    for k, order in enumerate((by_rows, by_columns, by_rows[::-1], by_columns[::-1])):
        own = slice(k * inner, (k + 1) * inner)
        A_DN = -torch.exp(block.A_log[own])

        def step(h_DN: torch.Tensor, place: Any, k: int = k, own: slice = own, A_DN: torch.Tensor = A_DN) -> torch.Tensor:
            low_R, B_N, C_N = (block.x_proj_KED[k] @ u[place]).split([rank, d_state, d_state])
            delta_D = F.softplus(block.dt_proj_KDR[k] @ low_R + block.dt_bias[own])
            h_DN = torch.exp(delta_D[:, None] * A_DN) * h_DN + (delta_D * u[place])[:, None] * B_N
            y[place] = y[place] + (h_DN @ C_N + block.D[own] * u[place]) / 4
            return h_DN

        state_DN = torch.zeros(inner, d_state, dtype=torch.float64)
        for place in order:
            state_DN = step(state_DN, place)
        step(state_DN, "class")
    y_LD = torch.stack([y[place] for place in (*by_rows, "class")])
    normed_LD = (y_LD - y_LD.mean(1, keepdim=True)) / (y_LD.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    return ((normed_LD * block.norm.weight + block.norm.bias) * F.silu(z_LD)) @ block.project_out.weight.T


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 1), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 0.01])  # where the class token is small, the norm's epsilon tells mean from sum
@torch.no_grad()
def test_ss2d_equals_a_loop_in_which_the_class_token_steps_from_the_last_states(height: int, width: int, scale: float) -> None:
    block = random_ss2d(dim=20, expand=2, d_state=3)
    block.project_in.weight[:40] *= scale
    tokens_BLC = some(2, height * width + 1, 20)
    wanted = torch.stack([ss2d_by_loop(block, tokens_LC, height, width) for tokens_LC in tokens_BLC])
    torch.testing.assert_close(block(tokens_BLC, (height, width)), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_patches_do_not_read_the_class_token() -> None:
    block = random_ss2d(dim=6, expand=2, d_state=3)
    tokens_BLC = some(1, 7, 6)
    changed_BLC = torch.cat([tokens_BLC[:, :-1], some(1, 1, 6)], dim=1)
    before, after = block(tokens_BLC, (2, 3)), block(changed_BLC, (2, 3))
    torch.testing.assert_close(after[:, :-1], before[:, :-1], rtol=0, atol=0)
    assert not torch.allclose(after[:, -1], before[:, -1])


@pytest.mark.parametrize(("first", "second"), itertools.combinations(range(4), 2))
@torch.no_grad()
def test_no_two_directions_of_ss2d_are_alike(first: int, second: int) -> None:
    block = random_ss2d(dim=6, expand=2, d_state=3)
    tokens_BLC = some(1, 7, 6)
    before = block(tokens_BLC, (2, 3))
    order = [0, 1, 2, 3]
    order[first], order[second] = second, first
    for parameter in (block.x_proj_KED, block.dt_proj_KDR, block.dt_bias, block.A_log, block.D):
        parameter.copy_(parameter.clone().unflatten(0, (4, -1))[order].flatten(0, 1))
    change_L = (block(tokens_BLC, (2, 3)) - before).abs().amax(dim=2)[0]
    assert change_L[[1, 2, 3, 4, 6]].min() > 1e-3  # the class token is 6; to the corners 0 and 5 rows and columns are alike


def test_directions_differ_on_a_map_that_is_not_square() -> None:
    orders = cross_scan(torch.arange(6.0).view(1, 2, 3, 1))[0, :, 0].tolist()
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("heads", [1, 2])
@torch.no_grad()
def test_mamba_s_is_gated_softmax_attention(heads: int) -> None:
    torch.manual_seed(0)
    block = GatedAttention(dim=6, expand=2, heads=heads).double()
    x_BLC = some(2, 5, 6)
    for x_LC, y_LC in zip(x_BLC, block(x_BLC), strict=True):
        q, k, v, z_LD = (x_LC @ block.project_in.weight.T).split(12, dim=1)
        parts = []
        for own in (slice(h * 12 // heads, (h + 1) * 12 // heads) for h in range(heads)):
            score_LL = torch.exp(q[:, own] @ k[:, own].T / (12 / heads) ** 0.5)
            parts.append(score_LL / score_LL.sum(dim=1, keepdim=True) @ v[:, own])
        wanted_LC = (torch.cat(parts, dim=1) * z_LD / (1 + torch.exp(-z_LD))) @ block.project_out.weight.T
        torch.testing.assert_close(y_LC, wanted_LC, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_every_patch_reaches_the_feature(name: str) -> None:
    backbone = build(SMALL[name]).double().eval()
    image_CHW = pictures(1)[0].double()
    changed_BCHW = image_CHW.repeat(PATCHES + 1, 1, 1, 1)  # the last one stays as it is
    for patch, (r, c) in enumerate(itertools.product(range(0, 48, 16), range(0, 64, 16))):
        changed_BCHW[patch, :, r : r + 16, c : c + 16] *= -1
    feature_BC = backbone(changed_BCHW)
    assert (feature_BC[:-1] - feature_BC[-1]).abs().amax(dim=1).min() > 1e-8  # a fresh MAMBA-V2 says 1e-6
    assert len(feature_BC.unique(dim=0)) == PATCHES + 1


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(64, 32), (32, 64), (16, 16), (80, 48)])
@torch.no_grad()
def test_any_size_that_patches_tile(name: str, size: tuple[int, int]) -> None:
    assert build(SMALL[name], size=size)(pictures(3, size)).shape == (3, FEATURES[name])


@pytest.mark.parametrize("name", ["MAMBA-V2", "VMAMBA-T", "VIM-T"])
@torch.no_grad()
def test_scan_backends_give_the_same_features(name: str) -> None:
    torch_scan, reference = (build(SMALL[name], scan_backend=backend) for backend in ("torch", "reference"))
    torch.testing.assert_close(torch_scan(pictures()), reference(pictures()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_random_state_decides_the_start(name: str) -> None:
    one, same, other = (build(SMALL[name], seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "VIT_S"}, r"^backbone VIT_S: unknown; .*VIT-B.*did you mean VIT-S\?$"),
        ({"backbone": "mamba-v2"}, r"^backbone mamba-v2: unknown; .*did you mean MAMBA-V2\?$"),
        ({"backbone": "resnet"}, rf"^backbone resnet: unknown; the backbones are {', '.join(BACKBONES)}$"),
        ({"backbone": "VIT-S", "d_state": 8}, r"^model\.d_state 8: VIT-S has no such setting; leave it out$"),
        ({"backbone": "VIT-S", "expand": 3}, r"^model\.expand 3: VIT-S has no such setting"),
        ({"backbone": "MAMBA-S", "d_state": 8}, r"^model\.d_state 8: MAMBA-S has no such setting"),
        ({"backbone": "MAMBA-V2", "heads": 4}, r"^model\.heads 4: MAMBA-V2 has no such setting"),
        ({"backbone": "VIT-S", "heads": 5}, r"^model\.heads 5: must divide the 384 channels$"),
        ({"backbone": "MAMBA-S", "heads": 5}, r"^model\.heads 5: must divide the 768 channels$"),
        ({"backbone": "VIT-S", "dim": 32}, r"^model\.heads 6: must divide the 32 channels$"),
        ({"backbone": "VMAMBA-T", "patch": 8}, r"^model\.patch 8: VMAMBA-T has no such setting; leave it out$"),
        ({"backbone": "VIM-T", "heads": 4}, r"^model\.heads 4: VIM-T has no such setting"),
        ({"backbone": "VIT-S", "weights": "no.pth"}, r"^model\.weights no\.pth: no such file"),
    ],
)
def test_what_cannot_be_built_is_said_on_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Model(**settings))
