"""P x K batches: what one holds, and that neither ranks nor accumulation, workers or a seek change the order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_set import index_of, write_small_set

from vmreid.data import identity_batches
from vmreid.data.identity_batches import Draw, IdentityBatches, check_split_over_ranks
from vmreid.data.manifest import Split, read_index
from vmreid.data.ranges import ShardRanges
from vmreid.data.streams import Batch, TrainStream
from vmreid.data.transforms import TrainTransform
from vmreid.errors import UserError
from vmreid.recipes.schema import Augment

PIDS = [30, 4, 17, 99, 2, 51, 8, 23, 60, 41, 77, 5, 12, 88]  # not in order: labels must be
LENGTHS = {pid: 4 + pid % 5 for pid in PIDS}
TRANSFORM = TrainTransform((16, 8), Augment(crop_scale=(0.5, 1.0), flip=0.5, colour_jitter=0.3))


def batches_of(lengths: dict[int, int] = LENGTHS, identities: int = 3, pictures: int = 4, seed: int = 0) -> IdentityBatches:
    return IdentityBatches(index_of(lengths), identities, pictures, seed)


def epoch_of(batches: IdentityBatches, epoch: int) -> list[list[Draw]]:
    return [batches.batch(epoch, step) for step in range(batches.steps_per_epoch)]


def test_pure_function_of_seed_epoch_and_step() -> None:
    straight = [batch for epoch in range(3) for batch in epoch_of(batches_of(), epoch)]
    other = batches_of()
    backwards = [other.batch(epoch, step) for epoch in (2, 1, 0) for step in reversed(range(other.steps_per_epoch))]
    assert backwards[::-1] == straight


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(batches_of(seed=seed).identities_at(epoch, 0)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    drawn = [epoch_of(batches_of(), epoch) for epoch in range(2)]
    seeds = [{draw.seed for batch in epoch for draw in batch} for epoch in drawn]
    assert not seeds[0] & seeds[1]  # a picture is augmented anew in each epoch


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_each_batch_holds_k_pictures_of_p_identities(epoch: int) -> None:
    batches, pids = batches_of(), index_of(LENGTHS)["pid"]
    assert batches.steps_per_epoch == len(PIDS) // 3
    seen: list[int] = []
    for batch in epoch_of(batches, epoch):
        groups = [batch[start : start + 4] for start in range(0, 12, 4)]
        assert len(batch) == 12
        for group in groups:
            assert len({int(pids[draw.row]) for draw in group}) == 1
            assert len({draw.row for draw in group}) == 4  # there are enough: none twice
            seen.append(int(pids[group[0].row]))
    assert len(set(seen)) == len(seen) == len(PIDS) // 3 * 3  # once an epoch, but for the remainder


def test_every_identity_has_its_turn() -> None:
    batches = batches_of()
    seen = {draw.label for epoch in range(6) for batch in epoch_of(batches, epoch) for draw in batch}
    assert seen == set(range(len(PIDS)))


def test_labels_count_the_sorted_pids() -> None:
    pids = index_of(LENGTHS)["pid"]
    batches = batches_of(identities=14)
    assert batches.classes == 14
    for draw in batches.batch(0, 0):
        assert draw.label == sorted(PIDS).index(pids[draw.row])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_few_pictures_begin_again_when_all_were_given(length: int) -> None:
    draws = batches_of({7: length, 3: 9}, identities=2, pictures=7).batch(0, 0)
    group = [draw for draw in draws if draw.label == 1]
    counts = Counter(draw.row for draw in group[: 7 // length * length])
    assert counts == dict.fromkeys(range(length), 7 // length)
    assert [draw.row for draw in group] == [draw.row for draw in (group[:length] * 7)[:7]]
    assert len({draw.seed for draw in draws}) == 14


def test_identities_of_a_batch_lie_near_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_batches, "WINDOW", 2)
    index = index_of(dict.fromkeys(range(80), 4), identities_per_shard=4)
    batches = IdentityBatches(index, 4, 4, 0)
    first_window = []
    for epoch in range(3):
        shards = [{int(index["shard"][draw.row]) for draw in batch} for batch in epoch_of(batches, epoch)]
        windows = [set().union(*pair) for pair in zip(shards[::2], shards[1::2], strict=True)]
        assert all(len(window) == 2 for window in windows)  # 2 shards x 4 identities = 2 batches of 4
        assert not any(a & b for a, b in pairwise(windows))
        assert any(len(batch) == 2 for batch in shards)  # mixed within the window
        first_window.append(frozenset(windows[0]))
    assert len(set(first_window)) > 1  # other shards come first in another epoch


def test_more_identities_than_there_are() -> None:
    with pytest.raises(UserError, match=r"P = 15 .* has 14; lower --batch_size"):
        batches_of(identities=15)


@pytest.mark.parametrize(
    ("world", "accumulation", "told"),
    [
        (5, 1, "run on 1, 2, 3, 4, 6, 12 ranks"),
        (4, 2, "run on 1, 2, 3, 6 ranks"),
        (24, 1, "run on 1, 2, 3, 4, 6, 12 ranks"),
        (1, 5, "lower gradient_accumulation_steps"),
    ],
)
def test_ranks_that_do_not_divide_p(world: int, accumulation: int, told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_split_over_ranks(12, world, accumulation)
    text = str(caught.value)
    assert "P = 12" in text
    assert f"{world} x {accumulation}" in text
    assert told in text
    assert "\n" not in text


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (12, 1), (3, 4), (2, 3)])
def test_ranks_that_divide_p(world: int, accumulation: int) -> None:
    check_split_over_ranks(12, world, accumulation)


# The stream. P = 12, K = 2; 26 identities, so 2 steps an epoch.


@pytest.fixture(scope="module")
def small_train(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Split]:
    folder = tmp_path_factory.mktemp("sets") / "small"
    manifest, _ = write_small_set(folder, train={pid * 3: 1 + pid % 4 for pid in range(26)})
    return folder, manifest.splits["train"]


def read(
    place: tuple[Path, Split],
    rank: int = 0,
    world: int = 1,
    accumulation: int = 1,
    *,
    begin: int = 0,
    end: int = 5,
    workers: int = 0,
) -> list[Batch]:
    folder, split = place
    index = read_index(folder, split)
    stream = TrainStream(
        IdentityBatches(index, 12, 2, seed=3), ShardRanges(folder, split, index), TRANSFORM,
        rank=rank, world=world, accumulation=accumulation, begin=begin, end=end,
    )  # fmt: skip
    return list(stream.loader(workers))


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in vars(batches[0])}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_stream_follows_the_batches(small_train: tuple[Path, Split]) -> None:
    folder, split = small_train
    index = read_index(folder, split)
    batches = IdentityBatches(index, 12, 2, seed=3)
    for step, batch in enumerate(read(small_train)):
        draws = batches.batch(*divmod(step, 2))
        assert batch.images_BCHW.shape == (24, 3, 16, 8)
        assert batch.images_BCHW.dtype == torch.uint8
        assert batch.rows_B.tolist() == [draw.row for draw in draws]
        assert batch.ids_B.tolist() == [draw.label for draw in draws]
        assert batch.camids_B.tolist() == [int(index["camid"][draw.row]) for draw in draws]
        assert len(batch.checksums_B.unique()) == 24  # also where an identity's one picture comes twice


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_same_batches_on_any_number_of_ranks(small_train: tuple[Path, Split], world: int, accumulation: int) -> None:
    if 12 % (world * accumulation):
        with pytest.raises(UserError):
            check_split_over_ranks(12, world, accumulation)
        return
    parts = [read(small_train, rank, world, accumulation) for rank in range(world)]
    assert {len(part) for part in parts} == {5 * accumulation}
    assert {len(batch.ids_B) for part in parts for batch in part} == {24 // world // accumulation}
    in_order = [parts[rank][micro] for micro in range(5 * accumulation) for rank in range(world)]
    assert same(joined(in_order), joined(read(small_train)))
    for part in parts:  # an identity stays whole
        for batch in part:
            assert set(Counter(batch.ids_B.tolist()).values()) == {2}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_batches_with_workers(small_train: tuple[Path, Split], workers: int) -> None:
    expected = read(small_train, 1, 2, 2)
    found = read(small_train, 1, 2, 2, workers=workers)
    assert [batch.rows_B.tolist() for batch in found] == [batch.rows_B.tolist() for batch in expected]
    assert same(joined(found), joined(expected))


@pytest.mark.parametrize("begin", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_begin_skips_steps(small_train: tuple[Path, Split], begin: int, workers: int) -> None:
    whole = read(small_train, 1, 2, 2)
    assert same(joined(read(small_train, 1, 2, 2, begin=begin, workers=workers)), joined(whole[begin * 2 :]))


def test_nothing_left_to_do(small_train: tuple[Path, Split]) -> None:
    assert read(small_train, begin=5) == []


def test_the_global_random_state_has_no_say(small_train: tuple[Path, Split]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    first = joined(read(small_train))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(joined(read(small_train)), first)
