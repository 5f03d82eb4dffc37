"""``python -m shards.write SOURCE [--root DIR] --out DIR``: a dataset folder, or the renderer, to tar shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from shards import sources
from shards.writer import write_shards
from vmreid.command import Parser, run

FOLDER_SOURCES = {"image_folder": sources.image_folder, "vehicle_khoa": sources.vehicle_khoa}


def main(arguments: Sequence[str]) -> None:
    """Parse, list the source's pictures, check them, write."""
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
        folder = commands.add_parser(name, help=(source.__doc__ or "").splitlines()[0])
        folder.add_argument("--root", type=Path, required=True)
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, required=True, help="new or empty folder")
        command.add_argument("--workers", type=int, default=cores, help=f"processes; default: all cores, here {cores}")
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers {given.workers}: must be at least 1")
    if given.source == "synthetic":
        for name, least in (("identities", 4), ("cameras", 2), ("pictures", 2), ("seed", 0)):
            if getattr(given, name) < least:
                parser.error(f"--{name} {getattr(given, name)}: must be at least {least}")
        settings = {name: getattr(given, name) for name in ("identities", "cameras", "pictures", "seed", "objects")}
        splits = sources.synthetic(**settings)
    else:
        settings = {"root": given.root.name}
        splits = FOLDER_SOURCES[given.source](given.root)
        sources.check(splits, str(given.root))
    manifest = write_shards(splits, given.out, {"name": given.source, **settings}, given.workers)
    for name, split in manifest.splits.items():
        print(
            f"{name:8} {split.pictures:8} pictures {split.identities:7} identities {len(split.cameras):4} cameras "
            f"{len(split.shards):5} shards"
        )
    print(f"digest {manifest.digest}\n{given.out / 'manifest.json'}")


if __name__ == "__main__":
    run(main)
