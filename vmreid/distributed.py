"""Ranks: who am I, how many are we, and the few collectives that the project uses.

Works under the ``deepspeed`` and ``torchrun`` launchers (RANK, WORLD_SIZE, ...), under ``srun`` with one task a rank
(SLURM_PROCID, SLURM_NTASKS, ...), and as one plain process without any of them.
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed.rendezvous import rendezvous

from vmreid.errors import UserError
from vmreid.lifeline import hold

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=30)
SECONDS_TO_BEGIN = 600.0  # from the first rank to the last: nodes may be started by hand, and rank 0 may have a set to write
SECONDS_A_TRY = 15.0  # to connect: torch sleeps longer the longer it has tried, and past its limit by more than that
SECONDS_BEFORE_A_WORD = 30.0  # of a node that waits for others
_let_go: list[Callable[[], None]] = []  # of the line between the ranks


@dataclass(frozen=True)
class Place:
    """Where this process stands: ``rank`` of ``world`` ranks, ``local_rank`` on its node."""

    rank: int
    world: int
    local_rank: int

    @property
    def device(self) -> torch.device:
        """The accelerator of this rank, or the CPU where there is none."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def own_device() -> torch.device:
    """The accelerator of a process that is no rank yet, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place_from_environment() -> Place:
    """Read rank, world size and local rank from the launcher's environment, else from Slurm's, else one process.

    Sets RANK, WORLD_SIZE and LOCAL_RANK, which DeepSpeed reads too.
    """
    environment = os.environ
    slurm = "RANK" not in environment and "SLURM_STEP_ID" in environment
    for name, slurm_name, alone in (
        ("RANK", "SLURM_PROCID", "0"),
        ("WORLD_SIZE", "SLURM_NTASKS", "1"),
        ("LOCAL_RANK", "SLURM_LOCALID", "0"),
    ):
        environment.setdefault(name, environment[slurm_name] if slurm else alone)
    place = Place(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    expected = environment.get("EXPECT_WORLD_SIZE")
    if expected and int(expected) != place.world:
        raise UserError(
            f"{place.world} ranks started, EXPECT_WORLD_SIZE is {expected}; see why the launcher lost nodes (a missing "
            "hostfile makes it go on alone), or unset EXPECT_WORLD_SIZE"
        )
    return place


def start_process_group(place: Place) -> None:
    """All ranks. Join the default group (NCCL for tensors on GPUs, gloo for those on the CPU); no-op if joined.

    Raises UserError where ranks do not meet within ``SECONDS_TO_BEGIN``.
    """
    if dist.is_initialized():
        return
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _ranks_on_this_node(place)))
    backend = "cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo"
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, store=_meet(place), rank=place.rank, world_size=place.world, timeout=TIMEOUT)
        if place.device.type == "cuda" and place.world > 1:  # NCCL does not tell of a rank that died; gloo does
            _let_go.append(hold(place.rank, place.world, os.environ["MASTER_ADDR"], from_rank_0))
    else:  # one plain process: a store of its own, so that no port is taken
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=TIMEOUT)


def _meet(place: Place) -> Store:
    """All ranks. What they find each other by. A rank of another node may have ended before it came here, and cannot say so."""
    at = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
    awaited = f"rank 0 to answer at {at}" if place.rank else f"the other {place.world - 1} ranks to come to {at}"
    word = threading.Timer(SECONDS_BEFORE_A_WORD, print, (f"waiting for {awaited}",), {"file": sys.stderr, "flush": True})
    word.daemon = True
    if place.local_rank == 0:
        word.start()
    end = time.monotonic() + SECONDS_TO_BEGIN
    try:
        while (store := _store(place)) is None:
            if time.monotonic() >= end:
                raise UserError(
                    f"waited {SECONDS_TO_BEGIN:.0f} s for {awaited}; see what the other nodes have printed, and that "
                    "MASTER_ADDR and MASTER_PORT are the first one's"
                )
    finally:
        word.cancel()
    store.set_timeout(TIMEOUT)
    return store


def _store(place: Place) -> Store | None:
    """Rank 0 opens it and waits for all others; another rank tries to connect for a while. None where nobody came."""
    seconds = min(SECONDS_A_TRY, SECONDS_TO_BEGIN) if place.rank else SECONDS_TO_BEGIN
    try:
        store: Store = next(rendezvous("env://", place.rank, place.world, timeout=datetime.timedelta(seconds=seconds)))[0]
    except dist.DistError as error:
        if "timed out after" in str(error).lower():  # else a port that is taken, or something else that answers there
            return None
        raise
    return store


def _ranks_on_this_node(place: Place) -> int:
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):  # torchrun, deepspeed, srun
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return place.world


def free_port() -> int:
    """A port of this machine at which nobody listened a moment ago: for ranks to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def stop_process_group() -> None:
    """All ranks. Leave the default group if there is one, rank 0 first: it may have more to write and to tell, and srun ends it
    a minute after another has left, or at once where that left with a status."""
    if dist.is_initialized():
        from_rank_0(None)
        while _let_go:
            _let_go.pop()()
        dist.destroy_process_group()


def world_size() -> int:
    """Ranks of the current group; 1 where there is none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This rank's number in the current group; 0 where there is none."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """All ranks. Sum ``values`` (same shape everywhere) in place and return it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def concatenate_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """All ranks. Concatenate along axis 0 in rank order; the lengths may differ, also be 0.

    The other axes and the dtype must agree. No gradient.
    """
    if world_size() == 1:
        return values
    lengths = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(values)], dtype=torch.int64, device=values.device))
    sizes = [int(length) for length in lengths]
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def from_rank_0(value: T | None) -> T:
    """All ranks. Rank 0's ``value`` (picklable) on every rank; what the others give is ignored."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return cast(T, box[0])
