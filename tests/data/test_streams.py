"""Streams: evaluation over ranks, and what is wrong with a picture or a shard, told in one line from any process."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pool import Pool
from small_set import CAMERAS, Encoded, name_of, pixel_checksums, write_small_set

from vmreid.data.identity_batches import IdentityBatches
from vmreid.data.manifest import Manifest, read_index
from vmreid.data.pictures import decode
from vmreid.data.ranges import ShardRanges
from vmreid.data.streams import Batch, TrainStream, evaluation_batches
from vmreid.data.transforms import TrainTransform, resize
from vmreid.distributed import concatenate_over_ranks, rank, world_size
from vmreid.errors import UserError
from vmreid.recipes.schema import Augment

SIZE = (16, 8)
GALLERY = {7: 5, 3: 4, 21: 1, 4: 6, 11: 2}  # 18 pictures; the query split has 2 shards, for 3 ranks
QUERY = {7: 1, 3: 1}
Small = tuple[Path, Manifest, Encoded]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("sets") / "small"
    return folder, *write_small_set(folder, train=dict.fromkeys(range(6), 3), query=QUERY, gallery=GALLERY)


@pytest.fixture
def folder(written: Small, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(written[0], tmp_path / "set"))


def train(folder: Path, manifest: Manifest, workers: int, skip: bool = False, pictures: int = 3, end: int = 2) -> Iterator[Batch]:
    split = manifest.splits["train"]
    index = read_index(folder, split)
    transform = TrainTransform(SIZE, Augment(crop_scale=(0.8, 1.0), flip=0.5, colour_jitter=0.1))
    batches, ranges = IdentityBatches(index, 3, pictures, 0), ShardRanges(folder, split, index)
    stream = TrainStream(batches, ranges, transform, rank=0, world=1, accumulation=1, begin=0, end=end, skip=skip)
    return stream.loader(workers)


def evaluate(folder: Path, manifest: Manifest, split: str, workers: int = 0) -> Iterator[Batch]:
    return evaluation_batches(folder, manifest.splits[split], SIZE, 4, rank=rank(), world=world_size(), workers=workers)


def complaint(batches: Iterator[Batch]) -> str:
    with pytest.raises(UserError) as caught:
        list(batches)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def evaluate_everywhere(folder: Path, manifest: Manifest, split: str) -> tuple[int, list[list[int]]]:
    """All ranks: pictures of this rank, and (row, pid, camid, checksum) of all."""
    batches = list(evaluate(folder, manifest, split))
    own = [torch.stack([b.rows_B, b.ids_B, b.camids_B, pixel_checksums(b)], 1) for b in batches]
    table = torch.cat(own) if own else torch.empty(0, 4, dtype=torch.int64)
    return len(table), concatenate_over_ranks(table).tolist()


def expected(counts: dict[int, int], encoded: Encoded) -> list[list[int]]:
    rows = [(pid, number) for pid in sorted(counts) for number in range(counts[pid])]
    pictures = [resize(decode(encoded[name_of(*row)], "x"), SIZE) for row in rows]
    checksums = [zlib.crc32(picture.numpy().tobytes()) for picture in pictures]
    return [[row, pid, number % CAMERAS, checksums[row]] for row, (pid, number) in enumerate(rows)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_picture_once(written: Small, ranks: Pool, world: int) -> None:
    folder, manifest, encoded = written
    results = ranks.run(world, evaluate_everywhere, folder, manifest, "gallery")
    for _, table in results:
        assert sorted(table) == expected(GALLERY, encoded)
    assert all(own > 0 for own, _ in results)


def test_a_rank_without_a_shard_gives_nothing(written: Small, ranks: Pool) -> None:
    folder, manifest, encoded = written
    results = ranks.run(3, evaluate_everywhere, folder, manifest, "query")
    assert [own for own, _ in results] == [1, 1, 0]
    assert sorted(results[2][1]) == expected(QUERY, encoded)


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_with_workers(written: Small, workers: int) -> None:
    folder, manifest, _ = written
    batches = list(evaluate(folder, manifest, "gallery", workers))
    rows = sorted(row for batch in batches for row in batch.rows_B.tolist())
    assert rows == list(range(18))
    assert all(batch.images_BCHW.shape[1:] == (3, *SIZE) for batch in batches)
    assert all(len(batch.rows_B) <= 4 for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_does_not_decode(tmp_path: Path, workers: int) -> None:
    manifest, _ = write_small_set(tmp_path / "set", train=dict.fromkeys(range(6), 3), gallery={1: 1}, broken=name_of(4, 1))
    text = complaint(train(tmp_path / "set", manifest, workers))
    assert text.startswith("train-000004.tar picture 00000013: does not decode")
    assert "shards.verify" in text
    broken, _ = write_small_set(tmp_path / "other", gallery=GALLERY, broken=name_of(21, 0))
    text = complaint(evaluate(tmp_path / "other", broken, "gallery", workers))
    assert "picture 00000017: does not decode" in text


@pytest.mark.parametrize("workers", [0, 2])
def test_training_shard_truncated_while_in_use(written: Small, folder: Path, workers: int) -> None:
    manifest = written[1]
    batches = train(folder, manifest, workers)
    name = manifest.splits["train"].shards[2].name
    os.truncate(folder / name, 700)
    text = complaint(batches)
    assert text.startswith(f"{folder / name}: ")
    assert "truncated while in use" in text


def change_a_picture(folder: Path, manifest: Manifest, row: int) -> str:
    """Other bytes for a training picture, which decode as well and to other pixels; returns its name in messages."""
    split = manifest.splits["train"]
    entry = read_index(folder, split)[row]
    path, begin, length = folder / split.shards[entry["shard"]].name, int(entry["offset"]), int(entry["length"])
    data = bytearray(path.read_bytes())
    before = decode(bytes(data[begin : begin + length]), "before")
    data[begin + length - 20] ^= 1  # in its entropy-coded part
    path.write_bytes(data)
    after = decode(bytes(data[begin : begin + length]), "after")
    assert after.tobytes() != before.tobytes()
    return f"{path}: picture {row:08d}"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_changed_picture_that_still_decodes(written: Small, folder: Path, workers: int) -> None:
    manifest = written[1]
    name = change_a_picture(folder, manifest, 13)
    assert complaint(train(folder, manifest, workers)).startswith(f"{name} has other bytes than were written")
    found = [fact for batch in train(folder, manifest, workers, skip=True) for fact in facts(batch)]
    assert 13 not in [row for _, row, _ in found]
    assert [label for label, _, replaced in found if replaced] == [4]  # in its one place of the epoch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("length", [0, 700, 1024 + 512])
def test_evaluation_shard_truncated_while_in_use(written: Small, folder: Path, workers: int, length: int) -> None:
    manifest = written[1]
    os.truncate(folder / manifest.splits["gallery"].shards[1].name, length)
    text = complaint(evaluate(folder, manifest, "gallery", workers))
    assert str(folder) in text
    assert "shards.write" in text


def test_evaluation_shard_cut_between_two_pictures(written: Small, folder: Path) -> None:
    manifest = written[1]
    index = read_index(folder, manifest.splits["gallery"])
    second = int(index["offset"][index["shard"] == 0][1])
    os.truncate(folder / manifest.splits["gallery"].shards[0].name, second - 512)  # where its header begins
    assert "gallery-000000.tar: bytes differ from the manifest's digest" in complaint(evaluate(folder, manifest, "gallery"))


@pytest.mark.parametrize("workers", [0, 2])
def test_shard_gone_while_in_use(written: Small, folder: Path, workers: int) -> None:
    manifest = written[1]
    for split in ("train", "gallery"):
        (folder / manifest.splits[split].shards[1].name).unlink()
    assert "train-000001.tar" in complaint(train(folder, manifest, workers))
    assert "gallery-000001.tar" in complaint(evaluate(folder, manifest, "gallery", workers))


def facts(batch: Batch) -> list[tuple[int, int, int]]:
    """Label, row and whether it stands in for another, of each picture."""
    return list(zip(batch.ids_B.tolist(), batch.rows_B.tolist(), batch.replaced_B.tolist(), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_pictures_are_replaced_and_counted(tmp_path: Path, workers: int) -> None:
    """A picture by another of its identity, an identity by the one at the same place of the next step."""
    counts, broken = dict.fromkeys(range(6), 3), name_of(4, 1)
    manifest, _ = write_small_set(tmp_path / "set", train=counts, broken=broken)
    lost = tmp_path / "set" / manifest.splits["train"].shards[2].name  # a shard an identity
    lost.unlink()
    whole, _ = write_small_set(tmp_path / "whole", train=counts)
    expected = [facts(batch) for batch in train(tmp_path / "whole", whole, 0, pictures=2, end=12)]
    found = [facts(batch) for batch in train(tmp_path / "set", manifest, workers, skip=True, pictures=2, end=12)]
    pictures = 0
    for step, (batch, wanted) in enumerate(zip(found, expected, strict=True)):
        for place in range(3):
            got, want = batch[2 * place : 2 * place + 2], wanted[2 * place : 2 * place + 2]
            if want[0][0] == 2:
                other = expected[step ^ 1][2 * place : 2 * place + 2]
                assert [label for label, _, _ in got] == [label for label, _, _ in other]
                assert [replaced for _, _, replaced in got] == [1, 1]
            else:
                assert [label for label, _, _ in got] == [label for label, _, _ in want]
                assert all(row // 3 == label for label, row, _ in got)
                moved = [row != old for (_, row, _), (_, old, _) in zip(got, want, strict=True)]
                assert [replaced for _, _, replaced in got] == moved
                pictures += sum(moved)
    assert pictures > 0
    rows = [row for batch in found for _, row, _ in batch]
    assert 13 not in rows
    assert not {6, 7, 8} & set(rows)


def test_nothing_to_put_in_its_place(tmp_path: Path) -> None:
    manifest, _ = write_small_set(tmp_path / "set", train=dict.fromkeys(range(6), 3))
    for path in (tmp_path / "set").glob("*.tar"):
        path.unlink()
    assert "identities in a row cannot be read" in complaint(train(tmp_path / "set", manifest, 0, skip=True))
