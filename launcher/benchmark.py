"""``python -m launcher.benchmark model|scan|loader|metric|rerank|extraction --out FILE.json``: what steps, scans, loading,
scoring, re-ranking and extraction cost here."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.rerank_option import add_rerank_option
from vmreid.command import Parser, UsageError, above_0, check_out_file, run

if TYPE_CHECKING:
    from vmreid.benchmarks.floors import Shape
    from vmreid.distributed import Place

R = TypeVar("R")


def main(words: Sequence[str]) -> None:
    """One process."""
    from vmreid.recipes.schema import MEMORY_GIB

    parser = Parser(prog="python -m launcher.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="part", required=True, metavar="PART")
    model = commands.add_parser(
        "model", help="training steps of backbones over tokens: the DeepSpeed engine, the same loop without it, others' networks"
    )
    model.add_argument("--backbones", nargs="+", default=["VIT-S", "MAMBA-S", "MAMBA-V2"], metavar="NAME[,KEY=VALUE]")
    model.add_argument("--tokens", type=int, nargs="+", default=[129, 513, 2049], metavar="N", help="2·m² + 1")
    model.add_argument("--batch_size", type=int, default=64, help="pictures; a multiple of 4")
    model.add_argument("--deepspeed_config", metavar="FILE", help="ZeRO stage and precision; default: the note's recipe's")
    model.add_argument("--compiled", action="store_true", help="every loop as train.compile=true has it; needs a GPU")
    scan = commands.add_parser("scan", help="SS2D's core, forward and with backward, over shapes and tokens; floors, peers")
    scan.add_argument("--shapes", type=shape, nargs="+", default=[], metavar="B,D,H,W,N", help="batch, channels, map, states")
    scan.add_argument(
        "--tokens", type=int, nargs="+", default=[129, 513, 2049, 8193], metavar="N", help="of the growth; 2·m² + 1"
    )
    scan.add_argument("--d_state", type=int, default=16, metavar="N", help="states of the growth; default: 16")
    scan.add_argument("--graphs", action="store_true", help="each call as one CUDA graph, without the host's time; needs a GPU")
    metric = commands.add_parser(
        "metric", help="exact ranks of synthetic features with their distances, beside the product alone; growth over galleries"
    )
    metric.add_argument("--queries", type=count, default=11659, metavar="N", help="default: MSMT17's")
    metric.add_argument("--gallery", type=count, nargs="+", default=[82161], metavar="N", help="default: MSMT17's")
    metric.add_argument("--dims", type=count, nargs="+", default=[384, 2048], metavar="F", help="default: 384 2048")
    metric.add_argument("--metric", choices=("euclidean", "cosine"), default="cosine", help="default: cosine")
    metric.add_argument(
        "--memory_gib",
        type=above_0,
        default=MEMORY_GIB,
        metavar="GIB",
        help=f"taken beyond the features; default: {MEMORY_GIB:g}",
    )
    peers = {
        model: "timm (where nothing is given), vmamba=PATH",
        scan: "a scan backend such as mamba_ssm, vmamba=PATH",
        metric: "argsort (torch's, of whole galleries), fast_reid=PATH",
    }
    for command, help_text in peers.items():
        command.add_argument("--against", nargs="+", action="extend", default=[], metavar="PEER", help=help_text)
    loader = commands.add_parser(
        "loader", help="images/s of the training loader, of decoding and transforming alone, of a plain folder, of webdataset"
    )
    cores = len(os.sched_getaffinity(0))
    loader.add_argument("--data", type=Path, required=True, metavar="DIR", help="written by shards.write")
    loader.add_argument("--recipe", default="note", help="gives transform, image size and batch size; default: note")
    loader.add_argument("--workers", type=int, nargs="+", default=sorted({0, 1, 2, cores}), metavar="N", help="processes")
    loader.add_argument(
        "--read", choices=["warm", "cold", "http"], default="warm",
        help="files in memory (default), on disk alone, or by a web server on loopback, as slow to answer as an object store",
    )  # fmt: skip
    rerank = commands.add_parser("rerank", help="k-reciprocal re-ranking of synthetic features of MSMT17's size: time, memory")
    rerank.add_argument("--share", type=above_0, default=1.0, metavar="X", help="of MSMT17's identities and pictures; default: 1")
    add_rerank_option(rerank, "20,6,0.3")
    rerank.set_defaults(rerank="20,6,0.3")
    extraction = commands.add_parser("extraction", help="images/s of a pass over a set's gallery, beside the forward alone")
    extraction.add_argument("--data", type=Path, required=True, metavar="DIR", help="written by shards.write")
    extraction.add_argument("--recipe", default="note", help="gives image size, batch size and precision; default: note")
    extraction.add_argument("--set", action="append", default=[], metavar="key=value", help="any other value of the recipe")
    extraction.add_argument("--backbones", nargs="+", default=["VIT-S"], metavar="NAME")
    extraction.add_argument("--workers", type=int, nargs="+", default=[cores], metavar="N", help="decoding processes")
    extraction.add_argument("--compiled", action="store_true", help="as launcher.evaluate --compiled; needs a GPU")
    for command in (model, scan, loader, metric, rerank, extraction):
        command.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    given = parser.parse_args(words)
    command_line = shlex.join(["python", "-m", "launcher.benchmark", *words])
    from vmreid.distributed import place_from_environment

    place = place_from_environment()
    if place.world > 1:
        raise UsageError(f"{place.world} ranks: the benchmark measures one process; start it by {command_line}")
    check_out_file(given.out)
    if given.part == "model":
        benchmark_model(given, command_line, place)
    elif given.part == "scan":
        if given.d_state < 1:
            parser.error(f"--d_state {given.d_state}: must be at least 1")
        benchmark_scan(given, command_line, place)
    elif given.part == "metric":
        benchmark_metric(given, command_line, place)
    elif given.part == "rerank":
        benchmark_rerank(given, command_line, place)
    else:
        if min(given.workers) < 0:
            parser.error(f"--workers {min(given.workers)}: must be at least 0")
        if given.part == "loader":
            benchmark_loader(given, command_line)
        else:
            benchmark_extraction(given, command_line, place)


def measured(
    out: Path, total: int, cases: Iterable[list[R]], as_json: Callable[[list[R]], Any], words: Callable[[list[R]], str]
) -> list[R]:
    """The rows of all cases; the file is whole after each case, which ``words`` tells."""
    from vmreid.progress import Reporter
    from vmreid.run_folder import write_atomically

    rows: list[R] = []
    with Reporter("benchmark", total) as progress:
        for case in cases:
            rows.extend(case)
            write_atomically(out, json.dumps(as_json(rows), indent=1, allow_nan=False) + "\n")
            progress.advance(words(case))
    return rows


def benchmark_model(given: Namespace, command: str, place: Place) -> None:
    """Check, measure case by case, and keep the file whole after each."""
    from vmreid.benchmarks.model import ModelBenchmark
    from vmreid.benchmarks.rows import Row, as_json
    from vmreid.benchmarks.table import as_text
    from vmreid.distributed import start_process_group, stop_process_group

    benchmark = ModelBenchmark(
        given.backbones, given.tokens, given.batch_size, given.against, place.device, given.compiled, given.deepspeed_config
    )
    start_process_group(place)
    setting = benchmark.setting(command)

    def words(case: list[Row]) -> str:
        (row,) = case
        median = f"{row.figures.median_ms:.1f} ms" if row.figures else row.outcome
        return f"{row.backbone} {row.tokens} tokens {row.loop}: {median}"

    cases = ([row] for row in benchmark.rows())
    rows = measured(given.out, len(benchmark.cases), cases, lambda rows: as_json(setting, rows), words)
    stop_process_group()
    print(f"{as_text(rows)}\n\n{setting['device']}, {setting['precision']}, batch {given.batch_size}; {given.out}")


def benchmark_scan(given: Namespace, command: str, place: Place) -> None:
    """Check, measure case by case, and keep the file whole after each."""
    from vmreid.benchmarks.scan import ScanBenchmark
    from vmreid.benchmarks.scan_rows import ScanRow, as_json, as_text

    benchmark = ScanBenchmark(given.against, given.shapes, given.tokens, given.d_state, place.device, given.graphs)
    setting = benchmark.setting(command)

    def words(case: list[ScanRow]) -> str:
        medians = [f"{row.scan} {row.training.median_ms:.2f} ms" if row.training else row.outcome for row in case]
        return f"{case[0].shape}: {', '.join(medians)}"

    rows = measured(given.out, len(benchmark.cases), benchmark.rows(), lambda rows: as_json(setting, rows), words)
    print(f"{as_text(rows, setting['backend'])}\n\n{setting['device']}, {setting['dtype']}; {given.out}")


def benchmark_metric(given: Namespace, command: str, place: Place) -> None:
    """Check, measure case by case, and keep the file whole after each."""
    from vmreid.benchmarks.metric import MetricBenchmark
    from vmreid.benchmarks.metric_rows import MetricRow, as_json, as_text
    from vmreid.distributed import start_process_group, stop_process_group

    benchmark = MetricBenchmark(
        given.queries, given.gallery, given.dims, given.metric, given.memory_gib, given.against, place.device
    )
    start_process_group(place)
    setting = benchmark.setting(command)

    def words(case: list[MetricRow]) -> str:
        medians = [f"{row.what} {row.median_s:.2f} s" for row in case]
        return f"{case[0].queries} x {case[0].gallery} x {case[0].dim}: {', '.join(medians)}"

    rows = measured(given.out, len(benchmark.cases), benchmark.rows(), lambda rows: as_json(setting, rows), words)
    stop_process_group()
    print(f"{as_text(rows)}\n\n{setting['device']}, {setting['metric']} distance; {given.out}")


def count(word: str) -> int:
    """A whole number of at least 1."""
    if not word.isdecimal() or not int(word):
        raise ArgumentTypeError(f"{word!r}: must be a whole number of at least 1")
    return int(word)


def shape(word: str) -> Shape:
    """What ``--shapes`` gets: B,D,H,W,N."""
    from vmreid.benchmarks.floors import Shape

    numbers = word.split(",")
    if len(numbers) != 5 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ArgumentTypeError(f"{word!r}: must be five positive whole numbers, such as 64,192,64,32,16")
    return Shape(*map(int, numbers))


def benchmark_loader(given: Namespace, command: str) -> None:
    """Check, time case by case, and keep the file whole after each."""
    from vmreid.benchmarks.loader import LoaderBenchmark
    from vmreid.benchmarks.loader_rows import Rate, as_json, as_text
    from vmreid.benchmarks.sources import opened
    from vmreid.recipes import load_recipe

    recipe = load_recipe(given.recipe, {}, [])
    with (
        tempfile.TemporaryDirectory(prefix="vmreid-benchmark-") as scratch,
        opened(given.read, given.data, Path(scratch)) as source,
    ):
        benchmark = LoaderBenchmark(source, recipe, given.workers)
        setting = benchmark.setting(command)
        parts_us = benchmark.parts_us()

        def words(case: list[Rate]) -> str:
            (rate,) = case
            return f"{rate.loader}, {rate.workers} workers: {rate.images_per_s:.0f} images/s"

        cases = ([rate] for rate in benchmark.rates())
        rates = measured(given.out, len(benchmark.cases), cases, lambda rates: as_json(setting, rates, parts_us), words)
    size = "x".join(map(str, recipe.data.image_size))
    about = f"{size}, batch {recipe.train.batch_size}, {given.read} reads, {setting['cores']} cores"
    print(f"{as_text(rates, parts_us)}\n\n{about}; {given.out}")


def benchmark_rerank(given: Namespace, command: str, place: Place) -> None:
    """Check, measure, write."""
    from vmreid.benchmarks.rerank import RerankBenchmark, as_json, as_text
    from vmreid.run_folder import write_atomically

    benchmark = RerankBenchmark(given.share, given.rerank, place.device)
    setting, figures = benchmark.setting(command), benchmark.measure()
    write_atomically(given.out, json.dumps(as_json(setting, figures), indent=1, allow_nan=False) + "\n")
    memory = f"peak {figures.peak_bytes / 2**30:.2f} GiB"
    print(f"{as_text(figures)}, {memory}\n\n{setting['device']}, {setting['queries']} x {setting['gallery']}; {given.out}")


def benchmark_extraction(given: Namespace, command: str, place: Place) -> None:
    """Check, measure case by case, and keep the file whole after each."""
    from vmreid.benchmarks.extraction import ExtractionBenchmark, Rate, as_json, as_text
    from vmreid.evaluation.evaluate import check_compiled
    from vmreid.models.registry import check_backbone
    from vmreid.recipes import load_recipe

    if given.compiled:
        check_compiled(place.device)
    recipe = load_recipe(given.recipe, {}, given.set)
    for name in given.backbones:
        check_backbone(recipe.model.model_copy(update={"backbone": name}))
    benchmark = ExtractionBenchmark(given.data, recipe, given.backbones, given.workers, given.compiled, place.device)
    setting = benchmark.setting(command)

    def words(case: list[Rate]) -> str:
        return f"{case[-1].backbone}: {', '.join(f'{rate.what} {rate.images_per_s:.0f} images/s' for rate in case)}"

    rates = measured(given.out, len(benchmark.cases), benchmark.rates(), lambda rates: as_json(setting, rates), words)
    print(f"{as_text(rates)}\n\n{setting['device']}, batch {setting['batch_size']}, {setting['precision']}; {given.out}")


if __name__ == "__main__":
    run(main)
