"""Calling the shard commands, and a set that they wrote."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from shard_commands import SMALL, Call

from vmreid.command import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``write`` or ``verify`` in this process: status, standard output, last line of standard error."""

    def call_main(main: Callable[[Sequence[str]], int | None], *words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["it", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            run(main)
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, (output.err.splitlines() or [""])[-1]

    return call_main


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic set written by the command line in a process of its own."""
    out = tmp_path_factory.mktemp("sets") / "new" / "set"
    command = [sys.executable, "-m", "shards.write", "synthetic", *SMALL, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(out / "manifest.json")
    return out


@pytest.fixture
def folder(rendered: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    (tmp_path / "set").mkdir()
    for path in rendered.iterdir():
        (tmp_path / "set" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "set"
