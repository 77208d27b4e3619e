"""What a writer does now and then: take new rows into the summary, and prune old ones."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable

from otel_tokens.ledger.retention import Pruner, Retention
from otel_tokens.ledger.summary import Adder, behind

BATCH = 4096
"""Rows that are taken into the summary in one transaction, which takes some ten milliseconds."""

_BATCHES = 3  # in one run: it catches up with an older file, but does not take the time of the program's own work


class Upkeep:
    """Runs on a thread of its own, one short step at a time under `lock`.

    `connect` gives the connection, None when it is time to end.
    """

    def __init__(
        self, retention: Retention, lock: threading.RLock, connect: Callable[[], sqlite3.Connection | None]
    ) -> None:
        self._retention = retention
        self._lock = lock
        self._connect = connect
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start, unless it is under way."""
        if self._thread is not None and self._thread.is_alive():
            return
        with contextlib.suppress(RuntimeError):  # no new threads while the interpreter shuts down
            thread = threading.Thread(target=self._run, name="otel-tokens-ledger", daemon=True)
            thread.start()
            self._thread = thread

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, for `timeout` seconds at most."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        adder, pruner = Adder(BATCH), Pruner(self._retention)
        try:
            for _ in range(_BATCHES):
                self._repeat(lambda found: behind(found) < BATCH or adder.step(found))
            if self._retention:
                self._repeat(lambda found: not pruner.step(found))
        except sqlite3.Error:
            pass  # busy: the next run goes on; anything worse will meet the next write

    def _repeat(self, step: Callable[[sqlite3.Connection], bool]) -> None:
        """Until `step` says that it has ended."""
        ended = False
        while not ended:
            with self._lock:
                found = self._connect()
                ended = found is None or step(found)
            time.sleep(0)  # a lock that is taken again at once keeps the callers waiting
