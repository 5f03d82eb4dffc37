"""Folders and tables of pictures, and the vehicle set: what goes where, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from shard_commands import Call, cameras_of, facts_of, jpeg, layout, pictures_of, refusal, write_folder

from shards import verify, write
from vmreid.data.manifest import read_manifest
from vmreid.data.pictures import decode


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


@pytest.mark.parametrize(
    "names", [("1/x.jpg", "2/x.jpg", "2/y.jpg", "2/z.jpg"), ("train/1/x.jpg", "query/2/x.jpg", "gallery/2/y.jpg")]
)
def test_folder_without_cameras(tmp_path: Path, call: Call, names: tuple[str, ...]) -> None:
    out = write_folder(call, layout(tmp_path / "in", *names), tmp_path / "out")
    assert cameras_of(out, "query") == [(1, 0)]
    assert set(cameras_of(out, "gallery")) == {(1, 1)}  # no positive is taken for one of the query's camera


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("1/1_c1.jpg", "2/2_c1.jpg", "2/2.jpg", "2/2_c2.jpg"), "2/2.jpg: no camera in its name"),
        (
            ("train/1/1_c1.jpg", "query/1/1_c2.jpg", "gallery/1/1_c3.jpg"),
            "1 identities both train and test, such as that of 1/1_c1.jpg",
        ),
        (("train/1/1_c1.jpg", "query/2/2_c2.jpg", "gallery/2/2.gif.txt"), "no pictures for gallery"),
        (("train/1/1_c1.jpg", "query/2/2_c2.jpg"), "gallery: no such folder (beside it: query, train)"),
        (("query/1/1_c1.jpg", "gallery/1/1_c2.jpg"), "train: no such folder (beside it: gallery, query)"),
        (("1.jpg",), "no folder with pictures in it (found 1.jpg); --root is the folder that holds one folder an identity"),
        (("a/1/1_c1.jpg", "b/1/1_c1.jpg"), "holds the set twice, as "),
        (("1/1_c1.jpg",), "no pictures for train"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, call: Call, names: tuple[str, ...], told: str) -> None:
    line = refusal(call, layout(tmp_path / "in", *names), tmp_path / "out")
    assert told in line
    assert str(tmp_path / "in") in line


@pytest.mark.parametrize(
    "names",
    [
        ("train/1/1_c1.jpg", "query/2/2_c1.jpg", "gallery/2/2_c2.jpg"),
        ("1/1_c1_0.jpg", "2/2_c1_0.jpg", "2/2_c1_1.jpg", "2/2_c2_0.jpg"),
    ],
)
def test_folder_in_a_folder(tmp_path: Path, call: Call, names: tuple[str, ...]) -> None:
    """As an archive unpacks; macOS adds a folder of its own."""
    root = layout(tmp_path / "flat/in", *names)
    flat = write_folder(call, root, tmp_path / "out")
    shutil.copytree(root, tmp_path / "nested/in/name")
    layout(tmp_path / "nested/in/__MACOSX", *names)
    (tmp_path / "nested/in/read.me").write_text("no picture")
    nested = write_folder(call, tmp_path / "nested/in", tmp_path / "nested_out")
    assert read_manifest(nested) == read_manifest(flat)


@pytest.mark.parametrize("source", ["image_folder", "vehicle_khoa"])
def test_missing_root(tmp_path: Path, call: Call, source: str) -> None:
    assert str(tmp_path / "none") in refusal(call, tmp_path / "none", tmp_path / "out", source)


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


@pytest.mark.parametrize("nesting", ["", "Vehicle-Re-ID-Dataset-main"])
def test_vehicle_set(tmp_path: Path, call: Call, nesting: str) -> None:
    root = khoa(tmp_path / "in" / nesting)
    out = write_folder(call, tmp_path / "in", tmp_path / "out", "vehicle_khoa")
    found = pictures_of(out)
    # Pids count (type, number) sorted: bus 3, car 1, 3, 20, motorcycle 12, truck 1.
    assert cameras_of(out, "train") == [(pid, camera) for pid in (0, 1, 2, 4) for camera in (1, 2)]
    assert cameras_of(out, "query") == [(3, 1), (5, 1)]
    assert cameras_of(out, "gallery") == [(3, 2), (5, 2)]
    for split, at, name in (
        ("train", 1, "train/bus_3_cam2"),
        ("train", 4, "train/car_3_cam1"),
        ("gallery", 1, "test/truck_1_cam2"),
    ):
        assert found[split][at][2] == (root / "images" / f"{name}.jpg").read_bytes()


def test_vehicle_set_that_is_not_whole(tmp_path: Path, call: Call) -> None:
    root = khoa(tmp_path / "in", missing="car_20_cam2.jpg")
    assert "images/test/car_20_cam2.jpg: listed but missing" in refusal(call, root, tmp_path / "out", "vehicle_khoa")
    (root / "val.txt").unlink()
    assert "val.txt: missing (found in" in refusal(call, root, tmp_path / "out", "vehicle_khoa")


def test_vehicle_lists_that_are_wrong(tmp_path: Path, call: Call) -> None:
    root = khoa(tmp_path / "in")
    (root / "val.txt").write_text("car_3_cam3.jpg\n")
    assert "val.txt: car_3_cam3.jpg is not TYPE_NUMBER_camN.jpg" in refusal(call, root, tmp_path / "out", "vehicle_khoa")
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


TABLE = """id,path,camera,view,split
lorry,b/2.jpg,5,,train
lorry,b/1.jpg,4,3,train
"bus, red",a.png,12,0,query
"bus, red",c.jpeg,4,0,gallery
"""


def table(tmp_path: Path, text: str, encoding: str = "utf-8") -> tuple[Path, Path]:
    path = tmp_path / "crops.csv"
    path.write_text(text, encoding=encoding)
    return layout(tmp_path / "in", "b/1.jpg", "b/2.jpg", "a.png", "c.jpeg", "not listed.jpg"), path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_of_pictures(tmp_path: Path, call: Call, encoding: str) -> None:
    root, path = table(tmp_path, TABLE, encoding)
    out = write_folder(call, root, tmp_path / "out", "image_folder", "--csv", path)
    assert cameras_of(out, "train") == [(1, 4), (1, 5)]
    assert cameras_of(out, "query") == [(0, 12)]
    assert cameras_of(out, "gallery") == [(0, 4)]
    assert facts_of(out, "train") == [
        {"pid": 1, "camid": 4, "name": "b/1.jpg", "view": 3},
        {"pid": 1, "camid": 5, "name": "b/2.jpg", "view": -1},
    ]
    assert pictures_of(out)["query"][0][2] == (root / "a.png").read_bytes()
    assert read_manifest(out).source == {"name": "image_folder", "root": "in", "csv": "crops.csv"}


def test_a_table_without_cameras_and_splits(tmp_path: Path, call: Call) -> None:
    root, path = table(tmp_path, "path,id\na.png,1\nb/2.jpg,2\nb/1.jpg,2\nc.jpeg,2\n")
    out = write_folder(call, root, tmp_path / "out", "image_folder", "--csv", path)
    assert cameras_of(out, "train") == [(0, 0)]
    assert cameras_of(out, "query") == [(1, 0)]
    assert cameras_of(out, "gallery") == [(1, 1), (1, 1)]
    assert facts_of(out, "query") == [{"pid": 1, "camid": 0, "name": "b/1.jpg"}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,id,cam\na.png,1,2\n", "crops.csv: has the columns path, id, cam; path and id are needed"),
        ("path,camera\na.png,1\n", "crops.csv: has the columns path, camera; path and id are needed"),
        ("", "crops.csv: has the columns ; path and id are needed"),
        ("path,id\na.png\n", "crops.csv line 2: needs a value for each of path, id"),
        ("path,id\na.png,1,2\n", "crops.csv line 2: needs a value for each of path, id"),
        ("path,id\na.png,1\n,2\n", "crops.csv line 3: needs a value for each of path, id"),
        ("path,id,split\na.png,1,test\n", "crops.csv line 2: split 'test'; must be train, query or gallery"),
        ("path,id,camera\na.png,1,c1\n", "crops.csv line 2: camera 'c1'; must be a whole number"),
        ("path,id,camera\na.png,1,-1\n", "crops.csv line 2: camera '-1'; must be a whole number"),
        ("path,id,camera\na.png,1,1\nc.jpeg,2,\n", "c.jpeg: no camera in its line, others have one"),
        ("path,id\na.png,1\nd.jpg,2\ne.jpg,2\n", "crops.csv: 2 of 3 paths are no files: d.jpg, e.jpg; they count from --root"),
        ('path,id\n"a.png,1\n', "crops.csv: not readable as a table (unexpected end of data)"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, call: Call, text: str, told: str) -> None:
    root, path = table(tmp_path, text)
    assert told in refusal(call, root, tmp_path / "out", "image_folder", "--csv", path)


def test_a_table_that_is_not_there_or_not_text(tmp_path: Path, call: Call) -> None:
    root, path = table(tmp_path, "")
    assert "none.csv: no such file" in refusal(call, root, tmp_path / "out", "image_folder", "--csv", tmp_path / "none.csv")
    path.write_bytes(b"path,id\n\xff\xfe,1\n")
    assert "not readable as a table" in refusal(call, root, tmp_path / "out", "image_folder", "--csv", path)


def test_a_camera_number_beyond_any(tmp_path: Path, call: Call) -> None:
    root = layout(tmp_path / "in", "1/1_c1.jpg", f"2/2_c{10**20}.jpg", "2/2_c2.jpg")
    assert "1 camera numbers beyond 2147483647" in refusal(call, root, tmp_path / "out")


def test_resize_shrinks_the_larger_pictures_alone(tmp_path: Path, call: Call) -> None:
    root = tmp_path / "in"
    sizes = {"train/1/1_c1.png": (90, 300), "query/2/2_c1.jpg": (64, 128), "gallery/2/2_c2.jpg": (200, 50)}
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True)
        Image.new("RGB", size, (200, 30, 60)).save(root / name)
    out = write_folder(call, root, tmp_path / "out", "image_folder", "--resize", 128)
    found = {split: pictures[0][2] for split, pictures in pictures_of(out).items()}
    assert found["query"] == (root / "query/2/2_c1.jpg").read_bytes()
    for split, size in (("train", (38, 128)), ("gallery", (128, 32))):
        assert found[split].startswith(b"\xff\xd8"), "a JPEG"
        picture = decode(found[split], split)
        assert picture.size == size
        assert max(abs(a - b) for a, b in zip(picture.getpixel((3, 3)), (200, 30, 60), strict=True)) < 5
    assert read_manifest(out).source["resize"] == 128


def test_resize_of_what_is_no_picture(tmp_path: Path, call: Call) -> None:
    root = layout(tmp_path / "in", "train/1/1_c1.jpg", "query/2/2_c1.jpg", "gallery/2/2_c2.jpg")
    (root / "gallery/2/2_c2.jpg").write_bytes(b"no picture")
    status, _, line = call(write.main, "image_folder", "--root", root, "--out", tmp_path / "out", "--resize", 64)
    assert status == 2
    assert line.startswith("error: 2/2_c2.jpg: does not decode as a picture")
    assert line.endswith(", so it cannot be resized; replace it, or write without --resize")
    assert not (tmp_path / "out/manifest.json").exists()
