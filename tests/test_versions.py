"""Which commit a result names."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vmreid.versions import commit


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True).stdout


def test_a_checkout_names_its_commit_and_says_when_it_was_changed(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    digest = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert commit(tmp_path / "code") == digest
    (tmp_path / "code/a.py").write_text("2")
    assert commit(tmp_path / "code") == f"{digest}-dirty"
    installed = tmp_path / ".venv/site-packages"  # a package there is no part of the project around it
    installed.mkdir(parents=True)
    assert commit(installed) == "unknown"
