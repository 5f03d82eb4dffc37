"""Peak memory of this rank."""

from __future__ import annotations

import resource

import torch


def peak_bytes() -> int:
    """Most bytes ever allocated on the GPU by this process, or its largest resident size where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
