"""``shards.write`` and ``shards.verify``: the same bytes each time, whole identities, and a line for each fault."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards import verify, write
from vmreid.command import run
from vmreid.data.manifest import SPLITS, read_index, read_manifest
from vmreid.data.streams import ShardRanges
from vmreid.data.transforms import decode

ROOT = Path(__file__).parents[2]
SMALL = ("--identities", "8", "--cameras", "3", "--pictures", "5", "--seed", "3")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``write`` or ``verify`` in this process: status, standard output, last line of standard error."""

    def call_main(main: Callable[[Sequence[str]], int | None], *words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["it", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            run(main)
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, (output.err.splitlines() or [""])[-1]

    return call_main


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic set written by the command line in a process of its own."""
    out = tmp_path_factory.mktemp("sets") / "new" / "set"
    command = [sys.executable, "-m", "shards.write", "synthetic", *SMALL, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(out / "manifest.json")
    return out


@pytest.fixture
def folder(rendered: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    (tmp_path / "set").mkdir()
    for path in rendered.iterdir():
        (tmp_path / "set" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "set"


def jpeg(path: Path, kind: str = "JPEG") -> Path:
    """Write a small picture that depends on its path's last parts."""
    seed = list("/".join(path.parts[-3:]).encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 8, 3), np.uint8)).save(path, kind)
    return path


def pictures_of(folder: Path) -> dict[str, list[tuple[int, int, bytes]]]:
    """By split, (pid, camid, bytes) of each picture as the index says."""
    found = {}
    for name, split in read_manifest(folder).splits.items():
        index = read_index(folder, split)
        ranges = ShardRanges(folder, split, index)
        found[name] = [(int(row["pid"]), int(row["camid"]), ranges.picture(at)[0]) for at, row in enumerate(index)]
    return found


def cameras_of(folder: Path, split: str) -> list[tuple[int, int]]:
    return [(pid, camid) for pid, camid, _ in pictures_of(folder)[split]]


# Synthetic


def test_two_writes_are_the_same_bytes(rendered: Path, tmp_path: Path, call: Call) -> None:
    assert call(write.main, "synthetic", *SMALL, "--out", tmp_path)[0] == 0  # an empty folder will do
    names = sorted(path.name for path in rendered.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (rendered / name).read_bytes(), name
    other = tmp_path / "other seed"
    assert call(write.main, "synthetic", *SMALL[:-1], "4", "--out", other)[0] == 0
    assert read_manifest(other).digest != read_manifest(rendered).digest


def test_synthetic_splits(rendered: Path) -> None:
    pids = {split: {pid for pid, _ in cameras_of(rendered, split)} for split in SPLITS}
    assert pids == {"train": {0, 1, 2, 3}, "query": {4, 5, 6, 7}, "gallery": {4, 5, 6, 7}}
    counts = {name: split.pictures for name, split in read_manifest(rendered).splits.items()}
    assert counts == {"train": 20, "query": 4, "gallery": 16}
    assert all(len({camid for _, camid in cameras_of(rendered, split)}) == 3 for split in SPLITS)
    assert read_manifest(rendered).source == {"name": "synthetic", "identities": 8, "cameras": 3, "pictures": 5, "seed": 3}


@pytest.mark.parametrize(("cameras", "pictures"), [(2, 2), (2, 3), (2, 8), (6, 2), (3, 9)])
def test_each_query_has_a_positive_in_another_camera(cameras: int, pictures: int) -> None:
    splits = write.sources.synthetic(5, cameras, pictures, 0)
    for query in splits["query"]:
        assert any(item.pid == query.pid and item.camid != query.camid for item in splits["gallery"])


@pytest.mark.parametrize("split", SPLITS)
def test_an_identity_is_one_range_of_one_shard(rendered: Path, split: str) -> None:
    index = read_index(rendered, read_manifest(rendered).splits[split])
    ends: dict[int, tuple[int, int]] = {}
    for row in index:
        pid, shard, offset, length = (int(row[name]) for name in ("pid", "shard", "offset", "length"))
        if pid in ends:
            assert ends[pid][0] == shard
            assert 0 < offset - ends[pid][1] < 4096  # its neighbour's padding, facts and header lie between
        ends[pid] = (shard, offset + length)
    pids = index["pid"].tolist()
    assert pids == sorted(pids)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("synthetic", "--identities", "3"), "--identities 3: must be at least 4"),
        (("synthetic", "--cameras", "one"), "'one'"),
        (("synthetic", "--seeed", "1"), "did you mean --seed?"),
        (("market", "--root", "."), "'market'"),
        (("image_folder",), "--root"),
    ],
)
def test_wrong_arguments(tmp_path: Path, call: Call, words: tuple[str, ...], told: str) -> None:
    status, _, line = call(write.main, *words, "--out", tmp_path / "set")
    assert status == 2
    assert told in line
    assert not (tmp_path / "set").exists()


# Verify


def test_a_whole_set(rendered: Path, call: Call) -> None:
    status, out, _ = call(verify.main, rendered)
    assert (status, out) == (0, f"{rendered}: 40 pictures, 0 faults, digest {read_manifest(rendered).digest}\n")


def faults(call: Call, folder: Path) -> list[str]:
    status, out, _ = call(verify.main, folder)
    assert status == 1
    *lines, last = out.splitlines()
    assert f"40 pictures, {len(lines)} faults" in last
    return lines


def test_a_flipped_byte_in_a_picture(folder: Path, call: Call) -> None:
    row = read_index(folder, read_manifest(folder).splits["gallery"])[2]
    path = folder / f"gallery-{row['shard']:06d}.tar"
    data = bytearray(path.read_bytes())
    data[int(row["offset"]) + int(row["length"]) // 2] ^= 1
    path.write_bytes(data)
    assert faults(call, folder)[0] == f"{path.name}: bytes differ from the manifest's digest"
    data[int(row["offset"])] ^= 1  # no JPEG any more
    path.write_bytes(data)
    assert faults(call, folder)[1].startswith(f"{path.name} picture 00000002: does not decode")


def test_a_truncated_shard(folder: Path, call: Call) -> None:
    path = folder / "query-000001.tar"
    size = path.stat().st_size
    os.truncate(path, 900)
    lines = faults(call, folder)
    assert lines[0] == f"query-000001.tar: 900 bytes, truncated or changed; the manifest says {size} bytes"
    assert all(line.startswith("query-000001.tar: ") for line in lines)


def test_missing_files_are_listed_together(folder: Path, call: Call) -> None:
    for name in ("train-000000.tar", "gallery-000002.tar", "query.index.npy"):
        (folder / name).unlink()
    assert faults(call, folder) == ["train-000000.tar: missing", "query.index.npy: missing", "gallery-000002.tar: missing"]


def test_an_edited_index(folder: Path, call: Call) -> None:
    path = folder / "train.index.npy"
    index = np.load(path)
    index["camid"][3] += 1
    np.save(path, index)
    assert faults(call, folder) == ["train.index.npy: bytes differ from the manifest's digest"]


@pytest.mark.parametrize("change", ["folder", "manifest", "version", "edited"])
def test_no_manifest_to_verify_by(folder: Path, call: Call, change: str) -> None:
    path = folder / "manifest.json"
    if change == "manifest":
        path.unlink()
    elif change != "folder":
        fields = json.loads(path.read_text())
        fields |= {"format_version": 99} if change == "version" else {"digest": "0" * 64}
        path.write_text(json.dumps(fields))
    status, out, line = call(verify.main, folder / "none" if change == "folder" else folder)
    assert (status, out) == (2, "")
    assert line.startswith(f"error: {folder}")
    assert "python -m shards.write" in line


# Folders of pictures


def layout(root: Path, *names: str) -> Path:
    for name in names:
        jpeg(root / name, "PNG" if name.endswith("png") else "JPEG")
    return root


def write_folder(call: Call, root: Path, out: Path, source: str = "image_folder") -> Path:
    status, _, line = call(write.main, source, "--root", root, "--out", out)
    assert status == 0, line
    return out


def refusal(call: Call, root: Path, out: Path, source: str = "image_folder") -> str:
    status, _, line = call(write.main, source, "--root", root, "--out", out)
    assert status == 2
    assert line.startswith("error: ")
    assert not out.exists()
    return line


def test_folder_with_splits(tmp_path: Path, call: Call) -> None:
    root = layout(
        tmp_path / "in",
        *("train/b/b_c1_0.jpg", "train/b/b_c2_0.JPG", "train/a/a_c1_0.jpeg", "train/a/a_c1_1.png"),
        *("query/y/y_c3_0.jpg", "gallery/y/y_c2_0.jpg", "gallery/z/z_cam12_0.jpg"),
    )
    (root / "train/a/notes.txt").write_text("no picture")
    jpeg(root / "train/a/._a_c1_0.jpg")
    (root / "train/empty").mkdir()
    out = write_folder(call, root, tmp_path / "out")
    assert cameras_of(out, "train") == [(0, 1), (0, 1), (1, 1), (1, 2)]
    assert cameras_of(out, "query") == [(2, 3)]
    assert cameras_of(out, "gallery") == [(2, 2), (3, 12)]
    png = (root / "train/a/a_c1_1.png").read_bytes()
    assert pictures_of(out)["train"][1][2] == png  # its own bytes, under whatever name
    assert decode(png, "png").size == (8, 12)
    assert call(verify.main, out)[0] == 0


def test_folder_without_splits(tmp_path: Path, call: Call) -> None:
    root = layout(
        tmp_path / "in",
        *("1/1_c1_0.jpg", "2/2_c1_0.jpg", "2/2_c2_0.jpg"),
        *("3/3_c1_0.jpg", "3/3_c1_1.jpg", "3/3_c2_0.jpg", "3/3_c2_1.jpg", "3/3_c2_2.jpg"),
        *("4/4_c1_0.jpg", "4/4_c2_0.jpg", "5/5_c1_0.jpg", "5/5_c2_0.jpg", "5/5_c2_1.jpg"),
    )
    out = write_folder(call, root, tmp_path / "out")
    assert cameras_of(out, "train") == [(0, 1), (1, 1), (1, 2)]
    assert cameras_of(out, "query") == [(2, 1), (2, 2), (3, 1), (4, 2)]
    assert cameras_of(out, "gallery") == [(2, 1), (2, 2), (2, 2), (3, 2), (4, 1), (4, 2)]


@pytest.mark.parametrize("names", [("1/x.jpg", "2/x.jpg", "2/y.jpg", "2/z.jpg"), ("train/1/x.jpg", "query/2/x.jpg", "gallery/2/y.jpg")])
def test_folder_without_cameras(tmp_path: Path, call: Call, names: tuple[str, ...]) -> None:
    out = write_folder(call, layout(tmp_path / "in", *names), tmp_path / "out")
    assert cameras_of(out, "query") == [(1, 0)]
    assert set(cameras_of(out, "gallery")) == {(1, 1)}  # no positive is taken for one of the query's camera


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("1/1_c1.jpg", "2/2_c1.jpg", "2/2.jpg", "2/2_c2.jpg"), "2/2.jpg: no camera in its name"),
        (("train/1/1_c1.jpg", "query/1/1_c2.jpg", "gallery/1/1_c3.jpg"), "1 identities both train and test, such as that of 1/1_c1.jpg"),
        (("train/1/1_c1.jpg", "query/2/2_c2.jpg", "gallery/2/2.gif.txt"), "no pictures for gallery"),
        (("train/1/1_c1.jpg", "query/2/2_c2.jpg"), "gallery: no such folder (beside it: query, train)"),
        (("query/1/1_c1.jpg", "gallery/1/1_c2.jpg"), "train: no such folder (beside it: gallery, query)"),
        (("1.jpg",), "no pictures for train"),
        (("1/1_c1.jpg",), "no pictures for train"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, call: Call, names: tuple[str, ...], told: str) -> None:
    line = refusal(call, layout(tmp_path / "in", *names), tmp_path / "out")
    assert told in line
    assert str(tmp_path / "in") in line


@pytest.mark.parametrize("source", ["image_folder", "vehicle_khoa"])
def test_missing_root(tmp_path: Path, call: Call, source: str) -> None:
    assert str(tmp_path / "none") in refusal(call, tmp_path / "none", tmp_path / "out", source)


def test_a_picture_that_does_not_decode_is_found_by_verify(tmp_path: Path, call: Call) -> None:
    root = layout(tmp_path / "in", "train/1/1_c1.jpg", "query/2/2_c1.jpg", "gallery/2/2_c2.jpg", "gallery/2/2_c3.jpg")
    (root / "gallery/2/2_c3.jpg").write_bytes((root / "gallery/2/2_c3.jpg").read_bytes()[:200])
    (root / "query/2/2_c1.jpg").write_bytes(b"")
    out = write_folder(call, root, tmp_path / "out")
    status, text, _ = call(verify.main, out)
    assert status == 1
    first, second, last = text.splitlines()
    assert first.startswith("query-000000.tar picture 00000000: does not decode as a picture")
    assert second.startswith("gallery-000000.tar picture 00000001: does not decode as a picture")
    assert "4 pictures, 2 faults" in last


# The vehicle set


def khoa(root: Path, missing: str = "") -> Path:
    """A miniature in the set's own naming; car 3 and bus 3 are two vehicles, and so are car 1 and truck 1."""
    lists = {"train": ["car_3", "bus_3", "car_1"], "val": ["motorcycle_12"], "test": ["truck_1", "car_20"]}
    for part, vehicles in lists.items():
        names = [f"{vehicle}_cam{camera}.jpg" for vehicle in vehicles for camera in (1, 2)]
        for name in names:
            if name != missing:
                jpeg(root / "images" / ("train" if part == "val" else part) / name)
        (root / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


def test_vehicle_set(tmp_path: Path, call: Call) -> None:
    root = khoa(tmp_path / "in")
    out = write_folder(call, root, tmp_path / "out", "vehicle_khoa")
    found = pictures_of(out)
    # Pids count (type, number) sorted: bus 3, car 1, 3, 20, motorcycle 12, truck 1.
    assert cameras_of(out, "train") == [(pid, camera) for pid in (0, 1, 2, 4) for camera in (1, 2)]
    assert cameras_of(out, "query") == [(3, 1), (5, 1)]
    assert cameras_of(out, "gallery") == [(3, 2), (5, 2)]
    for split, at, name in (("train", 1, "train/bus_3_cam2"), ("train", 4, "train/car_3_cam1"), ("gallery", 1, "test/truck_1_cam2")):
        assert found[split][at][2] == (root / "images" / f"{name}.jpg").read_bytes()


def test_vehicle_set_that_is_not_whole(tmp_path: Path, call: Call) -> None:
    root = khoa(tmp_path / "in", missing="car_20_cam2.jpg")
    assert "images/test/car_20_cam2.jpg: listed but missing" in refusal(call, root, tmp_path / "out", "vehicle_khoa")
    (root / "val.txt").unlink()
    assert "val.txt: missing; --root is the folder that holds" in refusal(call, root, tmp_path / "out", "vehicle_khoa")


def test_vehicle_lists_that_are_wrong(tmp_path: Path, call: Call) -> None:
    root = khoa(tmp_path / "in")
    (root / "val.txt").write_text("car_3_cam3.jpg\n")
    assert "car_3_cam3.jpg in the val list is not TYPE_NUMBER_camN.jpg" in refusal(call, root, tmp_path / "out", "vehicle_khoa")
    (root / "val.txt").write_text("car_20_cam1.jpg\n")
    jpeg(root / "images/train/car_20_cam1.jpg")
    assert "both train and test" in refusal(call, root, tmp_path / "out", "vehicle_khoa")


def test_the_real_vehicle_set(test_data: Path, tmp_path: Path, call: Call) -> None:
    out = write_folder(call, test_data / "vehicle-reid-khoa", tmp_path / "out", "vehicle_khoa")
    assert call(verify.main, out)[0] == 0
    splits = read_manifest(out).splits
    assert {name: split.identities for name, split in splits.items()} == {"train": 507, "query": 60, "gallery": 60}
    assert {name: split.pictures for name, split in splits.items()} == {"train": 1014, "query": 60, "gallery": 60}
    assert {name: split.cameras for name, split in splits.items()} == {"train": [1, 2], "query": [1], "gallery": [2]}


# Places to write to


def test_out_in_use(rendered: Path, tmp_path: Path, call: Call) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in rendered.iterdir()}
    status, _, line = call(write.main, "synthetic", *SMALL, "--out", rendered)
    assert status == 2
    assert line == f"error: {rendered}: exists and is not an empty folder; give a new --out, or remove it first"
    assert {path.name: path.stat().st_mtime_ns for path in rendered.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    assert call(write.main, "synthetic", *SMALL, "--out", tmp_path / "file")[0] == 2
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("size", ["64k", "280k"])  # full in the first picture, and in the last shards
def test_full_disk(tmp_path: Path, size: str) -> None:
    words = f"{sys.executable} -m shards.write synthetic {' '.join(SMALL)} --out {tmp_path}/set"
    inside = f"mount -t tmpfs -o size={size} none {tmp_path} || exit 77; {words}; status=$?; ls {tmp_path}; exit $status"
    try:
        done = subprocess.run(["unshare", "--mount", "sh", "-c", inside], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if done.returncode in (1, 77):
        pytest.skip("this user cannot mount a small disk")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == f"error: {tmp_path}/set: No space left on device; free some space or choose another place"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""  # nothing left behind


def test_unwritable_place(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/vmreid-set"), tmp_path / "file" / "set"):
        status, _, line = call(write.main, "synthetic", *SMALL, "--out", out)
        assert status == 2
        assert str(out.name) in line


def test_a_source_that_cannot_be_read_leaves_nothing(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int, identity: int, camera: int, number: int) -> Any:
        if identity == 5:
            raise PermissionError(13, "Permission denied", "picture 5")
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("shards.sources.render", fail)
    status, _, line = call(write.main, "synthetic", *SMALL, "--out", tmp_path / "set")
    assert (status, line) == (2, "error: picture 5: Permission denied; change its permissions or choose another place")
    assert not (tmp_path / "set").exists()
