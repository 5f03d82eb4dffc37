"""The tables of docs/scale.md: measured steps, bytes and heads, and assumed links: ``python docs/results/scale.py``."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NODE, WITHIN, ACROSS, LATENCY = 8, 300e9, 40e9, 20e-6  # GPUs a node; bytes/s that a GPU sends and gets; s a call and doubling
WORLDS = (8, 64, 512)
STEPS = {  # ms of a compiled step on one H200 at 256 x 128, zero0_bf16, through the engine: training_step.md
    ("VIT-S", 64): 8.78, ("VIT-S", 512): 39.86, ("VMAMBA-T", 64): 19.31, ("VMAMBA-T", 512): 112.05,
}  # fmt: skip
SENT = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}  # times (W - 1) / W of a message
PICTURE_BYTES, CORE_S = 15_000, 2.5e-3  # of a JPEG of 256 x 128; to read, decode and transform it: loader.md


def read(name: str) -> Any:
    return json.loads((HERE / name).read_text())


def communication(counts: dict[str, int], world: int) -> float:
    """Seconds of a step's collectives, one after the other, none hidden behind computing."""
    link = WITHIN if world <= NODE else ACROSS
    sent = sum(times * counts.get(name, 0) * (world - 1) / world for name, times in SENT.items())
    calls = sum(counts.get(f"{name} calls", 0) for name in SENT)
    return sent / link + calls * LATENCY * math.log2(world)


def head_ms(batch: int, classes: int = 1000) -> float:
    """Of the head and the losses for a global batch, between what was measured; beyond that as its square."""
    rows = [(row["batch"], row["median_ms"]) for row in read("head_time_h100.json")["rows"] if row["classes"] == classes]
    if batch >= rows[-1][0]:
        return float(rows[-1][1]) * (batch / rows[-1][0]) ** 2
    (low, first), (high, last) = next(pair for pair in itertools.pairwise(rows) if pair[1][0] >= batch)
    return float(first + (last - first) * (batch - low) / (high - low))


def main() -> None:
    counts = read("bytes_a_step.json")
    print("| | parameters | ZeRO-0 | ZeRO-1, ZeRO-2 | ZeRO-3 |\n|---|---|---|---|---|")
    for backbone in ("VIT-S", "VIT-B", "MAMBA-V2", "VMAMBA-T"):
        each = [counts[f"{backbone} zero{stage}_bf16"] for stage in (0, 1, 3)]
        sent = (sum(times * count.get(name, 0) for name, times in SENT.items()) / 1e6 for count in each)
        print(f"| {backbone} | {each[0]['parameters'] / 1e6:.1f} M |", " | ".join(f"{mb:.0f} MB" for mb in sent), "|")
    print("\n| pictures a GPU | GPUs | step alone | collectives, ZeRO-0 / 1 / 3 | head for all | efficiency, ZeRO-0 / 1 / 3 |")
    print("|---|---|---|---|---|---|")
    for (backbone, pictures), step in STEPS.items():
        for world in WORLDS:
            wire = [1000 * communication(counts[f"{backbone} zero{stage}_bf16"], world) for stage in (0, 1, 3)]
            head = head_ms(pictures * world) - head_ms(pictures)
            shares = (step / (step + each + head) for each in wire)
            print(
                f"| {backbone}, {pictures} | {world} | {step:.1f} ms | {' / '.join(f'{each:.1f}' for each in wire)} ms | "
                f"+{head:.0f} ms | {' / '.join(f'{share:.2f}' for share in shares)} |"
            )
    print("\n| | pictures/s a GPU | shards, a node | shards, 512 GPUs | cores a GPU |\n|---|---|---|---|---|")
    for (backbone, pictures), step in STEPS.items():
        rate = 1000 * pictures / step
        node, everywhere = (gpus * rate * PICTURE_BYTES for gpus in (NODE, 512))
        bandwidths = f"{node / 1e9:.1f} GB/s | {everywhere / 1e9:.0f} GB/s"
        print(f"| {backbone}, {pictures} | {rate:,.0f} | {bandwidths} | {rate * CORE_S:.0f} |")


if __name__ == "__main__":
    main()
