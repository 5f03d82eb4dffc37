"""DeepSpeed's one door: its environment set right before it is imported, its engine made from a module and a config."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
from torch import nn


def make_engine(module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """All ranks, in a process group. The DeepSpeed engine around ``module`` and ``optimizer``."""
    deepspeed = _import_deepspeed()
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def gathered(parameters: list[nn.Parameter]) -> Any:
    """All ranks. Context in which parameters that ZeRO-3 has partitioned are whole; for the others, nothing happens."""
    return _import_deepspeed().zero.GatheredParameters(parameters)


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's own old calls
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # The shared-memory op serves inference alone. Its build takes a minute, and one killed in that build leaves a lock
    # on which every later rank waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), dist_init_required=False, verbose=False)
    return deepspeed
