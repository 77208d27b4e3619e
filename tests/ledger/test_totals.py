"""Cumulative totals: exact, incremental, and never going down, whatever retention takes away."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from functools import reduce
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_tokens.errors import LedgerError
from otel_tokens.ledger import query, retention
from otel_tokens.ledger.ledger import Ledger
from otel_tokens.ledger.retention import Pruner, Retention
from otel_tokens.ledger.schema import open_writer
from otel_tokens.ledger.sums import Sums
from otel_tokens.ledger.totals import LedgerTotals, TotalsKey

DAY = 86400


def totals(path: str) -> Mapping[TotalsKey, Sums]:
    return LedgerTotals(path).refresh()


def overall(found: Mapping[TotalsKey, Sums]) -> Sums:
    return reduce(lambda total, sums: total + sums, found.values(), Sums())


def prune(path: str, **limits: float) -> None:
    with closing(open_writer(path)) as connection:
        pruner = Pruner(Retention(**limits))
        while pruner.step(connection):
            pass


def test_totals_by_everything_a_metric_is_labelled_with(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record("a"))
    ledger.write(make_record("b", response_model="gpt-4o-mini-2024", cost="0.5"))
    ledger.write(make_record("c", outcome="error", error_type="openai.RateLimitError"))
    ledger.write(make_record("d", tags={"session": "s"}))  # sessions are many: not a label
    found = totals(path)
    assert sorted((key.response_model or "", key.error_type or "", sums.calls) for key, sums in found.items()) == [
        ("", "", 2),
        ("", "openai.RateLimitError", 1),
        ("gpt-4o-mini-2024", "", 1),
    ]
    key = next(key for key in found if key.response_model)
    assert (key.operation, key.provider, key.model, key.server_address) == (
        "chat",
        "openai",
        "gpt-4o-mini",
        "api.openai.com",
    )
    assert found[key].cost["output"] == Decimal("0.5")
    assert found[key].tokens["cache_read"] == 800
    assert overall(found).tokens["input"] == 4000


def test_a_refresh_reads_what_is_new(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    counting = LedgerTotals(path)
    assert counting.refresh() == {}
    for number in range(1, 5):
        ledger.write(make_record(f"c{number}"))
        snapshot = counting.refresh()
        assert overall(snapshot).calls == overall(counting.refresh()).calls == number
    ledger.write(make_record("late"))
    counting.refresh()
    assert overall(snapshot).calls == 4  # a snapshot stays what it was


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["write", "write old", "prune", "refresh", "empty"]), max_size=30))
def test_totals_are_all_that_was_ever_written(make_record, steps: list[str]) -> None:
    with TemporaryDirectory() as folder:
        path = f"{folder}/ledger.db"
        ledger = Ledger(path)
        counting = LedgerTotals(path)
        written = 0
        for step in steps:
            if step.startswith("write"):
                age = 5 * DAY if step == "write old" else 0
                ledger.write(make_record(f"c{written}", cost="0.0000001", started=time.time() - age))
                written += 1
            elif step == "refresh":
                assert overall(counting.refresh()).calls == written
            else:
                prune(path, max_age=DAY if step == "prune" else -DAY)
        for found in (counting.refresh(), totals(path)):
            assert overall(found).calls == written
            assert overall(found).tokens["input"] == 1000 * written
            assert overall(found).cost["total"] == written * Decimal("0.0000001")
        ledger.close()


def test_a_new_file_starts_anew(path: str, open_ledger, make_record) -> None:
    counting = LedgerTotals(path)
    for count in (3, 1):
        ledger = open_ledger(path)
        for number in range(count):
            ledger.write(make_record(f"c{number}"))
        ledger.close()
        assert overall(counting.refresh()).calls == count
        os.unlink(path)
    with pytest.raises(LedgerError, match="no ledger here"):
        counting.refresh()


# ---- retention ---------------------------------------------------------------------------------------------------
def test_old_rows_go_and_stay_in_the_totals(
    path: str, open_ledger, make_record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BATCH", 7)
    ledger = open_ledger(path)
    for number in range(60):
        ledger.write(make_record(f"c{number}", started=time.time() - (10 - number // 10) * DAY, cost="0.1"))
    ledger.close()
    ledger = open_ledger(path, max_age_days=7.5)
    ledger._upkeep.join()
    assert [record.id for record in query.rows(path)] == [f"c{n}" for n in range(30, 60)]
    assert overall(totals(path)).calls == 60
    assert overall(totals(path)).cost["total"] == Decimal(6)
    assert ledger.errors == 0


def test_the_newest_row_stays(path: str, open_ledger, make_record) -> None:
    """Its number must not be given to another."""
    ledger = open_ledger(path)
    for number in range(3):
        ledger.write(make_record(f"c{number}", started=0.0))
    prune(path, max_age=DAY)
    assert [record.id for record in query.rows(path)] == ["c2"]


def test_a_file_is_kept_below_a_size(path: str, open_ledger, make_record) -> None:
    limit = 300_000
    ledger = open_ledger(path, max_bytes=limit)
    for number in range(2000):
        ledger.write(make_record(f"c{number}"))
    ledger.close()
    ledger = open_ledger(path, max_bytes=limit)
    ledger._upkeep.join()
    ledger.close()
    assert os.path.getsize(path) <= limit  # the space was given back, too
    left = [record.id for record in query.rows(path)]
    assert 100 < len(left) < 1000
    assert left == [f"c{n}" for n in range(2000 - len(left), 2000)]
    assert overall(totals(path)).calls == 2000
    assert ledger.errors == 0


def test_writing_prunes_every_now_and_then(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path, max_age_days=1)
    for number in range(1000):
        ledger.write(make_record(f"c{number}", started=0.0))
    ledger._upkeep.join()
    assert len(list(query.rows(path))) <= 200
    assert overall(totals(path)).calls == 1000


def test_two_processes_may_prune_at_once(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    for number in range(50):
        ledger.write(make_record(f"c{number}", started=0.0))
    with closing(open_writer(path)) as connection:
        stale = Pruner(Retention(max_age=DAY))._expired(connection)
        prune(path, max_age=DAY)
        retention._delete(connection, stale)  # what the other has already counted
    assert overall(totals(path)).calls == 50


def test_no_retention_keeps_everything(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record("ancient", started=0.0))
    ledger.close()
    open_ledger(path).close()
    assert len(list(query.rows(path))) == 1
