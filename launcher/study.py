"""``python -m launcher.study FILE.yaml --out DIR``: train and evaluate what a study lists and is missing, then compare."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vmreid.command import TO_GO_ON, Parser, above_0, run
from vmreid.run_folder import RunFolder

REPORT = "report"


def main(words: Sequence[str]) -> int:
    """0; ``TO_GO_ON`` where time or a signal ended it early; 1 where a run failed. One process, which starts the others."""
    parser = Parser(prog="python -m launcher.study", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="runs, seeds and what they share")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for a folder a run, and report/")
    parser.add_argument("--data", metavar="DIR", help="shards for all runs that name none, instead of the file's own")
    parser.add_argument("--seconds", type=above_0, help="end within so many, with a checkpoint; the same command goes on")
    given = parser.parse_args(words)

    from vmreid.study.file import read_study, runs_of
    from vmreid.study.pieces import follow

    study = read_study(given.file)
    if given.data:
        study = study.model_copy(update={"data": given.data})
    given.out.mkdir(parents=True, exist_ok=True)
    runs = runs_of(study)
    course = follow(runs, given.out, study.ranks, given.seconds, lambda line: print(line, flush=True))
    if course.done and (course.pieces or not (given.out / REPORT / "study.html").is_file()):
        ended = [RunFolder(given.out / folder) for folder in course.failed]
        diverged = [folder for folder in ended if folder.non_finite()]
        _report(
            [RunFolder(given.out / each.folder) for each in course.done], given.out / REPORT, study.ranks, len(runs), diverged
        )
    for folder, reason in course.failed.items():
        print(f"failed: {folder}: {reason}")
    if course.stopped:
        again = shlex.join(["python", "-m", "launcher.study", *words])
        print(f"{course.stopped}: {len(course.done)} of {len(runs)} runs are done; go on with {again}")
        return TO_GO_ON
    print(f"{len(course.done)} of {len(runs)} runs are done; {given.out / REPORT / 'study.html'}")
    return int(bool(course.failed))


def _report(folders: Sequence[RunFolder], out: Path, ranks: int, all_runs: int, diverged: Sequence[RunFolder]) -> None:
    """Compare what is there, and write the study's summary beside the comparison."""
    from launcher import compare
    from vmreid.report.study import as_json, as_markdown, as_page, summarise
    from vmreid.run_folder import write_atomically
    from vmreid.tracking import MlflowRun

    compare.main([*(str(folder.path) for folder in folders), "--out", str(out)])
    summary = summarise(folders, ranks, all_runs, diverged)
    for name, text in (("study.json", as_json(summary)), ("study.md", as_markdown(summary)), ("study.html", as_page(summary))):
        write_atomically(out / name, text)
    tracker = MlflowRun(RunFolder(out), "study", "launcher.study")  # the comparison's own
    for path in out.glob("study.*"):
        tracker.log_artifact(path)
    tracker.close("FINISHED")
    print(as_markdown(summary))


if __name__ == "__main__":
    run(main)
