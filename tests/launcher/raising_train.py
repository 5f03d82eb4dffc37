"""A stand-in for ``launcher.train`` in which rank 1 raises in its third step, while the other waits for it in a collective."""

import time

from launcher.train import main
from vmreid.command import run
from vmreid.distributed import rank
from vmreid.engine import trainer

seed = trainer.seed_everything


def seed_or_raise(*numbers: int) -> None:
    if len(numbers) > 1 and numbers[1] == 2 and rank() == 1:
        print(f"raising at {time.time()}", flush=True)
        raise ArithmeticError("the cause to be shown")
    seed(*numbers)


trainer.seed_everything = seed_or_raise
run(main)
