"""Cumulative totals of a whole ledger, pruned rows included: exact counters that never go down, for an exporter."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from otel_tokens.ledger import sums
from otel_tokens.ledger.schema import reading, resolve
from otel_tokens.ledger.sums import Sums


class TotalsKey(NamedTuple):
    """What the totals are split by: everything a metric may be labelled with, nothing of many values."""

    operation: str | None
    provider: str | None
    model: str | None
    response_model: str | None
    service_tier: str | None
    server_address: str | None
    server_port: int | None
    outcome: str | None
    error_type: str | None
    origin: str | None
    missing_reason: str | None
    cost_status: str | None
    cost_source: str | None
    currency: str | None


def fold(connection: sqlite3.Connection, seqs: list[int]) -> None:
    """Add the rows `seqs` to the stored totals, inside the transaction that deletes them. Raises sqlite3.Error."""
    chosen = "seq IN (SELECT value FROM json_each(?))"
    for key, added in sums.select(connection, TotalsKey._fields, chosen, [json.dumps(seqs)]):
        name = json.dumps(key)
        stored = connection.execute("SELECT sums FROM totals WHERE key = ?", (name,)).fetchone()
        total = added if stored is None else added + Sums.unpack(stored[0])
        connection.execute(
            "INSERT INTO totals VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET sums = excluded.sums", (name, total.pack())
        )
    connection.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'pruned_through'", (max(seqs),))


class LedgerTotals:
    """The totals of one ledger, kept up to date by reading only what is new. Thread-safe.

    They don't go down while the file is the same one; a new file at the path starts anew, as a counter does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = resolve(path)
        self._lock = threading.Lock()
        self._ledger: str | None = None
        self._seen = 0
        self._totals: dict[TotalsKey, Sums] = {}

    def refresh(self) -> Mapping[TotalsKey, Sums]:
        """The totals as of now. Raises LedgerError when there is no ledger to read."""
        with self._lock, reading(self.path) as connection:
            meta: dict[str, Any] = dict(connection.execute("SELECT key, value FROM meta"))
            # Rows that came and went between two refreshes are only in the stored totals.
            if meta["ledger"] != self._ledger or meta["pruned_through"] > self._seen:
                self._ledger, self._seen = meta["ledger"], 0
                stored = connection.execute("SELECT key, sums FROM totals")
                self._totals = {TotalsKey(*json.loads(key)): Sums.unpack(total) for key, total in stored}
            newest: int = connection.execute("SELECT coalesce(max(seq), 0) FROM calls").fetchone()[0]
            new = sums.select(connection, TotalsKey._fields, "seq > ?", [self._seen]) if newest > self._seen else ()
            for values, added in new:
                key = TotalsKey(*values)
                before = self._totals.get(key)
                self._totals[key] = added if before is None else before + added
            self._seen = newest
            return MappingProxyType(dict(self._totals))
