"""What a result was made with: package versions, and the commit of this source where it is a git checkout."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    "torch", "torchvision", "pillow", "simplejpeg", "deepspeed", "timm", "webdataset", "mlflow", "mamba-ssm", "causal-conv1d",
)  # fmt: skip


def versions() -> dict[str, str]:
    """``package_versions`` and ``commit``."""
    return package_versions() | {"commit": commit()}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """SHA-256 (hex) over the package's source files, whatever commit they come from."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cu", ".cuh", ".h")):
        digest.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def commit(folder: Path = Path(__file__).parent) -> str:
    """``git describe`` of the checkout that ``folder`` belongs to, by default this source's; ``unknown`` outside of one.

    ``-dirty`` where it has changes. An installed package below another project's checkout is no part of that.
    """
    if not _git(folder, "ls-files", "."):
        return "unknown"
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def _git(folder: Path, *words: str) -> str:
    """What git prints; nothing where it fails."""
    try:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
