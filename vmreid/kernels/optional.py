"""Whether an optional CUDA package runs here, and why (not)."""

from __future__ import annotations

from collections.abc import Callable

import torch


def imports(package: str, door: Callable[[], object]) -> tuple[bool, str]:
    """Try ``door``, which imports what is used of ``package`` with its CUDA extension."""
    if not torch.cuda.is_available():
        return False, f"{package} needs CUDA, and torch sees none"
    try:
        door()
    except Exception as error:  # a build for another torch or CUDA fails in many ways; all of them mean "not here"
        return False, f"{package} does not import ({type(error).__name__}: {' '.join(str(error).split())})"
    return True, f"{package} imports"
