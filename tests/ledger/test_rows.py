"""Record → row → record: nothing of the accounting is lost, whatever the values."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tokens.ledger import query, rows
from otel_tokens.ledger.ledger import Ledger
from otel_tokens.ledger.schema import _migrate, open_writer
from otel_tokens.values import TOKEN_FIELDS, Call, Component, Cost, Record, Usage

COUNT = st.integers(0, 2**61)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
MAYBE = st.none() | TEXT
SECONDS = st.floats(0, 4e9)
MONEY = st.decimals("-1000", "100000", places=12) | st.decimals(0, 1, allow_nan=False).map(lambda d: d.normalize())
NAMES = st.frozensets(st.sampled_from(TOKEN_FIELDS))


def usages(components: st.SearchStrategy[tuple[Component, ...]]) -> st.SearchStrategy[Usage]:
    return st.builds(
        Usage,
        **{name: COUNT | st.just(0) for name in TOKEN_FIELDS},
        total=st.none() | COUNT,
        reported_cost=st.none() | MONEY,
        origin=st.sampled_from(["provider", "partial", "estimated", "missing"]),
        reported=NAMES,
        flags=st.lists(TEXT, max_size=3).map(tuple),
        components=components,
    )


PARTS = st.lists(st.builds(Component, kind=TEXT, model=MAYBE, usage=usages(st.just(()))), max_size=2).map(tuple)
CALLS = st.builds(
    Call,
    id=TEXT,
    provider=TEXT,
    endpoint=TEXT,
    operation=TEXT,
    model=TEXT,
    started=SECONDS,
    sdk=TEXT,
    stream=st.booleans(),
    server_address=MAYBE,
    server_port=st.none() | st.integers(0, 65535),
    max_output=st.none() | COUNT,
    choices=st.integers(0, 100),
    service_tier=MAYBE,
    speed=MAYBE,
    geo=MAYBE,
    free=st.booleans(),
    asked_model=MAYBE,
    tags=st.dictionaries(st.sampled_from(["session", "task", "agent", "user"]) | TEXT, TEXT, max_size=5),
)
COSTS = st.builds(
    Cost,
    **{
        name: st.none() | MONEY
        for name in ("total", "input", "cache_read", "cache_write", "output", "other", "local_total", "provider_total")
    },
    currency=st.sampled_from(["USD", "EUR"]),
    status=st.sampled_from(["priced", "estimated", "unpriced"]),
    source=st.sampled_from(["provider", "local"]),
    version=TEXT,
    rule=TEXT,
)
RECORDS = st.builds(
    Record,
    call=CALLS,
    usage=usages(PARTS),
    cost=COSTS,
    outcome=st.sampled_from(["ok", "error", "cancelled", "abandoned", "cut"]),
    duration=SECONDS,
    response_model=MAYBE,
    response_id=MAYBE,
    finish_reasons=st.lists(TEXT, max_size=3).map(tuple),
    service_tier=MAYBE,
    speed=MAYBE,
    geo=MAYBE,
    error_type=MAYBE,
    missing_reason=MAYBE,
    first_chunk=st.none() | SECONDS,
    chunks=COUNT,
    attempts=COUNT,
    trace_id=MAYBE,
    span_id=MAYBE,
    decision=MAYBE,
)


@pytest.fixture(scope="module")
def table() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _migrate(connection, ":memory:")
        yield connection


def kept(table: sqlite3.Connection, record: Record) -> Record:
    table.execute("DELETE FROM calls")
    table.execute(*rows.encode(record, (1, "host")))
    return rows.decode(table.execute(rows.SELECT).fetchone())


@given(record=RECORDS)
def test_a_record_comes_back_equal(table: sqlite3.Connection, record: Record) -> None:
    back = kept(table, record)
    assert back == record
    for name in ("total", "output", "local_total"):  # equal amounts may differ in digits; ours must not
        assert str(getattr(back.cost, name)) == str(getattr(record.cost, name))


def test_every_field_of_the_values_has_a_strategy_above() -> None:
    """A field that is added to the values must be kept by the ledger too (with a migration) or be named here."""
    assert {field.name for field in dataclasses.fields(Record)} == {*_arguments(RECORDS)}
    assert {field.name for field in dataclasses.fields(Usage)} == {*_arguments(usages(PARTS))}
    assert {field.name for field in dataclasses.fields(Cost)} == {*_arguments(COSTS)}
    # What is asked of the model is telemetry, not accounting.
    assert {field.name for field in dataclasses.fields(Call)} - {"attributes"} == {*_arguments(CALLS)}


def _arguments(strategy: object) -> set[str]:
    return set(strategy.wrapped_strategy.kwargs)  # type: ignore[attr-defined]


def test_the_table_has_the_columns_that_are_written(path: str) -> None:
    connection = open_writer(path)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(calls)")]
    connection.close()
    assert sorted(columns) == sorted([*rows.COLUMNS, "seq"])


def test_values_that_sqlite_cannot_hold_do_not_lose_the_record(path: str, make_record) -> None:
    ledger = Ledger(path)
    ledger.write(make_record("big", input=10**30, cost="1"))
    ledger.write(make_record("surrogate", model="gpt\ud800", cost="2"))
    ledger.write(make_record("alien", model=42, cost="3"))
    ledger.write(make_record("alien tag", tags={"team": 7, "session": 8}, cost="4"))
    ledger.write(make_record("nan", cost="NaN"))
    ledger.write(make_record("endless", cost="Infinity"))
    ledger.write(make_record("absurd", cost="1E+5000"))
    ledger.write(make_record("tiny zero", cost="0E-5000"))
    ledger.close()
    assert ledger.errors == 0
    back = {record.id: record for record in query.rows(path)}
    assert len(back) == 8
    assert back["big"].usage.input == 2**63 - 1
    assert back["surrogate"].call.model == "gpt?"
    assert back["alien"].call.model == "42"
    assert dict(back["alien tag"].tags) == {"team": "7", "session": "8"}
    # An amount that is none is not an amount, and must not spoil the sums of the others.
    assert [back[name].cost.total for name in ("nan", "endless", "absurd", "tiny zero")] == [None, None, None, 0]
    ((_, _, sums),) = query.aggregate(path, by=["provider"], where={"currency": "USD", "cost_status": "priced"})[-1:]
    assert sums.cost["total"] == Decimal(10)


def test_the_request_itself_is_not_kept(path: str, make_record) -> None:
    """Attributes of the request may hold the application's text."""
    ledger = Ledger(path)
    ledger.write(make_record("a", attributes={"gen_ai.request.stop_sequences": ("secret words",)}))
    ledger.close()
    with open(path, "rb") as file:
        assert b"secret words" not in file.read()
