"""1,000 damaged sets, drawn from seeds: none hangs, gives a wrong label or picture, writes elsewhere, ends without one line."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_set import pixel_checksums, write_small_set
from web import served

from shards import verify
from vmreid.data import remote
from vmreid.data.cache import Cache
from vmreid.data.folder import Place, RemoteFolder
from vmreid.data.identity_batches import IdentityBatches
from vmreid.data.manifest import INDEX_DTYPE, Split, parse_manifest, read_index, require_splits
from vmreid.data.pictures import decode
from vmreid.data.ranges import ShardRanges
from vmreid.data.streams import TrainStream, evaluation_batches
from vmreid.data.transforms import TrainTransform
from vmreid.errors import UserError
from vmreid.recipes.schema import Augment

SEEDS, PARTS, SECONDS = 1000, 10, 20
TRAIN, TEST = {9: 4, 2: 1, 40: 3, 5: 6, 11: 2, 3: 3}, {7: 2, 8: 3, 30: 1}
TRANSFORM = TrainTransform((16, 8), Augment(crop_scale=(0.5, 1.0), flip=0.5, colour_jitter=0.0))
NAMES = (
    "../outside",
    "/tmp/outside",
    "http://127.0.0.1:9/x",
    "a/b.tar",
    "..",
    "",
    ".tar",
    "a\\b",
    "%2e%2e",
    "x?y",
    "x#y",
    "a\nb",
)
Damage = Callable[[Path, random.Random], None]


def some_bytes(path: Path, draw: random.Random) -> None:
    """Some bytes changed, cut off, taken out, put in, zeroed or overwritten."""
    data = bytearray(path.read_bytes())
    at, length, kind = draw.randrange(len(data)), draw.choice([1, 7, 600]), draw.randrange(6)
    if kind == 0:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = draw.randbytes(length)
    else:
        data[at : at + 700] = draw.randbytes(len(data[at : at + 700])) if kind == 4 else bytes(len(data[at : at + 700]))
    path.write_bytes(data)


def files_of(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.tar"), *folder.glob("*.npy")])


def bytes_of_a_file(folder: Path, draw: random.Random) -> None:
    some_bytes(draw.choice(files_of(folder)), draw)


def bytes_of_the_manifest(folder: Path, draw: random.Random) -> None:
    some_bytes(folder / "manifest.json", draw)


def a_whole_file(folder: Path, draw: random.Random) -> None:
    """Gone, empty, another in its place, or a folder."""
    path, other = draw.sample(files_of(folder), 2)
    path.unlink()
    kind = draw.randrange(4)
    if kind == 0:
        path.write_bytes(b"")
    elif kind == 1:
        path.write_bytes(other.read_bytes())
    elif kind == 2:
        path.mkdir()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest's splits and make its digest right again, as one who knows how would do."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields["splits"])
    fields["digest"] = hashlib.sha256(json.dumps(fields["splits"], sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(fields))


def shards_in_each_others_place(folder: Path, draw: random.Random) -> None:
    """Of one length and with sizes that fit, so that nothing but their content tells."""
    one, other = draw.sample(sorted(folder.glob("train-*.tar")), 2)
    length = max(path.stat().st_size for path in (one, other))
    contents = [path.read_bytes().ljust(length, b"\0") for path in (other, one)]
    for path, content in zip((one, other), contents, strict=True):
        path.write_bytes(content)
    rewrite(
        folder, lambda splits: [shard.update(size=(folder / shard["name"]).stat().st_size) for shard in splits["train"]["shards"]]
    )


def a_lying_manifest(folder: Path, draw: random.Random) -> None:
    """Names that lead elsewhere, counts and sizes that are not so; its digest is right."""
    name = draw.choice(["train", "query", "gallery"])
    number = draw.choice([-1, 0, 1, 10**6, 10**18, 2**63, 10**30, 1.5, "1", None, [], True])

    def change(splits: dict[str, Any]) -> None:
        split = splits[name]
        shard = draw.choice(split["shards"])
        kind = draw.randrange(6)
        if kind == 0:
            shard["name"] = draw.choice(NAMES)
        elif kind == 1:
            split["index"] = draw.choice(NAMES)
        elif kind == 2:
            shard[draw.choice(["size", "pictures"])] = number
        elif kind == 3:
            split[draw.choice(["pictures", "shards", "index"])] = number
        elif kind == 4:
            split[draw.choice(["index_sha256"])] = draw.choice(["../../outside", "0" * 64, "", "0" * 63 + "/"])
        else:
            splits.pop(name)

    rewrite(folder, change)


def a_lying_index(folder: Path, draw: random.Random) -> None:
    """Rows that point elsewhere, another kind of array, or objects that act when they are read; its digest is right."""
    path = folder / "train.index.npy"
    index = np.load(path)
    row, kind = draw.randrange(len(index)), draw.randrange(6)
    if kind == 0:
        index["offset"][row] += draw.choice([-512, 1, 512, 10**9, -(10**9), 2**62])
    elif kind == 1:
        index["length"][row] += draw.choice([-1, 1, 10**9, -(10**9), 2**62])
    elif kind == 2:
        index["shard"][row] = draw.choice([-1, 99, 2**31 - 1, (index["shard"][row] + 1) % 6])
    elif kind == 3:
        index = draw.choice([index[:-1], index[::-1], np.zeros(len(index)), index.reshape(1, -1), np.zeros(0, INDEX_DTYPE)])
    elif kind == 4:
        index["crc32"][row] ^= 1 << draw.randrange(32)
    else:
        index = np.array([Acts(str(folder.parent / "outside"))] * len(index), dtype=object)
    np.save(path, index, allow_pickle=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(folder, lambda splits: splits["train"].update(index_sha256=digest))


class Acts:
    """Makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


DAMAGES: tuple[Damage, ...] = (
    bytes_of_a_file, bytes_of_a_file, bytes_of_a_file, bytes_of_the_manifest, a_whole_file, shards_in_each_others_place,
    a_lying_manifest, a_lying_index,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "whole"
    write_small_set(folder, train=TRAIN, query=TEST, gallery={pid: count + 1 for pid, count in TEST.items()})
    return folder


@contextmanager
def time_limit() -> Iterator[None]:
    def hang(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def trained(place: Place, split: Split, skip: bool) -> tuple[list[list[int]], int]:
    """(row, label, camera, checksum) of two epochs' pictures, and how many stood in for others."""
    index = read_index(place, split)
    batches = IdentityBatches(index, 3, 2, 0)
    stream = TrainStream(
        batches, ShardRanges(place, split, index), TRANSFORM, rank=0, world=1, accumulation=1, begin=0, end=4, skip=skip
    )
    found = list(stream.loader(0))
    rows = [[row, *facts] for batch in found for row, *facts in zip(*facts_of(batch), strict=True)]
    return rows, sum(int(batch.replaced_B.sum()) for batch in found)


def right_ones(folder: Path, split: Split) -> list[list[int]]:
    """(row, label, camera, checksum) of all that two epochs may take, each picture once or twice in a batch."""
    index = read_index(folder, split)
    batches, ranges = IdentityBatches(index, 3, 2, 0), ShardRanges(folder, split, index)
    draws = [
        batches.draw(epoch, identity, row, repetition)
        for epoch in range(2)
        for identity in range(batches.classes)
        for row in batches.rows_of(epoch, identity)
        for repetition in range(2)
    ]
    images = [TRANSFORM(decode(*ranges.picture(draw.row), TRANSFORM.least), draw.seed) for draw in draws]
    checksums = [zlib.crc32(image.numpy().tobytes()) for image in images]
    return [[draw.row, draw.label, draw.camid, checksum] for draw, checksum in zip(draws, checksums, strict=True)]


def facts_of(batch: Any) -> list[list[int]]:
    return [tensor.tolist() for tensor in (batch.rows_B, batch.ids_B, batch.camids_B, batch.checksums_B)]


def evaluated(place: Place, split: Split) -> list[list[int]]:
    read_index(place, split)  # as for the sheets that launcher.evaluate draws
    batches = evaluation_batches(place, split, (16, 8), 4, rank=0, world=1, workers=0)
    seen = [replace(batch, checksums_B=pixel_checksums(batch)) for batch in batches]
    return [[row, *facts] for batch in seen for row, *facts in zip(*facts_of(batch), strict=True)]


def told(action: Callable[[], Any]) -> Any:
    """What an action gives, or None where it ends in one line for people."""
    try:
        return action()
    except UserError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1, lines
    return None


@pytest.mark.parametrize("part", [part if part < 3 else pytest.param(part, marks=pytest.mark.slow) for part in range(PARTS)])
def test_a_thousand_damages(whole: Path, tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    whole_manifest = parse_manifest(whole)
    split = whole_manifest.splits["train"]
    known, right = trained(whole, split, False)[0], right_ones(whole, split)
    test = {name: evaluated(whole, whole_manifest.splits[name]) for name in ("query", "gallery")}
    ends: Counter[str] = Counter()
    folder = tmp_path / "set"
    with served(folder) as web:
        for seed in range(part, SEEDS, PARTS):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder)
            draw = random.Random(seed)
            draw.choice(DAMAGES)(folder, draw)
            remotely, skip = draw.random() < 0.2, draw.random() < 0.5
            place: Place = RemoteFolder(web.url, Cache(tmp_path / "cache", 1 << 24)) if remotely else folder
            before = sorted(folder.rglob("*"))
            with time_limit():
                end = outcome(place, skip, known, right, test)
                ends[end] += 1
                if end == "as if whole" and differs(folder, whole):  # such as a byte that nobody reads: verify tells
                    ends["told by verify alone"] += 1
                    assert told(lambda: verify.main([str(folder)])) in (1, None), seed
            assert sorted(folder.rglob("*")) == before
            assert {path.name for path in tmp_path.iterdir()} <= {"set", "cache"}, seed
    assert ends["error"] > SEEDS / PARTS / 2
    assert ends["skipped"] > 0


def differs(folder: Path, whole: Path) -> bool:
    """Whether a damage changed anything but the words on a set's source."""
    if any(path.is_dir() or path.read_bytes() != (whole / path.name).read_bytes() for path in files_of(folder)):
        return True
    return bool(parse_manifest(folder).splits != parse_manifest(whole).splits)


def outcome(place: Place, skip: bool, known: list[list[int]], right: list[list[int]], test: dict[str, list[list[int]]]) -> str:
    """Train and evaluate. All pictures that come through must be ``right``, those that stand in for others as well."""
    manifest = told(lambda: parse_manifest(place))
    if manifest is None or told(lambda: require_splits(manifest, place, ("train", "query", "gallery")) or True) is None:
        return "error"
    results = {name: told(lambda name=name: evaluated(place, manifest.splits[name])) for name in test}
    for name, found in results.items():
        assert found in (None, test[name])
    training = told(lambda: trained(place, manifest.splits["train"], skip))
    if training is not None:
        assert len(training[0]) == len(known)
        assert all(facts in right for facts in training[0])
        assert training[1] or training[0] == known
    if training is None or None in results.values():
        return "error"
    return "skipped" if training[1] else "as if whole"
