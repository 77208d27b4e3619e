"""What a ledger needs now and then: new rows are taken into its summary, and old ones are pruned."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable

from otel_tokens.errors import LedgerError
from otel_tokens.ledger.retention import Pruner, Retention
from otel_tokens.ledger.schema import open_writer, reading, resolve
from otel_tokens.ledger.summary import Adder, behind

logger = logging.getLogger("otel_tokens")

BATCH = 4096
"""Rows that a writer takes into the summary in one transaction, which takes some ten milliseconds."""

_BATCHES = 3  # in one run of a writer: it catches up, but does not take the time of the program's own work
_BULK = 16_384  # rows in one transaction of a reader that waits for the summary
_BEHIND = 20_000  # rows: with fewer a query is as fast without

Connect = Callable[[], sqlite3.Connection | None]
Progress = Callable[[int, int], object]
"""Called with the number of rows in the summary, and of all."""


class Upkeep:
    """One run of a writer's upkeep, on a thread of its own. `retention` says what to prune."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    def run(self, lock: threading.RLock, connect: Connect) -> None:
        """Sum up, then prune, one step at a time under `lock`. `connect` gives None when it has to end."""
        adder = Adder(BATCH)
        try:
            for _ in range(_BATCHES):
                while not self._step(lock, connect, lambda found: behind(found) < BATCH or adder.step(found)):
                    pass
            pruner = Pruner(self._retention)
            while self._retention and not self._step(lock, connect, lambda found: not pruner.step(found)):
                pass
        except sqlite3.Error:
            pass  # busy: the next run goes on; anything worse will meet the next write

    @staticmethod
    def _step(lock: threading.RLock, connect: Connect, step: Callable[[sqlite3.Connection], bool]) -> bool:
        """Whether that was the last step."""
        with lock:
            found = connect()
            ended = found is None or step(found)
        time.sleep(0)  # a lock that is taken again at once keeps the callers waiting
        return ended


def bring_up_to_date(
    path: str | os.PathLike[str], *, at_least: int = _BEHIND, progress: Progress | None = None
) -> None:
    """Take the rows of a ledger into its summary, if it lacks `at_least` so many.

    What is done stays done: after an interruption the next call goes on. Where the file cannot be written to, nothing
    is done, and queries read the rows instead. Raises LedgerError if the file cannot be read.
    """
    place = resolve(path)
    with reading(place) as connection:
        if behind(connection) < at_least:
            return
    with contextlib.suppress(sqlite3.Error, OSError, LedgerError), contextlib.closing(open_writer(place)) as connection:
        adder = Adder(_BULK)
        logged = 0.0
        while (left := behind(connection)) > 0:
            rows = connection.execute("SELECT max(seq) FROM calls").fetchone()[0]
            if progress is not None:
                progress(rows - left, rows)
            if time.monotonic() - logged > 5 and left > _BULK:
                logged = time.monotonic()
                logger.info("ledger %s: %d of %d rows are summed up (done once)", place, rows - left, rows)
            while not adder.step(connection):
                pass
        if progress is not None:
            progress(1, 1)
