"""A reader's part in the summary: it takes in what the writers have not, and everything of an older file."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable

from otel_tokens.errors import LedgerError
from otel_tokens.ledger.migrations import DROP_INDEXES
from otel_tokens.ledger.schema import open_writer, reading, resolve
from otel_tokens.ledger.summary import Adder, behind
from otel_tokens.safely import interruption

logger = logging.getLogger("otel_tokens")

_BULK = 16_384  # rows in one transaction
_BEHIND = 20_000  # rows: with fewer a query is as fast without
_LOG_EVERY = 5.0  # seconds

Progress = Callable[[int, int], object]
"""Called with the number of rows in the summary, and of all."""


def bring_up_to_date(
    path: str | os.PathLike[str], *, at_least: int = _BEHIND, progress: Progress | None = None
) -> None:
    """Take the rows of a ledger into its summary, if it lacks at least so many.

    What is done stays done: after an interruption the next call goes on. Where the file cannot be written to, nothing
    is done, and queries read the rows instead. Raises LedgerError if the file cannot be read.
    """
    place = resolve(path)
    with reading(place) as connection:
        if behind(connection) < at_least:
            return
    try:
        with contextlib.closing(open_writer(place)) as connection:
            _catch_up(connection, place, progress)
    except (sqlite3.Error, OSError, LedgerError) as error:
        raised = interruption(error)
        if raised is not None:
            raise raised from None
        logger.info("ledger %s: its rows are read one by one, the summary cannot be written (%s)", place, error)


def _catch_up(connection: sqlite3.Connection, path: str, progress: Progress | None) -> None:
    adder = Adder(_BULK)
    logged = time.monotonic()
    while (left := behind(connection)) > 0:
        rows = connection.execute("SELECT max(seq) FROM calls").fetchone()[0]
        if progress is not None:
            progress(rows - left, rows)
        if time.monotonic() > logged + _LOG_EVERY:
            logged = time.monotonic()
            logger.info("ledger %s: %d of %d rows are summed up; this is done once", path, rows - left, rows)
        while not adder.step(connection):
            pass
    for statement in DROP_INDEXES:
        connection.execute(statement)
