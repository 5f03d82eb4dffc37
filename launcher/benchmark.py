"""``python -m launcher.benchmark model --out FILE.json``: what a training step costs on this machine, in one process."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from vmreid.command import Parser, UsageError, check_out_file, run


def main(words: Sequence[str]) -> None:
    """One process."""
    parser = Parser(prog="python -m launcher.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="part", required=True, metavar="PART")
    model = commands.add_parser(
        "model", help="training steps of backbones over tokens: the DeepSpeed engine, the same loop without it, timm's ViT"
    )
    model.add_argument("--backbones", nargs="+", default=["VIT-S", "MAMBA-S", "MAMBA-V2"], metavar="NAME")
    model.add_argument("--tokens", type=int, nargs="+", default=[129, 513, 2049], metavar="N", help="2·m² + 1")
    model.add_argument("--batch_size", type=int, default=64, help="pictures; a multiple of 4")
    model.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    benchmark_model(parser.parse_args(words), shlex.join(["python", "-m", "launcher.benchmark", *words]))


def benchmark_model(given: Namespace, command: str) -> None:
    """Check, measure case by case, and keep the file whole after each."""
    from vmreid.distributed import place_from_environment, start_process_group, stop_process_group

    place = place_from_environment()
    if place.world > 1:
        raise UsageError(f"{place.world} ranks: the benchmark measures one process; start it by {command}")
    check_out_file(given.out)

    from vmreid.benchmarks.model import ModelBenchmark
    from vmreid.benchmarks.rows import Row, as_json
    from vmreid.benchmarks.table import as_text
    from vmreid.progress import Reporter
    from vmreid.run_folder import write_atomically

    benchmark = ModelBenchmark(given.backbones, given.tokens, given.batch_size, place.device)
    start_process_group(place)
    setting = benchmark.setting(command)
    rows: list[Row] = []
    with Reporter("benchmark", len(benchmark.cases)) as progress:
        for row in benchmark.rows():
            rows.append(row)
            write_atomically(given.out, json.dumps(as_json(setting, rows), indent=1, allow_nan=False) + "\n")
            median = f"{row.figures.median_ms:.1f} ms" if row.figures else row.outcome
            progress.advance(f"{row.backbone} {row.tokens} tokens {row.loop}: {median}")
    stop_process_group()
    print(f"{as_text(rows)}\n\n{setting['device']}, {setting['precision']}, batch {given.batch_size}; {given.out}")


if __name__ == "__main__":
    run(main)
