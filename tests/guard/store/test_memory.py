"""The memory store beside what the suite says of all stores."""

from __future__ import annotations

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
