"""Several sets in one batch, and the cameras of an identity's pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from small_set import index_of

from vmreid.data.identity_batches import IdentityBatches
from vmreid.data.manifest import INDEX_DTYPE
from vmreid.errors import UserError

SIZES = (60, 25, 15)  # identities; 100 in all


def mixed(weights: tuple[float, ...], identities: int = 10, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> IdentityBatches:
    indexes = [index_of({pid: 3 + pid % 2 for pid in range(size)}) for size in sizes]  # the same pids in each
    return IdentityBatches(indexes, identities, 2, seed, weights)


def sets_of(batches: IdentityBatches, sizes: tuple[int, ...] = SIZES, epochs: int = 1) -> np.ndarray:
    """How many identities each step takes of each set, [epochs x steps, sets]."""
    borders = np.cumsum(sizes)
    steps = [(epoch, step) for epoch in range(epochs) for step in range(batches.steps_per_epoch)]
    return np.array(
        [np.bincount(np.searchsorted(borders, batches.identities_at(*at), "right"), minlength=len(sizes)) for at in steps]
    )


@pytest.mark.parametrize("weights", [(0.6, 0.25, 0.15), (1, 1, 1), (5, 2, 3), (1, 0.01, 0.01)])
def test_each_batch_holds_each_sets_share(weights: tuple[float, ...]) -> None:
    batches = mixed(weights)
    assert batches.steps_per_epoch == 10  # as many places as identities
    found, share = sets_of(batches, epochs=30), 10 * np.array(weights) / sum(weights)
    assert (found.sum(axis=1) == 10).all()
    assert (found >= np.floor(share)).all()
    assert (found <= np.ceil(share)).all()
    assert found.mean(axis=0) == pytest.approx(share, abs=0.11)  # 300 draws of a fraction: four standard deviations


def test_no_identity_twice_in_a_batch_and_none_left_out() -> None:
    batches = mixed((1, 1, 8))  # the smallest set goes round five times an epoch
    seen: Counter[int] = Counter()
    for epoch in range(8):
        for step in range(10):
            chosen = batches.identities_at(epoch, step).tolist()
            assert len(set(chosen)) == 10
            seen.update(chosen)
    counts = [seen[identity] for identity in range(100)]
    assert min(counts[85:]) > 30
    assert len([count for count in counts[:85] if count]) > 60


def test_labels_and_rows_of_sets_are_apart() -> None:
    batches = mixed((1, 1, 1))
    assert batches.classes == 100
    lengths = [sum(3 + pid % 2 for pid in range(size)) for size in SIZES]
    row_border, label_border = np.cumsum(lengths), np.cumsum(SIZES)
    pids = [pid for size in SIZES for pid in range(size) for _ in range(3 + pid % 2)]
    for step in range(10):
        for draw in batches.batch(0, step):
            part = np.searchsorted(row_border, draw.row, "right")
            assert part == np.searchsorted(label_border, draw.label, "right")
            assert pids[draw.row] == draw.label - (label_border[part] - SIZES[part])


def test_sets_are_mixed_within_a_batch() -> None:
    """Accumulation cuts a batch into parts, so they must not be one set each."""
    batches = mixed((1, 1, 0.001), seed=3)
    halves = [batches.identities_at(0, step)[:5] < 60 for step in range(10)]
    assert sum(0 < int(half.sum()) < 5 for half in halves) > 5


def test_pure_function() -> None:
    one, other = mixed((1, 2, 1)), mixed((1, 2, 1))
    forwards = [one.batch(epoch, step) for epoch in range(2) for step in range(10)]
    backwards = [other.batch(epoch, step) for epoch in (1, 0) for step in reversed(range(10))]
    assert backwards[::-1] == forwards
    assert mixed((1, 2, 1), seed=1).batch(0, 0) != forwards[0]
    assert mixed((2, 1, 1)).batch(0, 0) != forwards[0]


def test_a_set_too_small_for_its_weight() -> None:
    with pytest.raises(UserError, match=r"a set with 15 identities must give up to 16 of a batch's P = 20"):
        mixed((1, 1, 8), identities=20)
    mixed((1, 1, 8), identities=18)


def cameras_index(cameras: list[int]) -> np.ndarray:
    return np.array([(0, camera, 0, 0, 0, 0) for camera in cameras] + [(1, 0, 0, 0, 0, 0)] * 4, dtype=INDEX_DTYPE)


@pytest.mark.parametrize(
    ("cameras", "wanted"),
    [
        ([0] * 20 + [1, 2], [1, 1, 2]),  # the rare cameras take part
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4], [1, 1, 1, 1]),  # as many cameras as pictures
        ([7] * 9, [4]),  # one camera: its pictures alone
        ([3, 5], [2, 2]),  # fewer than K: all, then again in the same order
    ],
)
def test_k_pictures_come_from_as_many_cameras_as_can_be(cameras: list[int], wanted: list[int]) -> None:
    batches = IdentityBatches(cameras_index(cameras), 2, 4, 0)
    firsts = set()
    for epoch in range(40):
        draws = [draw for draw in batches.batch(epoch, 0) if draw.label == 0]
        assert [draw.camid for draw in draws] == [cameras[draw.row] for draw in draws]
        assert sorted(Counter(draw.camid for draw in draws).values()) == wanted
        firsts.add(draws[0].camid)
    assert firsts == set(cameras)  # in a drawn order


def test_all_pictures_have_their_turn() -> None:
    batches = IdentityBatches(cameras_index([0] * 6 + [1] * 3), 2, 4, 0)
    rows = {draw.row for epoch in range(40) for draw in batches.batch(epoch, 0) if draw.label == 0}
    assert rows == set(range(9))


def test_an_identity_in_two_places() -> None:
    index = index_of({4: 2, 5: 2, 6: 2})
    index["pid"][4:] = 4
    with pytest.raises(UserError, match="1 identities in more than one place"):
        IdentityBatches(index, 2, 2, 0)
