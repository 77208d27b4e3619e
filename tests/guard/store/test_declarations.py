"""An account belongs to a declaration: two windows under one name, wrong clocks, accounts of earlier versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.store.base import Slot, Store

TTL = 60_000
DAY = 86_400_000
YEAR = 400 * DAY


@pytest.fixture
def twice(store_kind: Any) -> Callable[[], Store]:
    """Opens stores on one place: another one each time where several processes may share it."""
    first = store_kind.open()
    return lambda: store_kind.open() if store_kind.shared else first


def spend(kit: Any, guard: Any, calls: int) -> None:
    for _ in range(calls):
        kit.spend(guard, 1, 1)
    assert guard.flush(60)


@pytest.mark.parametrize(
    "other",
    [{"window": "day"}, {"window": "month", "timezone": "Asia/Tokyo"}, {"window": "rolling 30d"}, {}],
    ids=["window", "zone", "rolling", "none"],
)
def test_two_declarations_under_one_name_have_an_account_each(kit: Any, twice: Any, other: dict[str, str]) -> None:
    month = kit.guard(Budget("b", calls=10, window="month"), store=twice())
    changed = kit.guard(Budget("b", calls=10, **other), store=twice())
    spend(kit, month, 8)
    spend(kit, changed, 8)
    spend(kit, month, 1)
    rows = month.store.rows("b")
    assert sorted((row.window.partition(" ")[2], row.used) for row in rows) == sorted(
        [("month UTC", 9), (replace_none(changed), 8)]
    )
    assert month.change("add", "b", "5 calls") == 2, "a change by name reaches both"


def replace_none(guard: Any) -> str:
    span = guard.budgets[0].span
    return span.identity.partition(" ")[2] if span else ""


def test_another_limit_is_the_same_account(kit: Any, twice: Any) -> None:
    spend(kit, kit.guard(Budget("b", calls=10, window="month"), store=twice()), 8)
    more = kit.guard(Budget("b", calls=20, window="month"), store=twice())
    spend(kit, more, 3)
    assert [(row.used, row.limit) for row in more.store.rows("b")] == [(11, 20)]


# ---- clocks --------------------------------------------------------------------------------------------------


def day(clock: Any) -> Slot:
    start = clock.ms // DAY * DAY
    return Slot("b|calls||1 day UTC", "b", "calls", "", 10, start, start + DAY, window="1 day UTC")


def test_a_clock_that_was_ahead_blocks_nothing(clocked: Store, clock: Any) -> None:
    store, today = clocked, day(clock)
    store.admit("a", [today], [3], TTL)
    store.settle("a", [today], [3])
    clock.ms += YEAR
    later = day(clock)
    store.admit("b", [later], [2], TTL)
    store.settle("b", [later], [2])
    store.admit("running", [later], [4], TTL)
    clock.ms -= YEAR - 1
    assert store.admit("c", [today], [1], TTL).granted
    # 3 before, 2 and the running call's 4 while the clock was ahead: they were spent today.
    assert store.read([today]) == [(9, 1, 10)]
    store.settle("running", [later], [1])
    assert store.read([today]) == [(6, 1, 10)]
    assert not store.admit("d", [today], [4], TTL).granted
    clock.ms += DAY
    assert store.admit("e", [day(clock)], [10], TTL).granted


def test_a_rolling_window_after_a_clock_that_was_ahead(clocked: Store, clock: Any) -> None:
    store, slot = clocked, Slot("r", "r", "calls", "", 10, slice_ms=1000, slices=60)
    clock.ms += YEAR
    store.admit("a", [slot], [10], TTL)
    store.settle("a", [slot], [10])
    clock.ms -= YEAR
    assert not store.admit("b", [slot], [1], TTL).granted
    clock.ms += 62_000
    assert store.admit("c", [slot], [10], TTL).granted


def test_a_wall_clock_after_a_clock_that_was_ahead(clocked: Store, clock: Any) -> None:
    store, slot = clocked, Slot("w", "w", "seconds", "", 5000, wall=True)
    clock.ms += YEAR
    store.admit("a", [slot], [0], TTL)
    clock.ms -= YEAR
    assert store.admit("b", [slot], [0], TTL).granted
    clock.ms += 5000
    assert not store.admit("c", [slot], [0], TTL).granted


# ---- earlier versions ----------------------------------------------------------------------------------------


def test_accounts_of_earlier_versions_go_on(store_kind: Any) -> None:
    if not store_kind.shared:
        return
    store = store_kind.open()
    start = store.now() // DAY * DAY
    old = Slot("b|calls|t=1", "b", "calls", "t=1", 10, start, start + DAY)
    rolling = Slot("r|calls|", "r", "calls", "", 10, slice_ms=60_000, slices=60)
    slots = [old, rolling]
    store.admit("a", slots, [7, 7], TTL)
    store.settle("a", slots, [7, 7])
    store.change("b", "add", unit="calls", amount=1)
    store.admit("running", slots, [1, 1], TTL)
    store = store_kind.open()
    new = [
        replace(old, key=old.key + "|1 day UTC", window="1 day UTC"),
        replace(rolling, key="r|calls||rolling 1 hour"),
    ]
    month = replace(old, key=old.key + "|1 month UTC", end=start + 30 * DAY)
    assert not store.admit("b", new, [5, 1], TTL).granted
    assert store.admit("c", new, [4, 1], TTL).granted
    store.settle("c", new, [4, 1])
    store.settle("running", slots, [1, 1])  # by a process of the earlier version
    assert store.read(new) == [(11, 0, 11), (8, 0, 10)]
    assert store.admit("d", [month], [10], TTL).granted, "it had another window"
