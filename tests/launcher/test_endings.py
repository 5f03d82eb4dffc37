"""How a command ends: its status and the one line that it says."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import pytest

from vmreid import command
from vmreid.command import Parser, run
from vmreid.errors import UserError


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException, *words: str, number: str = "0") -> int:
    """Status of a command that raises."""

    def main(_: Sequence[str]) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["command", *words])
    monkeypatch.setattr(command, "SECONDS_FOR_THE_FIRST", 0.0)
    monkeypatch.setenv("RANK", number)
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/d/f"),
            2,
            "error: /d/f: No space left on device; free some",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/d"), 2, "error: /d: Read-only file system; choose a place"),
        (PermissionError(errno.EACCES, "Permission denied", "/d"), 2, "error: /d: Permission denied; change its"),
    ],
)
def test_endings_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    line: str,
) -> None:
    assert ending(monkeypatch, error) == status
    complaint = capsys.readouterr().err
    assert complaint.startswith(line)
    assert complaint.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(monkeypatch, UserError("wrong"), "--debug") == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("Traceback")
    assert complaint.endswith("error: wrong\n")


def test_a_fault_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(monkeypatch, ZeroDivisionError("ours")) == 1
    complaint = capsys.readouterr().err
    assert "Traceback" in complaint
    assert "ZeroDivisionError: ours" in complaint


def test_wrong_arguments_are_told_by_rank_0_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as usage:
        Parser(prog="command").parse_args(["--nothing"])
    assert ending(monkeypatch, usage.value, number="1") == 2
    assert capsys.readouterr().err == ""
    assert ending(monkeypatch, UserError("this node only"), number="1") == 2
    assert capsys.readouterr().err == "[rank 1] error: this node only\n"
