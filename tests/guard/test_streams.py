"""Streams under way: cut within one chunk of the cap, never while there is room, never by a guess alone."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.store.base import StoreError
from otel_tokens.guard.store.memory.store import MemoryStore


def stream(guard: Any, lease: Any, chunks: int, per_chunk: int = 10) -> tuple[int, BudgetExceededError | None]:
    for n in range(1, chunks + 1):
        error = guard.look(lease, n * per_chunk)
        if error is not None:
            return n * per_chunk, error
    return chunks * per_chunk, None


def test_a_stream_within_its_bound_is_never_looked_at(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000))
    lease = guard.admit(kit.call(), kit.sizes(100, 500))
    assert lease.look_at == 500
    assert stream(guard, lease, 50) == (500, None)
    assert guard.admit(kit.call(), kit.sizes(100, 300)) is not None


def test_a_server_that_ignores_the_bound_is_cut_at_the_cap(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000))
    lease = guard.admit(kit.call(), kit.sizes(100, 200))
    tokens, error = stream(guard, lease, 500)
    assert error is not None
    assert 860 <= tokens <= 900
    assert "stream cut after about" in str(error)
    assert re.search(r"0 of [\d,]+ tokens used, [\d,]+ reserved", str(error))
    assert error.budget == "b"
    guard.settle(lease, kit.record(lease, 100, tokens))
    assert guard.status()[0].used <= 1000
    assert kit.kinds("cut")[0].budget == "b"
    assert ("b", "deny", "openai", "model-1", "cut", 1) in guard.decisions()


def test_money_cuts_as_well(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd="0.01", estimate="expected"))
    lease = guard.admit(kit.call(), kit.sizes(1000, 100_000))
    assert lease.look_at == 1024
    tokens, error = stream(guard, lease, 10_000, 5)
    assert error is not None
    assert 4440 <= tokens <= 4500
    guard.settle(lease, kit.record(lease, 1000, tokens))
    assert guard.status()[0].used <= Decimal("0.01")


def test_what_others_reserve_is_not_this_streams(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000))
    lease = guard.admit(kit.call(), kit.sizes(100, 100))
    other = guard.admit(kit.call(), kit.sizes(100, 600))
    tokens, error = stream(guard, lease, 100)
    assert error is not None
    assert tokens <= 200
    guard.release(other)


def test_growing_leases_are_settled_whole(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=10_000))
    lease = guard.admit(kit.call(), kit.sizes(100, 100))
    assert stream(guard, lease, 200)[1] is None
    assert guard.status()[0].reserved >= 2100
    guard.settle(lease, kit.record(lease, 100, 2000))
    assert (guard.status()[0].used, guard.status()[0].reserved) == (2100, 0)


def test_soft_budgets_do_not_cut(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100, enforce="soft"), Budget("c", calls=5))
    lease = guard.admit(kit.call(), kit.sizes(100, 100))
    assert lease.look_at is None
    assert stream(guard, lease, 1000)[1] is None


def test_gas_cuts_streams(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=10_000))
    with guard.gas(500) as gas:
        lease = guard.admit(kit.call(), kit.sizes(100, 200))
        tokens, error = stream(guard, lease, 100)
        assert error is not None
        assert error.budget == "gas"
        guard.settle(lease, kit.record(lease, 100, tokens))
        assert gas.used <= 500


def test_gas_alone_cuts_streams(kit: Any) -> None:
    guard = kit.guard()
    with guard.gas(500) as gas:
        lease = guard.admit(kit.call(), kit.sizes(100, 200))
        tokens, error = stream(guard, lease, 100)
        assert error is not None
        guard.settle(lease, kit.record(lease, 100, tokens))
        assert gas.used <= 500


# ---- time ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pass_time(kit: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Turns the clocks of the store and of this process on by some seconds. The store's stands still in between."""
    now, real, passed = time.time(), time.monotonic, [0.0]

    def turn(seconds: float) -> None:
        passed[0] += seconds
        kit.now = now + passed[0]

    turn(0)
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed[0])
    return turn


def test_a_tasks_time_stops_the_next_call_and_a_running_stream(kit: Any, pass_time: Callable[[float], None]) -> None:
    guard = kit.guard(Budget("task", seconds="200", per="task"))
    first = guard.admit(kit.call(task="1"), kit.sizes())
    assert first.timeout == 200
    assert guard.look(first, 5) is None
    pass_time(201)
    error = guard.look(first, 6)
    assert error is not None
    assert "its time is up" in str(error)
    assert (error.budget, error.scope, error.unit) == ("task", "task=1", "seconds")
    with pytest.raises(BudgetExceededError, match=r"of 200 seconds used"):
        guard.admit(kit.call(task="1"), kit.sizes())
    assert guard.admit(kit.call(task="2"), kit.sizes()) is not None


def test_a_single_calls_time(kit: Any, pass_time: Callable[[float], None]) -> None:
    guard = kit.guard(Budget("one", seconds="100", per="call"), Budget("other", seconds=1000, per="call"))
    lease = guard.admit(kit.call(), kit.sizes())
    assert lease.timeout == 100
    pass_time(101)
    assert guard.look(lease, 1).budget == "one"
    assert guard.admit(kit.call(), kit.sizes()) is not None


def test_the_budget_whose_time_is_up_is_named(kit: Any, pass_time: Callable[[float], None]) -> None:
    guard = kit.guard(Budget("task", seconds="200", per="task"), Budget("one", seconds="150", per="call"))
    guard.settle(first := guard.admit(kit.call(task="1"), kit.sizes()), kit.record(first))
    pass_time(100)
    lease = guard.admit(kit.call(task="1"), kit.sizes())
    assert lease.timeout == 100
    pass_time(101)
    error = guard.look(lease, 1)
    assert (error.budget, error.scope, error.limit) == ("task", "task=1", Decimal("200"))


def test_a_call_that_may_take_no_time_is_not_sent(kit: Any) -> None:
    guard = kit.guard(Budget("one", seconds=0, per="call"))
    with pytest.raises(BudgetExceededError, match="budget 'one': 0 of 0 seconds used"):
        guard.admit(kit.call(), kit.sizes())


def test_the_summed_time_of_calls(kit: Any) -> None:
    guard = kit.guard(Budget("b", seconds=10, clock="calls"))
    for _ in range(3):
        lease = guard.admit(kit.call(), kit.sizes())
        guard.settle(lease, kit.record(lease, duration=3.0))
    assert guard.status()[0].used == 9
    with pytest.raises(BudgetExceededError, match="9 of 10 seconds used"):
        guard.admit(kit.call(), kit.sizes())


# ---- a store on the network ----------------------------------------------------------------------------------


class Far(MemoryStore):
    """A store whose answers take as long as the test says."""

    direct = False

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.broken = False

    def admit(self, *args: Any, **more: Any) -> Any:
        self.asked.set()
        assert self.gate.wait(300)
        if self.broken:
            raise StoreError("gone")
        return super().admit(*args, **more)


def test_a_far_store_never_holds_up_a_chunk(kit: Any) -> None:
    store = Far()
    guard = kit.guard(Budget("b", tokens=1000), store=store)
    lease = guard.admit(kit.call(), kit.sizes(100, 200))
    store.gate.clear()
    store.asked.clear()
    assert guard.look(lease, 210) is None
    assert store.asked.wait(300)
    assert guard.look(lease, 900) is None
    store.gate.set()
    tokens, error = 900, None
    deadline = time.monotonic() + 300
    while error is None and time.monotonic() < deadline:
        tokens += 10
        error = guard.look(lease, tokens)
        time.sleep(0.001)
    assert error is not None
    assert error.budget == "b"


def test_a_lost_store_does_not_cut_when_open_and_cuts_when_closed(kit: Any) -> None:
    for fail, cut in (("open", False), ("closed", True)):
        store = Far()
        store.direct = True
        guard = kit.guard(Budget("b", tokens=1000), store=store, fail=fail)
        lease = guard.admit(kit.call(), kit.sizes(100, 200))
        store.broken = True
        assert (guard.look(lease, 210) is not None) is cut


def test_a_settled_lease_is_not_looked_at(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000))
    lease = guard.admit(kit.call(), kit.sizes(100, 200))
    guard.settle(lease, kit.record(lease))
    assert guard.look(lease, 5000) is None
