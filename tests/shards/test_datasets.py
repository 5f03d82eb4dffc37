"""A miniature of each published dataset, in its own naming, through ``shards.write``."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_commands import Call, cameras_of, facts_of, jpeg, layout, pictures_of, refusal, write_folder

from shards import verify, write
from vmreid.data.manifest import read_manifest

MARKET = (
    *("bounding_box_train/0002_c1s1_000451_03.jpg", "bounding_box_train/0002_c3s1_000551_01.jpg"),
    *("bounding_box_train/1500_c6s3_000001_00.jpg", "query/0003_c1s6_000001_00.jpg", "query/1501_c2s1_000001_00.jpg"),
    *("bounding_box_test/-1_c1s1_000401_03.jpg", "bounding_box_test/0000_c4s1_000076_01.jpg"),
    *("bounding_box_test/0003_c2s1_000001_01.jpg", "bounding_box_test/1501_c2s1_000009_02.jpg"),
)
MARKET_DISTRACTORS = ("images/0000_c3s2_000001_00.jpg", "images/-1_c5s2_000001_00.jpg")
DUKE = (
    *("bounding_box_train/0001_c2_f0046182.jpg", "bounding_box_train/7140_c8_f0000001.jpg"),
    *("query/0005_c2_f0046985.jpg", "bounding_box_test/0005_c7_f0046985.jpg", "bounding_box_test/0006_c1_f0046985.jpg"),
)
CUHK = (
    *("bounding_box_train/0001_c1_1.png", "bounding_box_train/1467_c2_9.png"),
    *("query/0003_c1_2.png", "bounding_box_test/0003_c2_2.png"),
)
SOURCES = ("market1501", "msmt17", "dukemtmc", "occluded_duke", "cuhk03np", "veri776", "vehicleid")


def market(root: Path) -> Path:
    layout(root, *MARKET)
    (root / "query/Thumbs.db").write_text("no picture")
    jpeg(root / "query/._0003_c1s6_000001_00.jpg")
    return root


@pytest.mark.parametrize("nesting", ["", "Market-1501-v15.09.15"])
def test_market1501(tmp_path: Path, call: Call, nesting: str) -> None:
    root = market(tmp_path / "in" / nesting)
    layout(tmp_path / "in/__MACOSX", *MARKET)
    out = write_folder(call, tmp_path / "in", tmp_path / "out", "market1501")
    assert cameras_of(out, "train") == [(2, 1), (2, 3), (1500, 6)]
    assert cameras_of(out, "query") == [(3, 1), (1501, 2)]
    assert cameras_of(out, "gallery") == [(0, 4), (3, 2), (1501, 2)]  # junk is gone, distractors are not
    assert pictures_of(out)["query"][0][2] == (root / "query/0003_c1s6_000001_00.jpg").read_bytes()
    assert facts_of(out, "query")[0] == {"pid": 3, "camid": 1, "name": "query/0003_c1s6_000001_00.jpg"}
    assert call(verify.main, out)[0] == 0


def test_the_500k_distractors_join_the_gallery(tmp_path: Path, call: Call) -> None:
    root = layout(market(tmp_path / "in"), *MARKET_DISTRACTORS)
    out = write_folder(call, root, tmp_path / "out", "market1501")
    assert cameras_of(out, "gallery") == [(0, 4), (0, 5), (0, 3), (3, 2), (1501, 2)]
    jpeg(root / "images/0007_c3s2_000001_00.jpg")
    assert "1 of 3 have an identity outside -1 to 0" in refusal(call, root, tmp_path / "no", "market1501")


@pytest.mark.parametrize("source", ["dukemtmc", "occluded_duke"])
def test_duke(tmp_path: Path, call: Call, source: str) -> None:
    out = write_folder(call, layout(tmp_path / "in", *DUKE), tmp_path / "out", source)
    assert cameras_of(out, "train") == [(1, 2), (7140, 8)]
    assert cameras_of(out, "query") == [(5, 2)]
    assert cameras_of(out, "gallery") == [(5, 7), (6, 1)]


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03np(tmp_path: Path, call: Call, boxes: str) -> None:
    root = layout(tmp_path / "in/cuhk03-np", *(f"{form}/{name}" for form in ("detected", "labeled") for name in CUHK))
    out = write_folder(call, root, tmp_path / "out", "cuhk03np", "--boxes", boxes)
    assert cameras_of(out, "train") == [(1, 1), (1467, 2)]
    assert cameras_of(out, "query") == [(3, 1)]
    assert cameras_of(out, "gallery") == [(3, 2)]
    assert pictures_of(out)["gallery"][0][2] == (root / boxes / "bounding_box_test/0003_c2_2.png").read_bytes()
    assert read_manifest(out).source == {"name": "cuhk03np", "root": "cuhk03-np", "boxes": boxes}


def test_cuhk03_in_its_raw_form_is_refused_with_the_way_out(tmp_path: Path, call: Call) -> None:
    (tmp_path / "in/cuhk03_release").mkdir(parents=True)
    (tmp_path / "in/cuhk03_release/cuhk-03.mat").write_bytes(b"HDF5")
    line = refusal(call, tmp_path / "in", tmp_path / "out", "cuhk03np")
    assert "cuhk-03.mat: the raw form is HDF5, which is not read; take the one with detected/bounding_box_train" in line


MSMT = {  # list: (path, identity); identities of the test begin at 0 again
    "train": [("0000/0000_000_01_0303morning_0015_0.jpg", 0), ("0001/0001_001_14_0303noon_0015_0_ex.jpg", 1)],
    "val": [("0002/0002_045_12_0303morning_0006_2.jpg", 2)],
    "query": [("0000/0000_000_03_0303morning_0008_0.jpg", 0)],
    "gallery": [("0000/0000_002_15_0303afternoon_0008_0.jpg", 0), ("0001/0001_002_02_0303afternoon_0008_0.jpg", 1)],
}


def msmt(root: Path, train: str = "train", test: str = "test") -> Path:
    for name, lines in MSMT.items():
        layout(root / (train if name in ("train", "val") else test), *(path for path, _ in lines))
        (root / f"list_{name}.txt").write_text("".join(f"{path} {pid}\n" for path, pid in lines))
    return root


V1, V2 = ("train", "test"), ("mask_train_v2", "mask_test_v2")


@pytest.mark.parametrize(("below", "folders"), [("MSMT17_V1", V1), ("", V1), ("MSMT17_V2", V2)])
def test_msmt17(tmp_path: Path, call: Call, below: str, folders: tuple[str, str]) -> None:
    root = msmt(tmp_path / "in" / below, *folders)
    out = write_folder(call, tmp_path / "in", tmp_path / "out", "msmt17")
    assert cameras_of(out, "train") == [(0, 1), (1, 14), (2, 12)]
    assert cameras_of(out, "query") == [(3, 3)]
    assert cameras_of(out, "gallery") == [(3, 15), (4, 2)]
    assert pictures_of(out)["query"][0][2] == (root / folders[1] / MSMT["query"][0][0]).read_bytes()
    assert facts_of(out, "train")[2]["name"] == f"{folders[0]}/{MSMT['val'][0][0]}"


def test_msmt17_without_val(tmp_path: Path, call: Call) -> None:
    out = write_folder(call, msmt(tmp_path / "in"), tmp_path / "out", "msmt17", "--train_without_val")
    assert cameras_of(out, "train") == [(0, 1), (1, 14)]
    assert cameras_of(out, "query") == [(3, 3)]  # the same numbers as with val
    assert read_manifest(out).source["train_without_val"] == 1


def test_msmt17_with_another_suffix_than_its_lists(tmp_path: Path, call: Call) -> None:
    root = msmt(tmp_path / "in", "mask_train_v2", "mask_test_v2")
    for path in root.rglob("*.jpg"):
        path.rename(path.with_suffix(".jpeg"))
    out = write_folder(call, root, tmp_path / "out", "msmt17")
    assert len(cameras_of(out, "train")) == 3
    assert facts_of(out, "query")[0]["name"].endswith("_0008_0.jpeg")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"list_val.txt": None, "list_query.txt": None}, "lacks list_val.txt, list_query.txt, and without lists nobody knows"),
        ({"list_query.txt": "0000/0000_000.jpg 0\n"}, "1 of 1 lines are not PATH_..._CAMERA_... IDENTITY: 0000/0000_000.jpg 0"),
        ({"list_train.txt": "0000/0000_000_16_a_0.jpg 0\n"}, "1 of 1 have a camera outside 1 to 15: 0000/0000_000_16_a_0.jpg"),
        ({"list_train.txt": "0000/0000_000_15_a_0.jpg 1041\n"}, "1 of 1 have an identity outside 0 to 1040"),
        ({"list_val.txt": "0000/0000_000_15_a_0.jpg 9\n"}, "list_val.txt: 1 of 1 are not in train: 0000/0000_000_15_a_0.jpg"),
        ({"list_val.txt": "../../other_a_15_a_0.jpg 9\n"}, "list_val.txt: 1 of 1 are not in train: ../../other_a_15_a_0.jpg"),
    ],
)
def test_msmt17_that_is_not_whole(tmp_path: Path, call: Call, change: dict[str, str | None], told: str) -> None:
    root = msmt(tmp_path / "in")
    for name, text in change.items():
        if text is None:
            (root / name).unlink()
        else:
            (root / name).write_text(text)
    jpeg(tmp_path / "other_a_15_a_0.jpg")
    assert told in refusal(call, root, tmp_path / "out", "msmt17")


def test_msmt17_twice_below_the_root(tmp_path: Path, call: Call) -> None:
    for version in ("MSMT17_V1", "MSMT17_V2"):
        msmt(tmp_path / "in" / version)
    line = refusal(call, tmp_path / "in", tmp_path / "out", "msmt17")
    assert "holds the set twice" in line
    assert "MSMT17_V1" in line
    assert "MSMT17_V2" in line


VERI = (
    *("image_train/0001_c001_00016450_0.jpg", "image_train/0003_c020_00016450_0.jpg", "image_train/0776_c002_00016450_0.jpg"),
    *("image_query/0002_c002_00030600_0.jpg", "image_test/0002_c003_00030605_1.jpg"),
)
XML = """<?xml version="1.0" encoding="gb2312"?><TrainingImages Version="1.0"><Items number="3">
<Item imageName="0001_c001_00016450_0.jpg" vehicleID="0001" cameraID="c001" colorID="1" typeID="4"/>
<Item imageName="0003_c020_00016450_0.jpg" vehicleID="0003" cameraID="c020" colorID="1" typeID="0"/>
<Item imageName="0776_c002_00016450_0.jpg" vehicleID="0776" cameraID="c002"/>
</Items></TrainingImages>"""


def veri(root: Path) -> Path:
    layout(root, *VERI)
    (root / "train_label.xml").write_bytes(XML.encode("gb2312"))
    (root / "test_label.xml").write_text(XML.replace("0001_c001_00016450_0", "0002_c002_00030600_0"))
    lines = [("image_train/0001_c001_00016450_0.jpg", 3), ("/a/b/0776_c002_00016450_0.jpg", 7)]
    points = " -1" * 40
    (root / "keypoint_train.txt").write_text("".join(f"{name}{points} {view}\n" for name, view in [*lines, lines[0]]))
    (root / "keypoint_test.txt").write_text(f"0002_c003_00030605_1.jpg{points} 0\n")
    return root


def view_and_type(folder: Path, split: str) -> list[tuple[int, int]]:
    return [(facts["view"], facts["type"]) for facts in facts_of(folder, split)]


def test_veri776(tmp_path: Path, call: Call) -> None:
    veri(tmp_path / "in/VeRi")
    out = write_folder(call, tmp_path / "in", tmp_path / "out", "veri776")
    assert cameras_of(out, "train") == [(1, 1), (3, 20), (776, 2)]
    assert cameras_of(out, "query") == [(2, 2)]
    assert cameras_of(out, "gallery") == [(2, 3)]
    assert view_and_type(out, "train") == [(3, 4), (-1, 2), (7, -1)]  # vehicle 3: a known fault of old copies
    assert view_and_type(out, "query") == [(-1, 4)]
    assert view_and_type(out, "gallery") == [(0, -1)]
    assert call(verify.main, out)[0] == 0


def test_veri776_of_pictures_alone(tmp_path: Path, call: Call) -> None:
    out = write_folder(call, layout(tmp_path / "in", *VERI), tmp_path / "out", "veri776")
    assert view_and_type(out, "train") == [(-1, -1)] * 3


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("keypoint_test.txt", "a.jpg 1 2\n", "1 of 1 lines are not a path, 20 points and a view from 0 to 7: a.jpg 1 2"),
        ("keypoint_test.txt", f"a.jpg{' 1' * 40} 8\n", "1 of 1 lines are not a path, 20 points and a view from 0 to 7"),
        ("keypoint_test.txt", f"a.jpg{' 1' * 40} 1\nb/a.jpg{' 1' * 40} 2\n", "1 of 2 lines give a picture a second view: a.jpg"),
        ("train_label.xml", "<Items><Item></Items>", "train_label.xml: not readable as VeRi-776's labels"),
        ("train_label.xml", '<Items><Item typeID="1"/></Items>', "train_label.xml: not readable as VeRi-776's labels"),
    ],
)
def test_veri776_whose_labels_are_wrong(tmp_path: Path, call: Call, name: str, text: str, told: str) -> None:
    root = veri(tmp_path / "in")
    (root / name).write_text(text)
    assert told in refusal(call, root, tmp_path / "out", "veri776")


def vehicleid(root: Path, train: str = "7", test: str = "8") -> Path:
    lists = {"train_list": [f"000{number} {train}" for number in range(3)], "test_list_800": []}
    for vehicle in range(20):
        lists["test_list_800"] += [f"1{vehicle:02d}{number} {test}{vehicle:02d}" for number in range(1, 6)]
    lists["test_list_1600"] = lists["test_list_800"][:10]
    (root / "train_test_split").mkdir(parents=True)
    for name, lines in lists.items():
        (root / "train_test_split" / f"{name}.txt").write_text("\n".join(reversed(lines)) + "\n")
        layout(root / "image", *(f"{line.split()[0]}.jpg" for line in lines))
    return root


def test_vehicleid(tmp_path: Path, call: Call) -> None:
    root = vehicleid(tmp_path / "in/VehicleID_V1.0")
    out = write_folder(call, tmp_path / "in", tmp_path / "out", "vehicleid")
    assert {pid for pid, _ in cameras_of(out, "train")} == {7}
    queries, gallery = cameras_of(out, "query"), cameras_of(out, "gallery")
    assert [pid for pid, _ in gallery] == list(range(800, 820))
    assert [pid for pid, _ in queries] == [pid for pid in range(800, 820) for _ in range(4)]
    assert {camid for _, camid in queries}.isdisjoint(camid for _, camid in gallery)  # so no positive is left out
    names = [facts["name"] for split in ("query", "gallery") for facts in facts_of(out, split)]
    assert sorted(names) == sorted(f"image/1{vehicle:02d}{number}.jpg" for vehicle in range(20) for number in range(1, 6))
    draws = {seed: drawn(call, root, tmp_path / f"seed {seed}", "--seed", seed) for seed in (0, 1)}
    assert draws[0] == [facts["name"] for facts in facts_of(out, "gallery")]
    assert draws[1] != draws[0]
    assert len({name[-5] for name in draws[0]}) > 2  # not always the same place in the list
    assert len(drawn(call, root, tmp_path / "1600", "--test_size", 1600)) == 2
    assert read_manifest(tmp_path / "1600").source["test_size"] == 1600


def drawn(call: Call, root: Path, out: Path, *options: object) -> list[str]:
    return [facts["name"] for facts in facts_of(write_folder(call, root, out, "vehicleid", *options), "gallery")]


def test_vehicleid_that_is_not_whole(tmp_path: Path, call: Call) -> None:
    root = vehicleid(tmp_path / "in")
    (root / "image/1021.jpg").unlink()
    line = refusal(call, root, tmp_path / "out", "vehicleid")
    assert "test_list_800.txt: 1 of 100 are not in image: 1021.jpg" in line
    assert "test_list_2400.txt: missing (found beside it: test_list_1600.txt, test_list_800.txt, train_list.txt)" in refusal(
        call, root, tmp_path / "out", "vehicleid", "--test_size", 2400
    )
    both = vehicleid(tmp_path / "both", train="805", test="8")
    assert "both train and test" in refusal(call, both, tmp_path / "out", "vehicleid")


@pytest.mark.parametrize("source", SOURCES)
def test_a_missing_folder_is_named_and_what_was_found_listed(tmp_path: Path, call: Call, source: str) -> None:
    assert f"{tmp_path}/none: no such folder" in refusal(call, tmp_path / "none", tmp_path / "out", source)
    layout(tmp_path / "in", "notes/a.jpg", "pictures/b.jpg")
    line = refusal(call, tmp_path / "in", tmp_path / "out", source)
    assert f"missing (found in {tmp_path}/in: notes, pictures); --root is the folder that holds " in line


def test_the_nearest_layout_is_what_a_message_speaks_of(tmp_path: Path, call: Call) -> None:
    root = market(tmp_path / "in/Market-1501-v15.09.15")
    for path in (root / "query").iterdir():
        path.unlink()
    assert f"{root}/query: no pictures in it (.jpg count; found nothing)" in refusal(
        call, tmp_path / "in", tmp_path / "out", "market1501"
    )
    (root / "query").rmdir()
    line = refusal(call, tmp_path / "in", tmp_path / "out", "market1501")
    assert f"{root}/query: missing (found in {root}: bounding_box_test, bounding_box_train)" in line


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("query/a.jpg", "query/b.jpg", "query/c.jpg", "query/d.jpg"),
         "query: 4 of 6 are not as the set names its pictures (identity, camera): a.jpg, b.jpg, c.jpg, …"),
        (("query/0003_c7s1_000001_00.jpg",), "query: 1 of 3 have a camera outside 1 to 6: 0003_c7s1_000001_00.jpg"),
        (("query/1502_c1s1_000001_00.jpg",), "query: 1 of 3 have an identity outside 1 to 1501: 1502_c1s1_000001_00.jpg"),
        (("bounding_box_train/0000_c1s1_000001_00.jpg",), "bounding_box_train: 1 of 4 have an identity outside 1 to 1501"),
        (("bounding_box_train/0003_c1s1_000001_00.jpg",), "1 identities both train and test, such as that of bounding_box_train"),
        (("bounding_box_train/0003_c10s1_000001_00.jpg",), "1 of 4 have a camera outside 1 to 6"),
    ],
)  # fmt: skip
def test_names_that_the_set_cannot_have(tmp_path: Path, call: Call, names: tuple[str, ...], told: str) -> None:
    assert told in refusal(call, layout(market(tmp_path / "in"), *names), tmp_path / "out", "market1501")


def test_other_counts_than_the_published_are_told(tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    root = market(tmp_path / "in")
    write.main(["market1501", "--root", str(root), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.splitlines()
    wanted = (
        "train: 2 identities, 3 pictures, 3 cameras; published: 751 identities, 12,936 pictures, 6 cameras",
        "query: 2 identities, 2 pictures, 2 cameras; published: 750 identities, 3,368 pictures, 6 cameras",
        "gallery: 3 identities, 3 pictures, 2 cameras; published: 751 identities, 15,913 or 515,913 pictures, 6 cameras",
    )
    assert lines[1:4] == [f"warning: {root}: {line}" for line in wanted]
    line = refusal(call, root, tmp_path / "strict", "market1501", "--strict")
    assert line == f"error: {root}: {'; '.join(wanted)}; take a whole copy, or leave out --strict"


@pytest.mark.parametrize(("boxes", "complaints"), [("detected", 0), ("labeled", 2)])
def test_counts_as_published_are_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], boxes: str, complaints: int
) -> None:
    """Empty files of the detected boxes' counts; as labeled ones, which number a few more or less, they are complained of."""
    for folder, first, identities, pictures in (
        ("bounding_box_train", 1, 767, 7_365),
        ("query", 768, 700, 1_400),
        ("bounding_box_test", 768, 700, 5_332),
    ):
        (tmp_path / boxes / folder).mkdir(parents=True)
        for number in range(pictures):
            name = f"{first + number % identities:04d}_c{number // identities % 2 + 1}_{number}.png"
            (tmp_path / boxes / folder / name).touch()
    monkeypatch.setattr(write, "write_shards", lambda *arguments: None)
    write.main(["cuhk03np", "--root", str(tmp_path), "--boxes", boxes, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().err.count("; published: ") == complaints


def test_queries_that_cannot_be_answered_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = market(tmp_path / "in")
    write.main(["market1501", "--root", str(root), "--out", str(tmp_path / "out")])
    assert (
        f"warning: {root}: 1 of 2 queries have no positive by another camera in the gallery, so they do not count: "
        "query/1501_c2s1_000001_00.jpg\n"
    ) in capsys.readouterr().err


def test_copies_are_told_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = market(tmp_path / "in")
    same = (root / "query/0003_c1s6_000001_00.jpg").read_bytes()
    (root / "bounding_box_test/0003_c2s1_000001_01.jpg").write_bytes(same)
    (root / "bounding_box_test/1501_c2s1_000009_02.jpg").write_bytes(same)
    write.main(["market1501", "--root", str(root), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().err.splitlines()[-1] == (
        "warning: 2 pictures have the bytes of an earlier one, 1 of them under another identity: "
        "query/0003_c1s6_000001_00.jpg = bounding_box_test/1501_c2s1_000009_02.jpg, "
        "query/0003_c1s6_000001_00.jpg = bounding_box_test/0003_c2s1_000001_01.jpg"
    )
    assert [data for split in pictures_of(tmp_path / "out").values() for _, _, data in split].count(same) == 3
