"""Cumulative totals of a whole ledger, pruned rows included: exact counters that never go down, for an exporter."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

from otel_tokens.ledger import plan, sums
from otel_tokens.ledger.catch_up import bring_up_to_date
from otel_tokens.ledger.plan import Query
from otel_tokens.ledger.schema import reading, resolve
from otel_tokens.ledger.sums import Sums

_AT_LEAST = 1000  # rows that the summary lacks: reading so many at each scrape takes longer than adding them to it


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


class LedgerTotals:
    """The totals of one ledger. They don't go down while the file is the same one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = resolve(path)

    def refresh(self) -> Mapping[TotalsKey, Sums]:
        """The totals as of now. Raises LedgerError when there is no ledger to read."""
        bring_up_to_date(self.path, at_least=_AT_LEAST)
        with reading(self.path) as connection:
            pruned = connection.execute("SELECT key, sums FROM totals")
            found = {TotalsKey(*json.loads(key)): Sums.unpack(total) for key, total in pruned}
            for values, added in plan.aggregate(connection, Query(TotalsKey._fields)):
                key = TotalsKey(*values[:-1])
                before = found.get(key)
                found[key] = added if before is None else before + added
        return found
