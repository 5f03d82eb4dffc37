"""A line between the ranks that breaks when one dies.

gloo tells the others of it. NCCL on one host does not: they wait in their collective, deaf to SIGTERM, and a launcher that ends
them one after the other takes half a minute for each. So every rank holds a connection to rank 0; the kernel closes it with
its process, whatever ended that, and all others end by themselves.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable

RANK_LOST = 74  # status where another rank went without a word: EX_IOERR
GRACE_S = 5.0  # for what a rank that still can has to tell or to save by itself
SECONDS_TO_MEET = 60.0
LEAVES, LOST = b".", b"!"


def hold(rank: int, world: int, master: str, share: Callable[[int | None], int]) -> Callable[[], None]:
    """All ranks. Hold the line from now on; what is returned lets go of it, and must be called before a rank leaves in peace.

    ``master``: rank 0's host; ``share``: hands rank 0's value to all. When a rank dies, those that have not left or ended by
    themselves ``GRACE_S`` later end with ``RANK_LOST``, and rank 0 tells which one it was. Raises OSError where the ranks cannot
    connect within a minute.
    """
    if rank == 0:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, backlog=world, dualstack_ipv6=both) as server:
            share(server.getsockname()[1])
            server.settimeout(SECONDS_TO_MEET)
            ends = dict(_accept(server) for _ in range(world - 1))
    else:
        ends = {0: socket.create_connection((master, share(None)), SECONDS_TO_MEET)}
        ends[0].sendall(rank.to_bytes(4, "big"))
    for end in ends.values():
        end.settimeout(None)
    left = threading.Event()
    os.register_at_fork(after_in_child=lambda: _close(ends.values()))  # a worker outlives its rank by seconds
    threading.Thread(target=_watch, args=(rank, ends, left), name="lifeline", daemon=True).start()

    def let_go() -> None:
        left.set()
        _send(ends.values(), LEAVES)

    return let_go


def _accept(server: socket.socket) -> tuple[int, socket.socket]:
    """A rank and the connection to it."""
    end, _ = server.accept()
    end.settimeout(SECONDS_TO_MEET)
    return int.from_bytes(end.recv(4, socket.MSG_WAITALL), "big"), end


def _watch(rank: int, ends: dict[int, socket.socket], left: threading.Event) -> None:
    """Until all others have left, or one is gone."""
    with selectors.DefaultSelector() as selector:
        for other, end in ends.items():
            selector.register(end, selectors.EVENT_READ, other)
        while selector.get_map():
            for key, _ in selector.select():
                said = _receive(ends[key.data])
                if said != LEAVES:
                    _send(ends.values(), LOST)
                    time.sleep(GRACE_S)
                    if not left.is_set():
                        _end(rank, None if said == LOST else key.data)
                    return
                selector.unregister(key.fileobj)


def _end(rank: int, lost: int | None) -> None:
    """At once: the process's other threads wait for what will not come. ``lost``: None where rank 0 tells it."""
    if lost is not None:
        words = f"rank {lost} is gone without a word; its node may say why. Go on from the last checkpoint with --resume auto"
        print(f"[rank {rank}] stopped: {words}", file=sys.stderr, flush=True)
    os._exit(RANK_LOST)


def _receive(end: socket.socket) -> bytes:
    """One byte; none where the other side is gone."""
    try:
        return end.recv(1)
    except OSError:
        return b""


def _send(ends: Iterable[socket.socket], word: bytes) -> None:
    for end in ends:
        try:
            end.sendall(word)
        except OSError:
            continue  # that side is gone, which is told of elsewhere


def _close(ends: Iterable[socket.socket]) -> None:
    for end in ends:
        end.close()
