"""The summary: whatever a query takes from it, the sums equal those of the rows, to the last digit."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from otel_tokens.ledger import plan, query, sums
from otel_tokens.ledger.dimensions import CURRENCY, Where, condition, expressions
from otel_tokens.ledger.part import SIX_HOURS
from otel_tokens.ledger.retention import Pruner, Retention
from otel_tokens.ledger.schema import open_writer
from otel_tokens.ledger.summary import Adder, behind, state
from otel_tokens.ledger.sums import Sums
from otel_tokens.values import Cost

NOON = 1_793_707_200.0  # 2026-11-03 12:00 UTC
BYS = [
    *[(), ("model",), ("tenant",), ("agent", "model"), ("day",), ("hour", "tenant"), ("week", "outcome"), ("team",)],
    *[("tenant", "agent"), ("month", "feature"), ("session",), ("pid",), ("tag:tenant", "currency"), ("cost_total",)],
]
WHERES: list[Where] = [
    {},
    {"model": "m1"},
    {"tenant": "t1"},
    {"tenant": None},
    {"session": "s3"},
    {"task": None},
    {"day": "2026-11-03", "agent": "a1"},
    {"hour": "2026-11-03 15:00"},
    {"error_type": None},
    {"team": "red", "feature": "f1"},
    {"server_port": "443"},
    {"server_port": 443},
    {"tenant": "t0", "agent": "a1"},
    {"nosuch": "x"},
]
TIMES: list[tuple[float | None, float | None]] = [
    (None, None),
    (NOON + 100, None),
    (None, NOON + 90_001.5),
    (NOON + 0.5, NOON + 40_000.25),
    (NOON, NOON + SIX_HOURS),
    (NOON + 10, NOON + 20),
    (NOON - 1e6, NOON - 1e5),
    (NOON + 1e6, None),
    (NOON + 10, NOON - 10),
]


@pytest.fixture(params=["UTC", "Asia/Kolkata", "America/New_York"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Local time: its days begin where the six hours of a tag do, or do not."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def of_all_kinds(make_record: Any, count: int) -> list[Any]:
    """Records over three days, in a rough order, of which some do not fit into the summary."""
    draw = random.Random(7)
    made = []
    for number in range(count):
        tags = {name: f"{name[0]}{draw.randrange(4)}" for name in ("tenant", "agent", "feature") if draw.random() < 0.7}
        tags |= {"session": f"s{number // 9}"} if draw.random() < 0.8 else {}
        tags |= {"task": f"k{number // 30}", "team": draw.choice(["red", "blue"])} if draw.random() < 0.5 else {}
        amount = draw.choice(
            ["0.000123", "1.5E-7", "0", "0.04", "12.5", f"0.{draw.randrange(10**9):024}", None, "900.1"]
        )
        odd = {2: "-0.001", 5: "0.1234567890123456789012345678901", 9: "12345678901234567890.5"}
        cost: Any = odd.get(number % 97, amount)
        if draw.random() < 0.1 and cost is not None:
            cost = Cost(total=sums.Decimal(cost), input=sums.Decimal("0.1"), currency="EUR", status="priced")
        made.append(
            make_record(
                f"c{number}",
                model=f"m{draw.randrange(3)}",
                started=NOON + number * 259_200 / count + draw.uniform(-4000, 500),
                outcome=draw.choice(["ok", "ok", "error"]),
                error_type=draw.choice([None, "RateLimitError"]),
                origin=draw.choice(["provider", "missing", "partial"]),
                missing_reason=draw.choice([None, "error"]),
                input=draw.choice([10, 2**40, 0]),
                cache_write_5m=draw.choice([0, 0, 7]),
                web_searches=draw.choice([0, 0, 2**63 - 1]),
                cost=cost,
                tags=tags,
            )
        )
    made[3] = make_record("no time", started=-5.0, tags={"session": "s0", "tenant": "t1"})
    made[4] = make_record("far away", started=1e15, tags={"tenant": "t1"})
    return made


def by_rows(path: str, by: Any, since: Any, until: Any, where: Where) -> dict[Any, Sums]:
    with query.open_ledger(path) as reader:
        found, names = expressions(by)
        text, values = condition(since, until, where)
        return dict(sums.select(reader.connection, [*found, CURRENCY], text, [*names, *values]))


def by_plan(path: str, by: Any, since: Any, until: Any, where: Where) -> dict[Any, Sums]:
    with query.open_ledger(path) as reader:
        found = plan.aggregate(reader.connection, plan.Query(by, since, until, where))
    assert len(dict(found)) == len(found)
    return dict(found)


def assert_exact(path: str, seed: int) -> None:
    every = list(itertools.product(BYS, TIMES, WHERES))
    for by, times, where in random.Random(seed).sample(every, 150):
        assert by_plan(path, by, *times, where) == by_rows(path, by, *times, where), (by, times, where)


def sum_up(path: str, count: int, transactions: int = 10**9) -> None:
    with closing(open_writer(path)) as connection:
        adder = Adder(count)
        while behind(connection) > 0 and transactions:
            transactions -= adder.step(connection)


def test_every_query_equals_the_rows(zone: str, path: str, open_ledger, make_record) -> None:
    """With a part of the rows summed, in parts that cut a quarter of an hour in two; then all; then some pruned."""
    ledger = open_ledger(path)
    for record in of_all_kinds(make_record, 400):
        ledger.write(record)
    ledger.close()
    sum_up(path, 37, 5)
    assert_exact(path, 1)
    sum_up(path, 100)
    assert_exact(path, 2)
    with query.open_ledger(path) as reader:
        assert reader.connection.execute("SELECT count(*) FROM odd").fetchone()[0] > 5
        assert state(reader.connection) == (400, 0, False)
    with closing(open_writer(path)) as connection:
        pruner = Pruner(Retention(max_age=time.time() - NOON - 100_000))
        while pruner.step(connection):
            pass
        assert not state(connection).stale
    assert_exact(path, 3)
