"""Shards by URL: the same bytes as from disk, whatever the server does, or one line that says what is wrong."""

from __future__ import annotations

import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from small_set import write_small_set
from web import served

from vmreid.data import remote
from vmreid.data.folder import LocalFolder, RemoteFolder, ShardFolder, weighted_folders
from vmreid.data.identity_batches import IdentityBatches
from vmreid.data.manifest import read_index, read_manifest
from vmreid.data.ranges import ShardRanges
from vmreid.data.streams import TrainStream, evaluation_batches
from vmreid.data.transforms import TrainTransform
from vmreid.errors import UserError
from vmreid.recipes import load_recipe
from vmreid.recipes.schema import Augment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "small"
    write_small_set(out, train={9: 4, 2: 1, 40: 3, 5: 6}, query={7: 2, 8: 3}, gallery={7: 3, 8: 2, 6: 1})
    return out


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("READ_SECONDS", 0.4), ("CONNECT_SECONDS", 0.4), ("FIRST_WAIT", 0.002)):
        monkeypatch.setattr(remote, name, value)


def opened(url: str, cache: Path, gib: float = 1) -> ShardFolder:
    settings = [f"data.shards={url}", f"data.cache_dir={cache}", f"data.cache_gib={gib}"]
    ((place, weight),) = weighted_folders(load_recipe("demo", {}, settings).data)
    assert weight == 1
    return place


def all_of(place: ShardFolder | Path) -> dict[str, Any]:
    """Everything that can be read of a set."""
    manifest = read_manifest(place)
    found: dict[str, Any] = {"manifest": manifest}
    for name, split in manifest.splits.items():
        index = read_index(place, split)
        ranges = ShardRanges(place, split, index)
        batches = list(evaluation_batches(place, split, (16, 8), 4, rank=0, world=1, workers=0))
        found |= {
            name: index.tolist(),
            f"{name} pictures": [ranges.picture(row)[0] for row in range(len(index))],
            f"{name} whole": [[each.tolist() for each in (batch.ids_B, batch.rows_B, batch.images_BCHW)] for batch in batches],
        }
    return found


def complaint(*words: Any) -> str:
    with pytest.raises(UserError) as caught:
        words[0](*words[1:])
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_local_and_remote(folder: Path, tmp_path: Path) -> None:
    assert isinstance(opened(str(folder), tmp_path), LocalFolder)
    with served(folder) as web:
        place = opened(web.url + "/", tmp_path / "cache")
        assert isinstance(place, RemoteFolder)
        assert all_of(place) == all_of(folder)
        assert all(wanted for name, wanted in web.asked("train") if name.endswith(".tar")) is False  # evaluation reads whole
        again = pickle.loads(pickle.dumps(place))  # as ranks and workers get it
        web.requests.clear()
        assert all_of(again) == all_of(folder)
        assert all(wanted for name, wanted in web.requests if name != "manifest.json")  # what was whole is in the cache


@pytest.mark.parametrize("fault", ["drop", "truncate", "short", "stall", "drip", "503", "429"])
def test_a_server_that_fails_and_recovers(folder: Path, tmp_path: Path, fault: str) -> None:
    def fails(name: str) -> bool:
        if fault in ("stall", "drip"):  # these cost their time, so fewer
            return name in ("manifest.json", "train.index.npy", "train-000001.tar")
        return fault != "short" or name.endswith(".tar")  # nothing but JSON says how long a manifest is

    with served(folder, fault=lambda name, times: fault if times <= 2 and fails(name) else None) as web:
        assert all_of(opened(web.url, tmp_path)) == all_of(folder)
        failed = [request for request in web.requests if fails(request[0])]
        assert len(failed) >= 3 * len(set(failed)) > 0


def test_a_server_that_sends_elsewhere(folder: Path, tmp_path: Path) -> None:
    with served(folder, fault=lambda name, times: "302") as web:
        assert all_of(opened(web.url, tmp_path)) == all_of(folder)


def test_a_server_without_ranges(folder: Path, tmp_path: Path) -> None:
    with served(folder, ranges=False) as web:
        assert all_of(opened(web.url, tmp_path)) == all_of(folder)
        shards = sum(len(split.shards) for split in read_manifest(folder).splits.values())
        whole = [name for name, wanted in web.requests if not wanted and name.endswith(".tar")]
        assert len(whole) == len(set(whole)) == shards  # each once, then from the cache


@pytest.mark.parametrize(("status", "requests"), [("404", 1), ("403", 1), ("500", remote.ATTEMPTS)])
def test_what_stays_unreadable(folder: Path, tmp_path: Path, status: str, requests: int) -> None:
    with served(folder, fault=lambda name, times: status if name == "train-000002.tar" else None) as web:
        place = opened(web.url, tmp_path)
        split = read_manifest(place).splits["train"]
        ranges = ShardRanges(place, split, read_index(place, split))
        row = next(row for row, entry in enumerate(read_index(place, split)) if entry["shard"] == 2)
        text = complaint(ranges.picture, row)
        assert text.startswith(f"{web.url}/train-000002.tar: status {status}")
        assert "data.skip_unreadable=true" in text
        assert len(web.asked("train-000002")) == requests
        complaint(ranges.picture, row)
        assert len(web.asked("train-000002")) == requests  # known by now


def test_a_set_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with served(folder, fault=lambda name, times: "404") as web:
        text = complaint(read_manifest, opened(web.url, tmp_path))
    assert text == f"{web.url}/manifest.json: status 404; see that it is there and can be read"


def test_no_server(tmp_path: Path) -> None:
    text = complaint(read_manifest, opened("http://127.0.0.1:9/set", tmp_path))
    assert text.startswith("http://127.0.0.1:9/set/manifest.json: ")
    assert f"{remote.ATTEMPTS} times" in text


@pytest.mark.parametrize("ranges", [True, False])
def test_a_shard_of_another_size_or_content(folder: Path, tmp_path: Path, ranges: bool) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    manifest = read_manifest(copy)
    split = manifest.splits["train"]
    with served(copy, ranges=ranges) as web:
        place = opened(web.url, tmp_path / "cache")
        pictures = ShardRanges(place, split, read_index(place, split))
        shard = copy / split.shards[0].name
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-512])
        assert f"{web.url}/{shard.name}: " in complaint(pictures.picture, 0)
        shard.write_bytes((copy / split.shards[1].name).read_bytes().ljust(len(whole), b"\0")[: len(whole)])
        text = complaint(ShardRanges(place, split, read_index(place, split)).picture, 0)
        assert text.startswith(f"{web.url}/{shard.name}: {'picture 00000000 is not at' if ranges else ''}")
        assert not list((tmp_path / "cache").glob("*.partial"))


def test_pictures_of_an_identity_take_one_request(folder: Path, tmp_path: Path) -> None:
    with served(folder) as web:
        place = opened(web.url, tmp_path)
        split = read_manifest(place).splits["train"]
        index = read_index(place, split)
        ranges = ShardRanges(place, split, index)
        rows = np.flatnonzero(index["pid"] == 5).tolist()
        web.requests.clear()
        ranges.expect(rows)
        assert [ranges.picture(row) for row in rows] == [ShardRanges(folder, split, index).picture(row) for row in rows]
        assert len(web.requests) == 1


def test_workers_read_ahead(folder: Path, tmp_path: Path) -> None:
    """Several requests at once, each as without workers, none twice and none beyond the end."""
    with served(folder, seconds=0.05) as web:
        place = opened(web.url, tmp_path)
        split = read_manifest(place).splits["train"]
        index = read_index(place, split)
        found = {}
        for workers in (0, 1):
            batches = IdentityBatches(index, 2, 1, 5)
            transform = TrainTransform((16, 8), Augment(crop_scale=(1, 1), flip=0, colour_jitter=0))
            stream = TrainStream(
                batches, ShardRanges(place, split, index), transform, rank=0, world=1, accumulation=1, begin=3, end=9
            )
            web.requests.clear()
            web.most_under_way = 0
            rows = [batch.rows_B.tolist() for batch in stream.loader(workers)]
            found[workers] = rows, sorted(web.requests), web.most_under_way
    assert found[0][:2] == found[1][:2]
    assert len(found[0][1]) == 12
    assert found[0][2] == 1
    assert 1 < found[1][2] <= remote.AT_ONCE


def test_no_endless_answer(folder: Path, tmp_path: Path) -> None:
    """A server that never comes to an end is slow at last."""
    with served(folder, fault=lambda name, times: "drip" if name == "manifest.json" else None) as web:
        begin = time.monotonic()
        assert "times; see" in complaint(read_manifest, opened(web.url, tmp_path))
        assert time.monotonic() - begin < 2 * 0.4 * remote.ATTEMPTS + 2


def test_what_fsspec_opens(folder: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/set", recursive=True)
    try:
        place = opened("memory://bucket/set", tmp_path)
        assert all_of(place) == all_of(folder)
        split = read_manifest(place).splits["train"]
        memory.pipe("/bucket/set/train-000000.tar", b"short")
        pictures = ShardRanges(place, split, read_index(place, split))
        assert "5 bytes, truncated or changed" in complaint(pictures.picture, 0)
        memory.rm("/bucket/set/train-000001.tar")
        assert "train-000001.tar: FileNotFoundError" in complaint(pictures.picture, 1)
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nothing://bucket/set", "nothing://bucket/set: "),
        ("https://me:secret@host/set", "https://host/set: a URL of shards takes no password"),
        ("https://host/set?key=secret", "https://host/set: a URL of shards takes no password"),
    ],
)
def test_urls_that_cannot_be(url: str, told: str, tmp_path: Path) -> None:
    text = complaint(opened, url, tmp_path)
    assert told in text
    assert "secret" not in text


def test_too_small_a_cache(folder: Path, tmp_path: Path) -> None:
    with served(folder, ranges=False) as web:
        place = opened(web.url, tmp_path, gib=1e-6)
        text = complaint(read_index, place, read_manifest(place).splits["train"])
        assert text.startswith("data.cache_gib 9.99e-07: ")
