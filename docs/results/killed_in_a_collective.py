"""``launcher.train`` whose last rank dies by SIGKILL in step 31, when it has just begun to reduce a tensor with the others."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch.distributed as dist

from launcher.train import main
from vmreid.command import run
from vmreid.distributed import rank, world_size
from vmreid.engine import trainer

STEP = 30
all_reduce, seed_everything = dist.all_reduce, trainer.seed_everything
step = 0


def note_step(*numbers: int) -> None:
    global step
    step = numbers[1] if len(numbers) > 1 else 0
    seed_everything(*numbers)


def reduce_and_die(tensor: Any, *rest: Any, **named: Any) -> Any:
    work = all_reduce(tensor, *rest, **named)
    if step == STEP and rank() == world_size() - 1 and tensor.is_cuda and tensor.numel() > 1000:
        print(f"dies at {time.time()} beside {tensor.numel()} numbers to be reduced", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return work


trainer.seed_everything, dist.all_reduce = note_step, reduce_and_die
run(main)
