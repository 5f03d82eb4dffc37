"""What every command shares: its parser, and how it ends when something goes wrong.

A user's mistake gives one line on standard error and exit status 2, an interruption 130, anything else a traceback and
1. On several ranks the rank that failed first tells, the others keep still and end with ``RANK_LOST``.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vmreid.errors import UserError
from vmreid.lifeline import RANK_LOST

TO_GO_ON = 75  # status of a run that a signal has stopped with a checkpoint: EX_TEMPFAIL of sysexits.h
SECONDS_FOR_THE_FIRST = 3.0  # what a rank waits before it speaks, where another has more to say
ANOTHER_RANK_ENDED = re.compile(
    r"connection (was likely )?(closed|reset|refused)|broken pipe|remote process exit|ncclRemoteError",
    re.IGNORECASE,
)
WAYS_OUT = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some of your quota or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
}


class UsageError(UserError):
    """Wrong arguments. All ranks see the same ones, so rank 0 alone tells."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with the nearest name for an unknown option."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "allow_abbrev": False})
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.split())}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Unknown options first: argparse would rather complain about required ones that are misspelt."""
        known = sorted(set(self._options()))
        given = sys.argv[1:] if args is None else list(args)
        given = given[: given.index("--")] if "--" in given else given
        for word in given:
            name = word.split("=", 1)[0]
            if name.startswith("--") and name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                self.error(f"unknown option {name}" + (f", did you mean {near[0]}?" if near else ""))
        return super().parse_known_args(args, namespace)

    def _options(self) -> Iterator[str]:
        """Names of all options, those of subcommands too."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._options()


def above_0(word: str) -> float:
    """What an option that wants a number above 0 gets."""
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word!r}: must be a number above 0")
    return number


def check_out_file(out: Path, option: str = "--out") -> None:
    """Find out before the work whether the result can be written. Raises UserError."""
    if out.is_dir():
        raise UserError(f"{option} {out} is a folder; give the name of a file")
    if not out.parent.is_dir():
        raise UserError(f"{option} {out}: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{option} {out}: the folder {out.parent} cannot be written; choose another place")


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call ``main`` with the command line, turn what it raises into words and a status, and exit.

    ``--local_rank=N``, which the deepspeed launcher puts in front, is taken out; ``--debug`` anywhere adds tracebacks.
    """
    words = [word for word in sys.argv[1:] if not word.startswith(("--local_rank=", "--local-rank="))]
    debug = "--debug" in words
    try:
        status = main(words) or 0
    except KeyboardInterrupt:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would interrupt the telling of the first
        _tell_once("interrupted", debug, first=True)
        signal.signal(signal.SIGINT, before)
        _leave(130)
    except UserError as error:
        _tell_once(f"error: {' '.join(str(error).split())}", debug, first=not isinstance(error, UsageError))
        _leave(2)
    except OSError as error:
        if error.errno in WAYS_OUT:
            place = error.filename2 or error.filename or "writing"
            _tell_once(f"error: {place}: {error.strerror}; {WAYS_OUT[error.errno]}", debug, first=True)
            _leave(2)
        _crash(error, debug)
    except Exception as error:
        _crash(error, debug)
    _leave(status)


def _tell_once(line: str, debug: bool, *, first: bool) -> None:
    """Print a line that several ranks may want to print.

    Within the process group the first rank that comes here prints it. Before the group starts rank 0 does; another
    rank waits, so that a launcher that ends the others has done so, and then prints only what may be its own trouble
    (``first``).
    """
    rank, together = _place()
    if together:
        if not _first_to_tell():
            return
        line = f"[rank {rank}] {line}"
    elif rank:
        time.sleep(SECONDS_FOR_THE_FIRST)
        if not first:
            return
        line = f"[rank {rank}] {line}"
    if debug:
        traceback.print_exc()
    print(line, file=sys.stderr, flush=True)
    if together:
        time.sleep(0.5)  # rank 0 may hold the store: let the others find that this is told


def _crash(error: BaseException, debug: bool) -> NoReturn:
    """End after an error that nobody foresaw, or after another rank's end."""
    rank, together = _place()
    if together and ANOTHER_RANK_ENDED.search(str(error)):
        time.sleep(SECONDS_FOR_THE_FIRST)
        if debug:
            traceback.print_exc()
        print(f"[rank {rank}] stopped: another rank ended first", file=sys.stderr)
        _leave(RANK_LOST)
    else:
        text = "".join(traceback.format_exception(error))
        print(f"[rank {rank}] {text}" if together or rank else text, end="", file=sys.stderr)
    _leave(1)


def _leave(status: int) -> NoReturn:
    """Exit; at once on several ranks: teardown could wait for a rank that is gone, and gloo's threads abort some exits."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _place()[1] or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        os._exit(status)
    raise SystemExit(status)


def _place() -> tuple[int, bool]:
    """This process's rank, and whether it is in a process group with others. Imports torch only where that matters."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized() and dist.get_world_size() > 1:
            return dist.get_rank(), True
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))), False


def _first_to_tell() -> bool:
    """Whether no other rank of the process group has told its error yet; also true where that cannot be found out."""
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        return bool(_get_default_store().add("error told", 1) == 1)
    except Exception:  # the store went with its rank: better told twice than never
        return True
