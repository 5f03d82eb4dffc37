from __future__ import annotations

import colorsys
import itertools
import math

import pytest
import torch

from vmreid.evaluation.baselines import HUE, SATURATION, STRIPES, VALUE, chance, colour_histogram, rgb_histogram

SIZE = HUE * SATURATION * VALUE


def average_precision(order: tuple[bool, ...]) -> float:
    hits, total = 0, 0.0
    for rank, positive in enumerate(order, 1):
        hits += positive
        total += positive * hits / rank
    return total / hits


def expected(positives: int, candidates: int) -> tuple[float, float]:
    """AP and Rank-1 averaged over all orders."""
    orders = [[k in chosen for k in range(candidates)] for chosen in itertools.combinations(range(candidates), positives)]
    precisions = [average_precision(tuple(order)) for order in orders]
    return math.fsum(precisions) / len(orders), sum(order[0] for order in orders) / len(orders)


@pytest.mark.parametrize(("positives", "candidates"), [(m, n) for n in range(1, 8) for m in range(1, n + 1)])
def test_chance_equals_the_mean_over_all_orders(positives: int, candidates: int) -> None:
    scores = chance(torch.tensor([positives]), torch.tensor([candidates]))
    assert (scores["mAP"], scores["rank1"]) == pytest.approx(expected(positives, candidates), rel=1e-10)


@pytest.mark.parametrize(("positives", "candidates"), [(1, 1), (1, 6), (3, 7), (7, 7)])
def test_chances_cmc_equals_the_mean_over_all_orders(positives: int, candidates: int) -> None:
    firsts = [min(chosen) + 1 for chosen in itertools.combinations(range(candidates), positives)]
    wanted = [sum(first <= k for first in firsts) / len(firsts) for k in range(1, 51)]
    scores = chance(torch.tensor([positives, 0]), torch.tensor([candidates, 3]))
    assert scores["cmc"] == pytest.approx(wanted, rel=1e-10)


def test_chance_averages_over_valid_queries_alone() -> None:
    scores = chance(torch.tensor([2, 0, 1]), torch.tensor([5, 9, 4]))
    wanted = [(a + b) / 2 for a, b in zip(expected(2, 5), expected(1, 4), strict=True)]
    assert (scores["mAP"], scores["rank1"]) == pytest.approx(wanted, rel=1e-10)


def test_chance_in_a_gallery_of_usual_size_equals_a_drawn_one() -> None:
    draws, positives, candidates = 4000, 6, 300
    rank_DP = torch.rand(draws, candidates, generator=torch.Generator().manual_seed(0)).argsort(dim=1)[:, :positives] + 1
    rank_DP = rank_DP.sort(dim=1).values
    ap_D = (torch.arange(1, positives + 1) / rank_DP).mean(dim=1, dtype=torch.float64)
    scores = chance(torch.full((3,), positives), torch.full((3,), candidates))
    error = float(ap_D.std()) / math.sqrt(draws)
    assert scores["mAP"] == pytest.approx(float(ap_D.mean()), abs=4 * error)
    assert scores["mAP"] > 1.5 * scores["rank1"]  # so a formula that says m / n would not pass
    assert scores["rank1"] == pytest.approx(positives / candidates)


def off_the_bins_edges(pixel: list[int]) -> bool:
    """Whether float32 must find the same bins as colorsys."""
    values = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
    scaled = [value * count for value, count in zip(values, (HUE, SATURATION, VALUE), strict=True)]
    return all(abs(value - round(value)) > 1e-3 for value in scaled)


def by_loop(pixels_HWC: list[list[list[int]]]) -> torch.Tensor:
    counts = torch.zeros(STRIPES, HUE, SATURATION, VALUE)
    for row, line in enumerate(pixels_HWC):
        for pixel in line:
            values = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
            bins = (min(int(v * count), count - 1) for v, count in zip(values, (HUE, SATURATION, VALUE), strict=True))
            counts[(row * STRIPES // len(pixels_HWC), *bins)] += 1
    return counts.flatten()


@pytest.mark.parametrize("height", [12, 19])
def test_histogram_equals_colorsys_pixel_by_pixel(height: int) -> None:
    drawn = torch.randint(0, 256, (2000, 3), generator=torch.Generator().manual_seed(0)).tolist()
    fit = [pixel for pixel in drawn if off_the_bins_edges(pixel)][: 2 * height * 9]
    image_BHWC = torch.tensor(fit, dtype=torch.uint8).view(2, height, 9, 3)
    feature_BF = colour_histogram(image_BHWC.permute(0, 3, 1, 2))
    assert feature_BF.shape == (2, STRIPES * SIZE)
    assert feature_BF.dtype == torch.float32
    for feature_F, image_HWC in zip(feature_BF, image_BHWC, strict=True):
        torch.testing.assert_close(feature_F.square(), by_loop(image_HWC.tolist()))


@pytest.mark.parametrize(
    "pixel", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (255, 255, 0), (0, 0, 255), (255, 0, 10)]
)
def test_pure_colours_greys_and_the_end_of_the_hue_circle(pixel: tuple[int, int, int]) -> None:
    image_BCHW = torch.tensor(pixel, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 6, 1)
    torch.testing.assert_close(colour_histogram(image_BCHW)[0].square(), by_loop([[list(pixel)]] * 6))


@pytest.mark.parametrize(("height", "rows"), [(12, [2] * 6), (19, [4, 3, 3, 3, 3, 3])])
def test_each_stripe_counts_its_own_pixels(height: int, rows: list[int]) -> None:
    image_BCHW = torch.randint(0, 256, (3, 3, height, 10), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    counts_BS = colour_histogram(image_BCHW).square().unflatten(1, (STRIPES, SIZE)).sum(dim=2)
    torch.testing.assert_close(counts_BS, torch.tensor([[10.0 * count for count in rows]] * 3))


def test_rgb_histogram_counts_pixel_by_pixel() -> None:
    image_BCHW = torch.randint(0, 256, (2, 3, 11, 9), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    feature_BF = rgb_histogram(image_BCHW)
    assert (feature_BF.shape, feature_BF.dtype) == ((2, 512), torch.float32)
    for feature_F, image_CHW in zip(feature_BF, image_BCHW, strict=True):
        counts = torch.zeros(8, 8, 8)
        for red, green, blue in image_CHW.flatten(1).T.tolist():
            counts[red // 32, green // 32, blue // 32] += 1
        torch.testing.assert_close(feature_F.square(), counts.flatten())


def test_a_change_in_one_stripe_changes_no_other() -> None:
    image_BCHW = torch.randint(0, 256, (1, 3, 12, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    changed_BCHW = image_BCHW.clone()
    changed_BCHW[:, :, 6:8] = 255 - changed_BCHW[:, :, 6:8]
    before_S, after_S = (colour_histogram(each).unflatten(1, (STRIPES, SIZE))[0] for each in (image_BCHW, changed_BCHW))
    assert [bool((a == b).all()) for a, b in zip(before_S, after_S, strict=True)] == [True] * 3 + [False] + [True] * 2
