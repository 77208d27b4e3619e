"""The memory store beside what the suite says of all stores."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from otel_tokens.guard.store.base import Slot
from otel_tokens.guard.store.memory import store as memory
from otel_tokens.guard.store.memory.store import MemoryStore

TTL = 60_000


def test_calls_go_on_while_accounts_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing 1,000 of 100,000 accounts takes a tenth of a second, and a scrape does so every few seconds."""
    store = MemoryStore()
    slots = [Slot(f"b|t|{n:05}", "b", "tokens", f"{n:05}", 100) for n in range(20)]
    store.admit("k", slots, [1] * len(slots), TTL)
    choose = memory.running
    admitted: list[bool] = []

    def watched(*args: Any) -> Any:
        free = store._lock.acquire(timeout=0.5)
        if free:
            store._lock.release()
            admitted.append(store.admit("meanwhile", slots[:1], [1], TTL).granted)
        return choose(*args)

    monkeypatch.setattr(memory, "running", watched)
    rows = store.rows(limit=5)
    assert admitted == [True]
    assert [(row.scope, row.reserved) for row in rows[:2]] == [("00000", 2), ("00001", 1)]
    assert len(rows) == 5


def test_a_listing_is_not_confused_by_a_lease_that_ends_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    slot = Slot("b|t|", "b", "tokens", "", 100)
    store.admit("k", [slot], [10], TTL)
    choose = memory.running

    def watched(*args: Any) -> Any:
        found = choose(*args)
        store.settle("k", [slot], [7])
        return found

    monkeypatch.setattr(memory, "running", watched)
    (row,) = store.rows()
    assert (row.used, row.reserved) == (7, 0)


def test_what_a_forgotten_account_was_found_by_is_not_used_again() -> None:
    """The accounts of a plan are found once; one that was dropped since is looked up, and made, anew."""
    now = [1_000_000]
    store = MemoryStore(lambda: now[0])
    slots = (Slot("b|t|a", "b", "tokens", "a", 100, keep_ms=1000),)
    for key in ("first", "second"):  # the second finds the account by its group
        store.admit(key, slots, (0,), 10 * TTL)
    now[0] += 2000
    for n in range(3):
        store.admit(f"other {n}", (Slot(f"b|t|{n}", "b", "tokens", str(n), 100, keep_ms=1000),), (1,), TTL)
    assert [row.scope for row in store.rows()] == ["0", "1", "2"]
    store.settle("second", slots, (7,))
    assert store.admit("third", slots, (10,), TTL).balances == [(7, 10, 100)]
    assert [row.scope for row in store.rows()] == ["0", "1", "2", "a"]


def test_a_refusal_half_way_leaves_nothing_reserved() -> None:
    store = MemoryStore()
    slots = (Slot("a|t|", "a", "tokens", "", 100), Slot("b|t|", "b", "tokens", "", 10))
    assert [store.admit(str(n), slots, (10, 5), TTL).granted for n in range(3)] == [True, True, False]
    assert store.read(slots) == [(0, 20, 100), (0, 10, 10)]


def test_a_settlement_of_many_rolling_accounts_looks_at_each_once() -> None:
    """Once it listed the whole reservation for each account: 300 ms for a thousand."""
    slots = tuple(Slot(f"r{n}", f"r{n}", "tokens", "", 100, slice_ms=1000, slices=60) for n in range(400))
    store = MemoryStore()
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += 1

    store.admit("k", slots, [1] * len(slots), 60_000)
    sys.setprofile(count)
    try:
        store.settle("k", slots, [1] * len(slots))
    finally:
        sys.setprofile(None)
    assert steps < 100 * len(slots)
