"""What a ledger keeps: the oldest rows go, in small transactions, and stay in the totals."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass

from otel_tokens.ledger import summary, totals

_BATCH = 200  # rows per transaction: others who write wait a few milliseconds at most
_WINDOW = 10_000  # rows, the oldest, searched for expired ones: there is no index by time, writes would pay for it
_PAGES = 256  # freed pages given back to the file system per step
_LOW = 0.9  # prune to this share of the size allowed, so as not to prune all the time


@dataclass(frozen=True, slots=True)
class Retention:
    """`max_age` in seconds, by the start of the call; `max_bytes` of the file. None: no limit."""

    max_age: float | None = None
    max_bytes: int | None = None

    def __bool__(self) -> bool:
        return self.max_age is not None or self.max_bytes is not None


class Pruner:
    """One run of pruning, taken step by step so that others get their turn in between."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._too_big = False

    def step(self, connection: sqlite3.Connection) -> bool:
        """Do a bounded piece of work; False when there is no more. Raises sqlite3.Error, with nothing half done.

        The newest row always stays: SQLite numbers on from it, and the totals go by those numbers.
        """
        doomed = self._expired(connection) or self._surplus(connection)
        if doomed:
            _delete(connection, doomed)
            return True
        free = _pragma(connection, "freelist_count")
        if free:
            connection.execute(f"PRAGMA incremental_vacuum({_PAGES})").fetchall()
        return _pragma(connection, "freelist_count") < free

    def _expired(self, connection: sqlite3.Connection) -> list[int]:
        if self._retention.max_age is None:
            return []
        found = connection.execute(
            "SELECT seq FROM calls WHERE started < ? AND seq < (SELECT max(seq) FROM calls) "
            "AND seq < (SELECT min(seq) FROM calls) + ? LIMIT ?",
            (time.time() - self._retention.max_age, _WINDOW, _BATCH),
        )
        return [seq for (seq,) in found]

    def _surplus(self, connection: sqlite3.Connection) -> list[int]:
        limit = self._retention.max_bytes
        if limit is None:
            return []
        pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
        used = pages * _pragma(connection, "page_size")
        self._too_big = used > (limit * _LOW if self._too_big else limit)
        if not self._too_big:
            return []
        found = connection.execute(
            "SELECT seq FROM calls WHERE seq < (SELECT max(seq) FROM calls) ORDER BY seq LIMIT ?", (_BATCH,)
        )
        return [seq for (seq,) in found]


def _delete(connection: sqlite3.Connection, seqs: list[int]) -> None:
    with summary.transaction(connection):
        # Another process may have pruned the same rows in the meantime.
        chosen = "seq IN (SELECT value FROM json_each(?))"
        left = [seq for (seq,) in connection.execute(f"SELECT seq FROM calls WHERE {chosen}", (json.dumps(seqs),))]  # noqa: S608
        if left:
            totals.fold(connection, left)
            summary.remove(connection, left)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
