from __future__ import annotations

import pytest
import torch

from vmreid.kernels.cross_scan import cross_merge, cross_scan, cross_scan_own


def test_order_of_the_four_directions() -> None:
    x_BHWD = torch.tensor([[0, 1, 2], [3, 4, 5]]).view(1, 2, 3, 1)
    wanted_KL = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]])
    assert torch.equal(cross_scan(x_BHWD)[0, :, 0], wanted_KL)


def test_each_direction_reads_a_map_of_its_own() -> None:
    x_BHWKC = torch.arange(2 * 2 * 3 * 4 * 5).view(2, 2, 3, 4, 5)
    wanted_BKCL = torch.stack([cross_scan(x_BHWKC[..., k, :])[:, k] for k in range(4)], dim=1)
    assert torch.equal(cross_scan_own(x_BHWKC), wanted_BKCL)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 4), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_undoes_scan_exactly(height: int, width: int, dtype: torch.dtype) -> None:
    x_BHWD = torch.randn(2, height, width, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    x_BKDL = cross_scan(x_BHWD)
    assert x_BKDL.shape == (2, 4, 3, height * width)
    assert torch.equal(cross_merge(x_BKDL, height, width), x_BHWD)


def test_merge_averages_what_the_four_directions_say_of_a_token() -> None:
    x_BHWD = torch.arange(6.0).view(1, 2, 3, 1)
    y_BKDL = cross_scan(x_BHWD) * torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 4, 1, 1)
    assert torch.equal(cross_merge(y_BKDL, 2, 3), x_BHWD * 1111 / 4)


def test_gradients() -> None:
    x_BHWD = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    y_BKDL = torch.randn(2, 4, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cross_scan, (x_BHWD,))
    assert torch.autograd.gradcheck(lambda y: cross_merge(y, 2, 3), (y_BKDL,))
