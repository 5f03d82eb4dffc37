"""``python docs/results/shards_at_scale.py OUT N...``: what sets of N tiny pictures cost, as one JSON on standard output.

OUT gets the pictures and sets, one size after the other, and the figures of each size; what is measured already is not again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from vmreid.data.identity_batches import IdentityBatches
from vmreid.data.manifest import parse_manifest, read_index, read_manifest
from vmreid.data.ranges import ShardRanges
from vmreid.data.streams import TrainStream
from vmreid.data.transforms import TrainTransform
from vmreid.recipes.schema import Augment
from vmreid.versions import versions

PICTURES = 10  # of an identity
P, K = 16, 4  # identities of a batch, and pictures of each
TRANSFORM = TrainTransform((16, 8), Augment(crop_scale=(0.8, 1.0), flip=0.5, colour_jitter=0.0))


def main(out: Path, sizes: list[int]) -> None:
    """Measure each size in processes of its own."""
    for size in sizes:
        path = out / f"{size}.json"
        if not path.exists():
            path.write_text(json.dumps(measured(out / str(size), size)))
    cpu = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    facts = {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "versions": {**versions(), "numpy": np.__version__}}
    print(json.dumps(facts | {"sets": [json.loads((out / f"{size}.json").read_text()) for size in sizes]}, indent=1))


def measured(folder: Path, size: int) -> dict[str, Any]:
    """A set's figures; its files go afterwards. Times in s, memory in bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    make_pictures(folder / "in", size)
    found: dict[str, Any] = {"pictures": size}
    found["write"] = command("-m", "shards.write", "image_folder", "--root", str(folder / "in"), "--out", str(folder / "set"))
    found["verify"] = command("-m", "shards.verify", str(folder / "set"))
    splits = parse_manifest(folder / "set").splits
    found["train"] = {"pictures": splits["train"].pictures, "identities": splits["train"].identities}
    found["index_bytes"] = sum((folder / "set" / split.index).stat().st_size for split in splits.values())
    found["bytes"] = sum(path.stat().st_size for path in (folder / "set").iterdir())
    rank = subprocess.run([sys.executable, __file__, "rank", str(folder / "set")], capture_output=True, text=True, check=True)
    shutil.rmtree(folder)
    return found | {"rank": json.loads(rank.stdout)}


def make_pictures(root: Path, size: int) -> None:
    """Each of its own, about 600 bytes; the cameras of an identity go in turns."""
    random = np.random.default_rng(0)
    for number in range(size):
        identity, picture = divmod(number, PICTURES)
        path = root / f"{identity:06d}" / f"{identity:06d}_c{picture % 3}_{picture}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 8, 3), np.uint8)).save(data, "JPEG")
        path.write_bytes(data.getvalue())


def command(*words: str) -> dict[str, Any]:
    """Wall time of a Python command, the largest resident memory of one of its processes, and the machine's load before."""
    load, begin = os.getloadavg()[0], time.perf_counter()
    process, resident = psutil.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            resident = max(resident, *(each.memory_info().rss for each in (process, *process.children(recursive=True))))
        time.sleep(0.05)
    assert process.returncode == 0, words
    return {"seconds": time.perf_counter() - begin, "resident": resident, "load_before": load}


def rank(folder: Path) -> None:
    """What one rank costs, after its imports: until its first batch, and from the middle of an epoch on."""
    start(folder, 0, 1)  # Pillow's and torch's first use
    begin = time.perf_counter()
    steps = start(folder, 0, 1)
    seconds = time.perf_counter() - begin
    tracemalloc.start()
    start(folder, 0, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    read = {}
    spans = {"first_batch": (0, 1), "resumed_first_batch": (steps // 2, steps // 2 + 1), "epoch": (0, steps),
             "resumed_epoch": (steps // 2, steps)}  # fmt: skip
    for name, (first, end) in spans.items():
        before = bytes_read()
        start(folder, first, end)
        read[name] = bytes_read() - before
    print(json.dumps({"seconds": seconds, "allocated": peak, "steps_per_epoch": steps, "bytes_read": read}))


def start(folder: Path, begin: int, end: int) -> int:
    """As rank 0 of one: read manifest and index, take the batches of steps ``begin`` to ``end``. Returns the epoch's steps."""
    split = read_manifest(folder).splits["train"]
    index = read_index(folder, split)
    batches, ranges = IdentityBatches(index, P, K, 0), ShardRanges(folder, split, index)
    stream = TrainStream(batches, ranges, TRANSFORM, rank=0, world=1, accumulation=1, begin=begin, end=end)
    for _ in stream.loader(0):
        pass
    return batches.steps_per_epoch


def bytes_read() -> int:
    """What this process has asked the kernel for; a mapped index is read once for its digest."""
    return int(Path("/proc/self/io").read_text().split()[1])


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        rank(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
