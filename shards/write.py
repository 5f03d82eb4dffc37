"""``python -m shards.write SOURCE [--root DIR] --out DIR``: a dataset folder, or the renderer, to tar shards."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from shards import sources
from shards.sources import FOLDER_SOURCES, Splits
from shards.writer import write_shards
from vmreid.command import Parser, run
from vmreid.errors import UserError

RENDERED = ("identities", "cameras", "pictures", "seed", "objects")


def main(arguments: Sequence[str]) -> None:
    """Parse, list the source's pictures, check them, write."""
    parser = _parser()
    given = parser.parse_args(arguments)
    least = {"workers": 1, "resize": 1, "seed": 0}
    if given.source == "synthetic":
        least |= {"identities": 4, "cameras": 2, "pictures": 2}
    for name, value in least.items():
        if (at := getattr(given, name, None)) is not None and at < value:
            parser.error(f"--{name} {at}: must be at least {value}")
    part = _part(parser, given.part)
    if given.source == "synthetic":
        settings = {name: getattr(given, name) for name in RENDERED}
        splits = sources.synthetic(**settings)
    else:
        settings, splits = _list_folder(given)
    if given.resize is not None:
        settings["resize"] = given.resize
        splits = sources.shrink_all(splits, given.resize)
    manifest = write_shards(splits, given.out, {"name": given.source, **settings}, given.workers, part)
    if manifest is None:
        print(f"part {given.part} is written; the part that ends last writes {given.out / 'manifest.json'}")
        return
    for name, split in manifest.splits.items():
        print(
            f"{name:8} {split.pictures:8} pictures {split.identities:7} identities {len(split.cameras):4} cameras "
            f"{len(split.shards):5} shards"
        )
    print(f"digest {manifest.digest}\n{given.out / 'manifest.json'}")


def _parser() -> Parser:
    parser = Parser(prog="python -m shards.write", description=__doc__)
    cores = len(os.sched_getaffinity(0))
    commands = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    rendered = commands.add_parser("synthetic", help="rendered people and vehicles; half of the identities train")
    rendered.add_argument("--identities", type=int, default=128)
    rendered.add_argument("--cameras", type=int, default=6)
    rendered.add_argument("--pictures", type=int, default=8, help="of each identity")
    rendered.add_argument("--seed", type=int, default=0)
    rendered.add_argument("--objects", choices=sorted(sources.OBJECTS), default="both", help="default: both, in turn")
    for name, source in FOLDER_SOURCES.items():
        folder = commands.add_parser(name, help=(source.pictures.__doc__ or "").splitlines()[0])
        folder.add_argument("--root", type=Path, required=True, help="the set's folder")
        for option, how in source.options.items():
            folder.add_argument(f"--{option}", **how)
        if source.published:
            folder.add_argument("--strict", action="store_true", help="counts unlike the published ones are an error")
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, required=True, help="new or empty folder, or that of an interrupted write")
        command.add_argument("--workers", type=int, default=cores, help=f"processes; default: all cores, here {cores}")
        command.add_argument("--resize", type=int, metavar="LONGEST", help="shrink larger pictures; default: bytes as they are")
        command.add_argument("--part", default="1/1", metavar="I/N", help="write the I-th of N shares; the last to end completes")
    return parser


def _part(parser: Parser, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        parser.error(f"--part {text}: must be I/N with I from 1 to N; an array job takes a whole range, such as --array=1-8")
    return int(match[1]), int(match[2])


def _list_folder(given: argparse.Namespace) -> tuple[dict[str, str | int | float | None], Splits]:
    """The settings that the manifest keeps, and the checked pictures; what is odd about them is told."""
    source = FOLDER_SOURCES[given.source]
    print(f"listing the pictures of {given.root}", file=sys.stderr)
    options = {name: getattr(given, name) for name in source.options}
    splits = source.pictures(given.root, **options)
    sources.check(splits, str(given.root))
    unlike = list(sources.unlike_published(splits, source.published(**options))) if source.published else []
    if unlike and given.strict:
        raise UserError(f"{given.root}: {'; '.join(unlike)}; take a whole copy, or leave out --strict")
    for line in (*unlike, *sources.hopeless_queries(splits)):
        print(f"warning: {given.root}: {line}", file=sys.stderr)
    settings = {name: _plain(value) for name, value in options.items() if value is not None}
    return {"root": given.root.name, **settings}, splits


def _plain(value: bool | int | str | Path) -> int | str:
    return value.name if isinstance(value, Path) else int(value) if isinstance(value, bool) else value


if __name__ == "__main__":
    run(main)
