"""A set that the shard commands wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from shard_commands import SMALL

ROOT = Path(__file__).parents[2]


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
