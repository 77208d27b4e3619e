"""Reading: sums that equal the sum of the rows, by any dimension, while others write."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import defaultdict
from contextlib import closing
from datetime import datetime
from decimal import Context, Decimal
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_tokens.errors import LedgerError
from otel_tokens.ledger import query
from otel_tokens.ledger.ledger import Ledger
from otel_tokens.values import COST_PARTS, TOKEN_FIELDS, Cost, Record

NOON = datetime(2026, 11, 3, 12).timestamp()  # noqa: DTZ001  # local, as the dimensions of time are
MONEY = st.none() | st.decimals("-1000000", "1000000", allow_nan=False) | st.decimals(0, 1, places=12)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    parts = {part: draw(MONEY) for part in COST_PARTS}
    return {
        "cost": Cost(total=draw(MONEY), **parts, currency=draw(st.sampled_from(["USD", "EUR"])), status="priced"),
        "model": draw(st.sampled_from(["gpt-4o", "gpt-5", "o3"])),
        "outcome": draw(st.sampled_from(["ok", "error"])),
        **{name: draw(st.integers(0, 2**63 - 1)) for name in draw(st.sets(st.sampled_from(TOKEN_FIELDS), max_size=4))},
        "tags": draw(st.dictionaries(st.sampled_from(["agent", "team"]), st.sampled_from("ab"), max_size=2)),
    }


@settings(max_examples=40)
@given(rows=st.lists(changes(), max_size=25), by=st.sampled_from(["model", "outcome", "agent", "team"]))
def test_sums_equal_the_sum_of_the_rows(make_record, rows: list[dict[str, Any]], by: str) -> None:
    exact = Context(prec=1000)
    with TemporaryDirectory() as folder:
        path = f"{folder}/ledger.db"
        ledger = Ledger(path)
        records = [make_record(f"c{at}", **change) for at, change in enumerate(rows)]
        for record in records:
            ledger.write(record)
        ledger.close()
        groups = query.aggregate(path, by=[by])
    expected: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        key = getattr(record.call, by, None) or getattr(record, by, None) or record.tags.get(by)
        expected[(key,), record.cost.currency if record.cost.total is not None else None].append(record)
    assert {(key, currency) for key, currency, _ in groups} == set(expected)
    for key, currency, sums in groups:
        mine = expected[key, currency]
        assert sums.calls == len(mine)
        assert sums.counts["errors"] == sum(record.outcome == "error" for record in mine)
        for name in TOKEN_FIELDS:
            assert sums.tokens[name] == sum(getattr(record.usage, name) for record in mine)
        for name in ("total", *COST_PARTS):
            amounts = [amount for record in mine if (amount := getattr(record.cost, name)) is not None]
            assert sums.cost[name] == reduce(exact.add, amounts, Decimal(0))


@pytest.fixture
def day_of_calls(path: str, open_ledger, make_record) -> str:
    """Four calls, an hour apart."""
    ledger = open_ledger(path)
    for at, (session, model) in enumerate([("s1", "gpt-4o"), ("s1", "o3"), ("s2", "o3"), (None, "o3")]):
        tags = {"team": "red" if at % 2 else "blue"} | ({"session": session} if session else {})
        ledger.write(
            make_record(f"c{at}", model=model, started=NOON + 3600 * at, tags=tags, cost=None if at == 3 else "0.1")
        )
    return path


def ids(path: str, *limits: float | None, **where: Any) -> list[str]:
    return [record.id for record in query.rows(path, *limits, where=where)]


def test_rows_by_time_and_value(day_of_calls: str) -> None:
    assert ids(day_of_calls) == ["c0", "c1", "c2", "c3"]
    assert ids(day_of_calls, NOON + 3600) == ["c1", "c2", "c3"]
    assert ids(day_of_calls, NOON + 3600, NOON + 7200) == ["c1"]  # the end is not part of it
    assert ids(day_of_calls, session="s1", model="o3") == ["c1"]
    assert ids(day_of_calls, session=None) == ["c3"]
    assert ids(day_of_calls, team="red") == ["c1", "c3"]
    assert ids(day_of_calls, **{"tag:session": "s2"}) == ["c2"]
    assert ids(day_of_calls, **{"tag:model": None}) == ["c0", "c1", "c2", "c3"]
    assert ids(day_of_calls, nosuchtag="x") == []
    assert ids(day_of_calls, **{"x'; DROP TABLE calls; --": "x"}) == []
    assert len(ids(day_of_calls, pid=str(os.getpid()))) == 4  # as a command line has it
    assert ids(day_of_calls, day="2026-11-03", hour="2026-11-03 13:00") == ["c1"]


def test_groups(day_of_calls: str) -> None:
    def groups(*by: str, **where: Any) -> dict[tuple[Any, ...], tuple[int, str]]:
        return {
            (*key, currency): (sums.calls, str(sums.cost["total"]))
            for key, currency, sums in query.aggregate(day_of_calls, by, where=where)
        }

    assert groups("model") == {("gpt-4o", "USD"): (1, "0.1"), ("o3", "USD"): (2, "0.2"), ("o3", None): (1, "0")}
    assert groups("team", "session", session="s1") == {
        ("blue", "s1", "USD"): (1, "0.1"),
        ("red", "s1", "USD"): (1, "0.1"),
    }
    assert groups("month", cost_status="priced") == {("2026-11", "USD"): (3, "0.3")}
    assert groups() == {("USD",): (3, "0.3"), (None,): (1, "0")}


def test_the_sum_of_nothing(path: str, open_ledger) -> None:
    open_ledger(path)
    assert query.aggregate(path) == []
    assert list(query.rows(path)) == []


def test_days_are_local(path: str, open_ledger, make_record, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ledger(path).write(make_record(started=datetime.fromisoformat("2026-11-03T23:30:00+00:00").timestamp()))
    for zone, day in {"UTC": "2026-11-03", "Asia/Tokyo": "2026-11-04"}.items():
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert [key for key, _, _ in query.aggregate(path, ["day"])] == [(day,)]
    monkeypatch.undo()
    time.tzset()


def test_what_counts_as_unpriced_missing_estimated(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record("priced"))
    ledger.write(make_record("unknown model", model="x", cost=None))
    ledger.write(make_record("partial", origin="partial"))
    ledger.write(make_record("no usage", origin="missing", missing_reason="stream_no_usage", cost=None))
    # Refused by the provider: nothing was billed, so nothing is missing.
    ledger.write(make_record("failed", origin="missing", missing_reason="error", outcome="error", cost=None))
    counts = reduce(lambda total, sums: total + sums, [sums for _, _, sums in query.aggregate(path)]).counts
    assert counts == {"calls": 5, "errors": 1, "missing": 1, "estimated": 1, "unpriced": 1, "priced": 2}
    with query.open_ledger(path) as reader:
        assert reader.unpriced() == {"x": 1}


def test_a_reader_sees_one_moment(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record("c1"))
    with query.open_ledger(path) as reader:
        assert len(list(reader.rows())) == 1
        ledger.write(make_record("c2"))  # does not wait for the reader
        assert [sums.calls for _, _, sums in reader.aggregate()] == [1]
    assert len(list(query.rows(path))) == 2
    assert ledger.pending == 0


def test_reading_changes_nothing(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record())
    with query.open_ledger(path) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.connection.execute("DELETE FROM calls").fetchall()
    before = Path(path).read_bytes()
    list(query.rows(path))
    assert Path(path).read_bytes() == before


def test_a_row_that_somebody_damaged_is_named(path: str, open_ledger, make_record) -> None:
    open_ledger(path).write(make_record("bad"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE calls SET cost_total = 'twelve'")
        connection.commit()
    with pytest.raises(LedgerError, match="call bad is unreadable: not an amount: 'twelve'"):
        list(query.rows(path))
    for amount in ("twelve", "NaN", "Infinity", "1E+5000"):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE calls SET cost_total = ?", (amount,))
            connection.commit()
        if amount == "1E+5000":
            open_ledger(path).write(make_record("good"))
        with pytest.raises(LedgerError, match="an amount in it cannot be read") as caught:
            query.aggregate(path)
        assert caught.value.path == path
