from __future__ import annotations

import math

import pytest
import torch

from vmreid.losses import batch_hard_triplet

MARGINS = [0.3, 2.0, None]


def by_loop(feature_BF: torch.Tensor, ids: list[int], margin: float | None) -> torch.Tensor:
    """Equation 5 of arXiv 1703.07737, anchor by anchor, in float64."""
    rows = feature_BF.double()
    losses = []
    for anchor in range(len(ids)):
        positives = [torch.zeros((), dtype=torch.float64)]
        positives += [(rows[anchor] - rows[i]).norm() for i in range(len(ids)) if ids[i] == ids[anchor] and i != anchor]
        negatives = [(rows[anchor] - rows[i]).norm() for i in range(len(ids)) if ids[i] != ids[anchor]]
        gap = max(positives) - min(negatives)
        losses.append(torch.log1p(torch.exp(gap)) if margin is None else torch.clamp(gap + margin, min=0))
    return sum(losses) / len(losses)  # type: ignore[return-value]


def drawn(rows: int = 12, width: int = 8, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    feature_BF = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) * scale + offset
    return feature_BF.requires_grad_()


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("ids", [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], [5, 1, 5, 1, 1, 9, 9, 5, 1, 2, 7, 5]])
def test_loss_and_gradient_equal_those_of_a_loop(ids: list[int], margin: float | None) -> None:
    feature_BF = drawn()
    loss = batch_hard_triplet(feature_BF, torch.tensor(ids), margin)
    (gradient_BF,) = torch.autograd.grad(loss, feature_BF)
    wanted = by_loop(feature_BF, ids, margin)
    (wanted_BF,) = torch.autograd.grad(wanted, feature_BF)
    assert loss.shape == ()
    assert loss.item() > 0
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient_BF, wanted_BF, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("margin", MARGINS)
def test_an_offset_common_to_all_features_does_not_blur_their_distances(margin: float | None) -> None:
    """Features of a young model are nearly alike; q·q + g·g - 2 q·g of such rows is rounding noise in fp32."""
    ids = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    feature_BF = drawn(scale=0.01, offset=30.0)
    loss = batch_hard_triplet(feature_BF, torch.tensor(ids), margin)
    (gradient_BF,) = torch.autograd.grad(loss, feature_BF)
    wanted = by_loop(feature_BF, ids, margin)
    (wanted_BF,) = torch.autograd.grad(wanted, feature_BF)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient_BF, wanted_BF, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("margin", MARGINS)
def test_identical_features_give_the_margin_and_a_finite_gradient(margin: float | None) -> None:
    feature_BF = torch.full((8, 16), 3.7, requires_grad=True)
    loss = batch_hard_triplet(feature_BF, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), margin)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) if margin is None else margin, abs=1e-4)
    assert feature_BF.grad is not None
    assert feature_BF.grad.isfinite().all()


@pytest.mark.parametrize("margin", MARGINS)
def test_one_identity_alone_gives_0_and_a_gradient_of_0(margin: float | None) -> None:
    feature_BF = drawn(4)
    loss = batch_hard_triplet(feature_BF, torch.tensor([7, 7, 7, 7]), margin)
    loss.backward()
    assert loss.item() == 0
    assert feature_BF.grad is not None
    assert (feature_BF.grad == 0).all()


def test_identities_farther_apart_than_the_margin_cost_nothing() -> None:
    feature_BF = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1]])
    assert batch_hard_triplet(feature_BF, torch.tensor([0, 0, 1, 1]), 8.9).item() == 0
    assert batch_hard_triplet(feature_BF, torch.tensor([0, 0, 1, 1]), 9.25).item() == pytest.approx(0.25)
