"""The manifest and its index: byte ranges that hold what they say, and one line for each thing that is not whole."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_set import CAMERAS, Encoded, name_of, write_small_set

from vmreid.data.manifest import SPLITS, Manifest, digest_of, read_index, read_manifest, require_splits, sha256_of
from vmreid.data.ranges import ShardRanges
from vmreid.errors import UserError

Small = tuple[Path, Manifest, Encoded]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("sets") / "small"
    test = dict.fromkeys(range(50, 55), 3)
    return folder, *write_small_set(folder, train={9: 4, 2: 1, 40: 3, 5: 6}, query=test, gallery=test)


@pytest.fixture
def folder(written: Small, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(written[0], tmp_path / "set"))


def complaint(function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    assert "shards.write" in text  # the way out
    return text


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_read_back_equal(written: Small) -> None:
    folder, manifest, _ = written
    assert read_manifest(folder) == manifest
    train = manifest.splits["train"]
    assert (train.pictures, train.identities, train.cameras) == (14, 4, list(range(CAMERAS)))
    assert sha256_of(folder / train.index) == train.index_sha256
    require_splits(manifest, folder, SPLITS)


@pytest.mark.parametrize("split", SPLITS)
def test_byte_ranges_hold_the_pictures(written: Small, split: str) -> None:
    folder, manifest, encoded = written
    index = read_index(folder, manifest.splits[split])
    ranges = ShardRanges(folder, manifest.splits[split], index)
    number_of: dict[int, int] = {}
    for row, (pid, camid) in enumerate(zip(index["pid"].tolist(), index["camid"].tolist(), strict=True)):
        number = number_of[pid] = number_of.get(pid, -1) + 1
        data, name = ranges.picture(row)
        assert data == encoded[name_of(pid, number)]
        assert camid == number % CAMERAS
        assert name == f"{split}-{index['shard'][row]:06d}.tar picture {row:08d}"
        Image.open(io.BytesIO(data)).load()
    assert index["pid"].tolist() == sorted(index["pid"].tolist())


def test_digest_covers_shards_and_indexes(written: Small) -> None:
    _, manifest, _ = written
    split = manifest.splits["train"]
    shard = split.shards[0].model_copy(update={"sha256": "0" * 64})
    for changed in (
        split.model_copy(update={"shards": [shard, *split.shards[1:]]}),
        split.model_copy(update={"index_sha256": "0" * 64}),
    ):
        assert digest_of(manifest.splits | {"train": changed}) != manifest.digest


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda fields: fields.update(format_version=1), "format_version 1, this vmreid reads 2; write the set again"),
        (lambda fields: fields.pop("format_version"), "format_version None"),
        (lambda fields: fields["splits"]["train"].update(pictures=13), "edited"),
        (lambda fields: fields["splits"].pop("query"), "edited"),
        (lambda fields: fields["splits"]["train"]["shards"][0].update(size="large"), "splits.train.shards.0.size"),
        (lambda fields: fields.pop("digest"), "digest: Field required"),
    ],
)
def test_another_or_edited_manifest(folder: Path, change: Callable[[dict[str, Any]], Any], told: str) -> None:
    edit(folder, change)
    text = complaint(read_manifest, folder)
    assert text.startswith(f"{folder / 'manifest.json'}: ")
    assert told in text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert complaint(read_manifest, folder).startswith(f"{folder / 'manifest.json'}: ")


def test_no_folder_no_manifest(tmp_path: Path) -> None:
    assert complaint(read_manifest, tmp_path / "none").startswith(f"{tmp_path / 'none'}: no such folder")
    assert complaint(read_manifest, tmp_path).startswith(f"{tmp_path}: no manifest.json in it (found nothing)")
    (tmp_path / "train").mkdir()
    assert "(found train)" in complaint(read_manifest, tmp_path)


def test_shards_missing_or_truncated(folder: Path) -> None:
    shard = folder / "query-000001.tar"
    size = shard.stat().st_size
    os.truncate(shard, size - 512)
    text = complaint(read_manifest, folder)
    assert f"query-000001.tar: {size - 512} bytes, truncated or changed; the manifest says {size} bytes" in text
    assert str(folder) in text
    shard.unlink()
    assert "query-000001.tar: missing" in complaint(read_manifest, folder)


def test_index_missing_truncated_or_another(folder: Path) -> None:
    split = read_manifest(folder).splits["train"]
    path = folder / split.index
    whole = path.read_bytes()
    contents = [b"", whole[:50], whole[:-8], whole[:70] + b"[" + whole[71:]]
    for content in contents:
        path.write_bytes(content)
        assert complaint(read_index, folder, split).startswith(f"{path}: bytes differ from the manifest's digest")
        named = split.model_copy(update={"index_sha256": sha256_of(path)})
        assert complaint(read_index, folder, named).startswith(f"{path}: not readable as an index")
    for array in (np.zeros(14), np.load(io.BytesIO(whole))[:-1], np.load(io.BytesIO(whole)).reshape(2, 7)):
        np.save(path, array)
        named = split.model_copy(update={"index_sha256": sha256_of(path)})
        assert "the manifest says 14 pictures" in complaint(read_index, folder, named)
    path.unlink()
    assert "train.index.npy: missing" in complaint(read_manifest, folder)


def test_missing_or_empty_splits(tmp_path: Path) -> None:
    manifest, _ = write_small_set(tmp_path / "set", train={0: 2}, query={})
    assert "no pictures in split gallery" in complaint(require_splits, manifest, tmp_path, ("train", "gallery"))
    assert "no pictures in split query" in complaint(require_splits, manifest, tmp_path, ("query",))
    require_splits(manifest, tmp_path, ("train",))


def test_truncated_while_in_use(folder: Path) -> None:
    split = read_manifest(folder).splits["train"]
    index = read_index(folder, split)
    ranges = ShardRanges(folder, split, index)
    last = len(index) - 1
    ranges.picture(last)
    path = folder / split.shards[-1].name
    os.truncate(path, int(index["offset"][last]) + 10)
    assert complaint(ranges.picture, last).startswith(f"{path}: 10 of {index['length'][last]} bytes")
