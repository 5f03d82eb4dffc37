"""Members of a shard as webdataset's own reader finds them, and an end in one line where a file is no shard."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import webdataset as wds
from webdataset.tariterators import tar_file_expander

from vmreid.data.members import members


def shard(sizes: list[int]) -> bytes:
    random, file = np.random.default_rng(0), io.BytesIO()
    with wds.TarWriter(file, mtime=0) as tar:
        for row, size in enumerate(sizes):
            tar.write({"__key__": f"{row:08d}", "jpg": random.bytes(size), "json": b'{"pid": 3}'})
    return file.getvalue()


def found(data: bytes, reader: object = members) -> list[dict[str, object]]:
    return list(reader([{"url": "a.tar", "stream": io.BytesIO(data)}]))  # type: ignore[operator]


@pytest.mark.parametrize("sizes", [[], [1], [0], [511, 512, 513], [1024, 0, 70_000], [10_000] * 40])
def test_the_members_that_webdataset_finds(sizes: list[int]) -> None:
    data = shard(sizes)
    assert found(data) == found(data, tar_file_expander)
    assert len(found(data)) == 2 * len(sizes) + 1  # the end of the shard too


def test_several_shards_in_turn() -> None:
    sources = [{"url": name, "stream": io.BytesIO(shard([size]))} for name, size in (("a", 5), ("b", 600))]
    assert [each.get("__url__") for each in members(sources)] == ["a", "a", None, "b", "b", None]


def other(name: str, kind: bytes = tarfile.REGTYPE, form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.type = kind
        tar.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        shard([700])[:1000],  # ends in a picture
        shard([700])[:300],  # ends in a header
        b"not a tar file" * 100,
        other("00000000", tarfile.DIRTYPE),
        other("00000000.jpg", tarfile.SYMTYPE),
        other("0" * 200 + ".jpg"),  # its name is a member of its own
        other("0" * 200 + ".jpg", form=tarfile.GNU_FORMAT),
    ],
)
def test_what_is_no_shard(data: bytes) -> None:
    with pytest.raises(tarfile.ReadError, match=r"header|no regular file") as caught:
        found(data)
    assert "\n" not in str(caught.value)
