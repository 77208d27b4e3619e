"""The summary of a ledger: sums by quarter of an hour and kind of call, kept beside the rows.

Reports add up these sums instead of the rows. The rows stay the truth: `Adder` takes them into the summary in the order
of their numbers (`seq`), some thousands at a time. `meta.summed` is the last of them. A query adds the rows after it.

Tables: `kinds` has one row for each combination of `KIND`, with its sums; `by_time` splits them by quarter of an hour;
`by_tag` by the values of each of SUMMED_TAGS, for every six hours; `spans` says which rows a quarter of an hour has,
`places` which rows a session or task has; `odd` lists rows that `packed` cannot hold, which queries add one by one.
Triggers count each row that is changed or deleted in `meta.edits`. If it was not `remove` that did it, the summary
is stale, and `Adder` makes it anew.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Generator
from typing import NamedTuple

from otel_tokens.ledger.part import Part

_STEP = 256  # rows
_FORGET = 16  # each 2^16 rows that go, the sessions and times without a row are deleted too


class State(NamedTuple):
    """Rows up to `summed` are in the summary, except when it is `stale`. `edits` counts changes of rows."""

    summed: int
    edits: int
    stale: bool


def state(connection: sqlite3.Connection) -> State:
    """How far the summary is."""
    meta = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('summed', 'edits', 'edits_summed')"))
    return State(meta["summed"], meta["edits"], meta["edits"] != meta["edits_summed"])


class Adder:
    """Takes rows into the summary, `count` in one transaction, in steps short enough for others to get their turn.

    Several processes may do this at once.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._part: Part | None = None
        self._before = State(0, 0, stale=False)
        self._next = self._last = 0

    def step(self, connection: sqlite3.Connection) -> bool:
        """Do the next step; whether it ended a transaction. Raises sqlite3.Error, with nothing half done."""
        if self._part is None:
            self._part = self._begin(connection)
        if self._next <= self._last:
            end = min(self._next + _STEP, self._last + 1)
            self._part.read(connection, self._next, end - 1)
            self._next = end
            return False
        part, self._part = self._part, None
        self._write(connection, part)
        return True

    def _begin(self, connection: sqlite3.Connection) -> Part:
        self._before = state(connection)
        oldest, newest = connection.execute(
            "SELECT (SELECT min(seq) FROM calls), (SELECT max(seq) FROM calls)"
        ).fetchone()
        first = 1 if self._before.stale else self._before.summed + 1
        self._next = max(first, oldest or 1)
        self._last = min(self._next + self._count - 1, newest or 0)
        return Part()

    def _write(self, connection: sqlite3.Connection, part: Part) -> None:
        with transaction(connection):
            if state(connection) != self._before:
                return  # another process was faster, or rows were changed in the meantime
            if self._before.stale:
                for table in ("kinds", "by_time", "by_tag", "spans", "places", "odd"):
                    connection.execute(f"DELETE FROM {table}")  # noqa: S608
                connection.execute("UPDATE meta SET value = ? WHERE key = 'edits_summed'", (self._before.edits,))
            part.write(connection)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'summed'", (self._last,))


def remove(connection: sqlite3.Connection, seqs: list[int]) -> None:
    """Delete rows, from the summary too, inside a transaction. Raises sqlite3.Error."""
    before = state(connection)
    part = Part()
    part.read_numbers(connection, [seq for seq in seqs if seq <= before.summed])
    chosen = "seq IN (SELECT value FROM json_each(?))"
    for table in ("calls", "odd"):
        connection.execute(f"DELETE FROM {table} WHERE {chosen}", (json.dumps(seqs),))  # noqa: S608
    if not before.stale:
        part.write(connection, -1)
        edits = state(connection).edits
        connection.execute("UPDATE meta SET value = ? WHERE key = 'edits_summed'", (edits,))
    if min(seqs) >> _FORGET != (max(seqs) + 1) >> _FORGET:
        for table in ("places", "spans"):
            connection.execute(f"DELETE FROM {table} WHERE last < (SELECT min(seq) FROM calls)")  # noqa: S608


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """A transaction that writes; rolled back by any exception."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def behind(connection: sqlite3.Connection) -> int:
    """How many rows the summary does not have yet, at most."""
    now = state(connection)
    return _newest(connection) - (0 if now.stale else now.summed)


def _newest(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT coalesce(max(seq), 0) FROM calls").fetchone()[0]
