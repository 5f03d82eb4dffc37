"""``python -m launcher.compare RUN… --out DIR``: the note's table with measured columns, as text, markdown, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vmreid.command import Parser, run


def main(words: Sequence[str]) -> None:
    """Rank 0 compares; further ranks have nothing to do."""
    parser = Parser(prog="python -m launcher.compare", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="trained and evaluated runs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for report.html, report.md and report.json")
    given = parser.parse_args(words)

    from vmreid.distributed import place_from_environment
    from vmreid.run_folder import RunFolder, write_atomically

    place = place_from_environment()
    if place.rank:
        return
    folders = [RunFolder(path) for path in given.runs]
    for folder in folders:  # before the measuring, which takes a while
        folder.recipe()
        folder.metrics()
    given.out.mkdir(parents=True, exist_ok=True)

    from vmreid.report.render import as_markdown, as_page, as_text
    from vmreid.report.rows import compare_runs
    from vmreid.tracking import MlflowRun

    comparison = compare_runs(folders, place.device)
    reports = {
        "report.html": as_page(comparison),
        "report.md": as_markdown(comparison),
        "report.json": json.dumps(comparison.as_json(), indent=1) + "\n",
    }
    for name, text in reports.items():
        write_atomically(given.out / name, text)
    names = ", ".join(row.name for row in comparison.rows)
    tracker = MlflowRun(RunFolder(given.out), f"comparison {names}", "launcher.compare")
    for name in reports:
        tracker.log_artifact(given.out / name)
    tracker.describe(reports["report.md"])
    tracker.close("FINISHED")
    print(f"{as_text(comparison)}\n\nreport: {given.out / 'report.html'}")


if __name__ == "__main__":
    run(main)
