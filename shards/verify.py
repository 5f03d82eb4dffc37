"""``python -m shards.verify DIR``: every digest, every picture, every count; exit 1 and a list where something is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from shards.faults import find_faults
from vmreid.command import Parser, check_out_file, run
from vmreid.data.manifest import parse_manifest
from vmreid.run_folder import write_atomically


def main(arguments: Sequence[str]) -> int:
    """Print every fault found; 1 where there is any. A set without faults is drawn where ``--sheet`` asks for it."""
    parser = Parser(prog="python -m shards.verify", description=__doc__)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--workers", type=int, default=cores, help=f"processes; default: all cores, here {cores}")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw a contact sheet: identities x cameras")
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers {given.workers}: must be at least 1")
    if given.sheet:
        check_out_file(given.sheet, "--sheet")
    manifest = parse_manifest(given.folder)
    faults = 0
    for fault in find_faults(given.folder, manifest, given.workers):
        print(fault)
        faults += 1
    pictures = sum(split.pictures for split in manifest.splits.values())
    print(f"{given.folder}: {pictures} pictures, {faults} faults, digest {manifest.digest}")
    if given.sheet and faults:
        print(f"{given.sheet}: not drawn of a set with faults")
    elif given.sheet:
        from vmreid.data.contact_sheet import draw_contact_sheet

        write_atomically(given.sheet, draw_contact_sheet(given.folder, manifest))
        print(given.sheet)
    return 1 if faults else 0


if __name__ == "__main__":
    run(main)
