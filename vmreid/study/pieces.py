"""The study's course: one piece after the other, until all is there, the time is up, or somebody asks for an end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from vmreid.command import TO_GO_ON
from vmreid.distributed import own_device
from vmreid.run_folder import RunFolder
from vmreid.study.file import Run
from vmreid.study.missing import Missing, missing_of
from vmreid.study.processes import Ranks

SECONDS_TO_SAVE = 30.0  # before the end of the time given, for a checkpoint
KILLED = (-signal.SIGUSR1, -signal.SIGTERM)  # by the signal itself, before or after the training that waits for it
LAST_LINES = 3
Say = Callable[[str], None]
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass
class Course:
    """What came of it: runs that are done, those that failed by folder; ``stopped`` says why it ended early, or nothing.

    ``pieces``: how many were done now.
    """

    done: list[Run] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    pieces: int = 0


def follow(runs: Sequence[Run], out: Path, ranks: int, seconds: float | None, say: Say) -> Course:
    """Train and evaluate what is missing, in ``out``; at most about ``seconds``.

    Raises UserError before anything is trained where an entry cannot be, or does not fit what its folder holds.
    """
    device = own_device()
    missing = {run.folder: missing_of(run, out, ranks, device) for run in runs}
    with _Clock(seconds) as clock:
        return _follow(runs, out, ranks, device, missing, clock, say)


def _follow(
    runs: Sequence[Run], out: Path, ranks: int, device: torch.device, missing: dict[str, Missing], clock: _Clock, say: Say
) -> Course:
    course, took = Course(), {kind: list[float]() for kind in Missing}
    for number, run in enumerate(runs, 1):
        folder = RunFolder(out / run.folder)
        while (todo := missing[run.folder]) is not Missing.NOTHING:
            if clock.why():
                course.stopped = clock.why()
                return course
            say(f"[{number}/{len(runs)}] {run.folder}: {todo.value}{_left(runs[number - 1 :], missing, took)}")
            begin = time.monotonic()
            code, asked = _piece(run, folder, todo, ranks, clock)
            spent = time.monotonic() - begin
            if asked and code in (TO_GO_ON, *KILLED):
                course.stopped = asked
                return course
            missing[run.folder] = todo if code else missing_of(run, out, ranks, device)
            if missing[run.folder] is todo:  # also where it says that all is well: it would begin again and again
                last = "; ".join(_log(folder).read_text().splitlines()[-LAST_LINES:])
                course.failed[run.folder] = f"{todo.value} ended with status {code}: {last}"
                say(f"{run.folder}: {course.failed[run.folder]} ({_log(folder)})")
                break
            course.pieces += 1
            took[todo].append(spent)
            score = f", mAP {folder.metrics()['mAP']:.3f}" if missing[run.folder] is Missing.NOTHING else ""
            say(f"{run.folder}: {todo.value} took {spent:.0f} s{score}")
        else:
            course.done.append(run)
    return course


def _piece(run: Run, folder: RunFolder, todo: Missing, ranks: int, clock: _Clock) -> tuple[int, str]:
    """The exit code, and why it was asked to stop, if it was."""
    training = ("launcher.train", [*run.words(), "--out", str(folder.path), "--resume", "auto"])
    module, words = training if todo is Missing.TRAINING else ("launcher.evaluate", ["--run", str(folder.path)])
    processes, asked = Ranks(module, words, ranks, _log(folder)), ""
    while (code := processes.code()) is None:
        if clock.why() and not asked:
            asked = clock.why()
            processes.ask_to_stop()
        time.sleep(0.1)
    return code, asked


def _log(folder: RunFolder) -> Path:
    return folder.path.with_name(f"{folder.path.name}.log")


def _left(runs: Sequence[Run], missing: dict[str, Missing], took: dict[Missing, list[float]]) -> str:
    """How long what is left will take, once a piece of each kind has been timed."""
    if not took[Missing.TRAINING] or not took[Missing.EVALUATION]:
        return ""
    means = {kind: sum(each) / max(1, len(each)) for kind, each in took.items()}
    seconds = sum(
        means[Missing.EVALUATION] + (means[Missing.TRAINING] if missing[run.folder] is Missing.TRAINING else 0)
        for run in runs
        if missing[run.folder] is not Missing.NOTHING
    )
    return f"; about {seconds / 60:.0f} min left"


class _Clock:
    """Why to stop, if there is a reason: the time given is nearly up, or a signal came."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds - SECONDS_TO_SAVE
        self._signal = ""
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def __enter__(self) -> _Clock:
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name

    def why(self) -> str:
        if self._signal:
            return self._signal
        return "the time given is up" if self._end is not None and time.monotonic() > self._end else ""
