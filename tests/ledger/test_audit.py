"""The audit finds what is wrong with a ledger, and nothing in a sound one."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from decimal import Decimal

import pytest

from otel_tokens.errors import LedgerError
from otel_tokens.ledger.audit import Finding, audit
from otel_tokens.values import UNPRICED, Cost


def change(path: str, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()


def test_a_sound_ledger(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record("a"))
    ledger.write(make_record("failed", cost=None, origin="missing", input=0, output=0, cache_read=0, reasoning=0))
    ledger.write(make_record("flagged", cache_read=2000, flags=("exceeds:cache_read",)))
    assert audit(path) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("cost_parts", {"cost": Cost(total=Decimal(2), input=Decimal(1), output=Decimal("0.9"), status="priced")}),
        ("cost_status", {"cost": Cost(status="priced")}),
        ("cost_status", {"cost": Cost(total=Decimal(1))}),
        ("token_parts", {"cache_read": 600, "cache_write": 600}),
        ("token_parts", {"reasoning": 60}),
        ("token_parts", {"cache_write": 5, "cache_write_5m": 3, "cache_write_1h": 3}),
        ("negative_tokens", {"reasoning": -1}),
        ("unknown_word", {"outcome": "exploded"}),
        ("time", {"started": 0.0}),
        ("duration", {"duration": -1.0}),
    ],
)
def test_rows_that_contradict_themselves(path: str, open_ledger, make_record, kind: str, changes: dict) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record("good"))
    for number in range(5):
        ledger.write(make_record(f"bad{number}", **changes))
    (found,) = audit(path)
    assert (found.kind, found.count, found.examples) == (kind, 5, ("bad0", "bad1", "bad2"))


def test_a_provider_price_without_parts_is_fine(path: str, open_ledger, make_record) -> None:
    cost = Cost(total=Decimal(1), status="priced", source="provider", provider_total=Decimal(1))
    open_ledger(path).write(make_record(cost=cost))
    open_ledger(path).write(make_record("u", cost=UNPRICED))
    assert audit(path) == []


def test_a_call_from_the_future(path: str, open_ledger, make_record) -> None:
    open_ledger(path).write(make_record(started=time.time() + 3600))
    assert [found.kind for found in audit(path)] == ["time"]
    assert audit(path, now=time.time() + 3600) == []


def test_rows_that_cannot_be_read(path: str, open_ledger, make_record) -> None:
    for name, sql in {
        "a": "cost_total = 'x'",
        "b": "components = '['",
        "c": "input = 'many'",
        "d": "tags = '7'",
    }.items():
        open_ledger(path).write(make_record(name))
        change(path, f"UPDATE calls SET {sql} WHERE id = '{name}'")
    (found,) = audit(path)
    assert (found.kind, found.count, found.severity) == ("unreadable", 4, "error")


def test_stored_totals_that_cannot_be_read(path: str, open_ledger) -> None:
    open_ledger(path)
    change(path, "INSERT INTO totals VALUES('[]', 'nonsense')")
    assert [found.kind for found in audit(path)] == ["totals"]


def test_the_file_itself(path: str, open_ledger, make_record) -> None:
    open_ledger(path).close()
    os.chmod(path, 0o644)
    change(path, "PRAGMA journal_mode=delete")
    assert {found.kind: found.severity for found in audit(path)} == {
        "readable_by_others": "warning",
        "no_wal": "warning",
    }


def test_a_damaged_file(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    for number in range(300):
        ledger.write(make_record(f"c{number}"))
    ledger.close()
    with open(path, "r+b") as file:
        file.seek(20 * 2048)
        file.write(os.urandom(4 * 2048))
    (found,) = audit(path)
    assert isinstance(found, Finding)
    assert (found.kind, found.severity) == ("damaged", "error")


def test_no_ledger(path: str) -> None:
    with pytest.raises(LedgerError, match="no ledger here"):
        audit(path)
