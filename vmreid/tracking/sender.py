"""Metrics on their way to the store, in a thread of their own: training never waits for a store that is slow or away."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable

Step = tuple[int, int, dict[str, float]]  # step, time in ms, values
AT_ONCE = 50  # steps in a request
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before a store that failed is tried again


class Sender:
    """Sends what is ``put``, in order, by ``send``. What ``send`` raises is tried again, and told once; ``store`` names it."""

    def __init__(self, send: Callable[[list[Step]], None], store: str) -> None:
        self._send, self._store = send, store
        self._waiting: deque[Step] = deque()
        self._changed = threading.Condition()
        self._closing, self._wait = False, 0.0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, step: int, values: dict[str, float]) -> None:
        """Returns at once."""
        with self._changed:
            self._waiting.append((step, int(time.time() * 1000), values))
            self._changed.notify()

    def close(self, seconds: float) -> list[Step]:
        """Send what is waiting, for so long at most; what could not be."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            return list(self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_send, timeout=self._wait or None)
                some = [self._waiting[number] for number in range(min(AT_ONCE, len(self._waiting)))]
                last_try = self._closing
            if not some:  # at the end
                return
            try:
                self._send(some)
            except Exception as error:
                if last_try:
                    return
                self._failed(error)
                continue
            if self._wait:
                print(f"MLflow store {self._store}: reached again", file=sys.stderr)
            self._wait = 0.0
            with self._changed:
                for _ in some:
                    self._waiting.popleft()

    def _may_send(self) -> bool:
        return self._closing or (bool(self._waiting) and not self._wait)

    def _failed(self, error: Exception) -> None:
        if not self._wait:
            reason = " ".join(str(error).split())[:200]
            print(f"MLflow store {self._store}: {reason}; training goes on, its metrics wait", file=sys.stderr)
        self._wait = min(LONGEST_WAIT, 2 * self._wait or FIRST_WAIT)
