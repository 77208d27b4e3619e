"""The guard's thread: settlements that survive a dead store, a full queue, a fork and the end; leases renewed."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.store.base import StoreError
from otel_tokens.guard.store.memory.store import MemoryStore


class Far(MemoryStore):
    """A store on a network that a test can cut and make slow."""

    direct = False

    def __init__(self, *clock: Callable[[], int]) -> None:
        super().__init__(*clock)
        self.down = False
        self.open = threading.Event()
        self.open.set()
        self.renewed: list[str] = []
        self.settled_by: set[str] = set()

    def settle(self, *args: Any, **more: Any) -> Any:
        self.settled_by.add(threading.current_thread().name)
        assert self.open.wait(300)
        if self.down:
            raise StoreError("no route")
        return super().settle(*args, **more)

    def renew(self, keys: Any, ttl_ms: int) -> None:
        self.renewed += keys
        if self.down:
            raise StoreError("no route")
        super().renew(keys, ttl_ms)


def used(guard: Any) -> tuple[Any, Any]:
    (row,) = guard.status()
    return row.used, row.reserved


def test_settling_never_waits_for_the_network(kit: Any) -> None:
    store = Far()
    guard = kit.guard(Budget("b", tokens=10_000), store=store)
    store.open.clear()
    for _ in range(20):
        kit.spend(guard, 50, 50)
    assert used(guard) == (0, 2000)
    assert not guard.flush(0.05)
    store.open.set()
    assert guard.flush(60)
    assert used(guard) == (2000, 0)
    assert store.settled_by == {"otel-tokens-guard"}


def test_a_dead_store_gets_its_settlements_later(kit: Any) -> None:
    store = Far()
    guard = kit.guard(Budget("b", tokens=10_000), store=store)
    store.down = True
    for _ in range(5):
        kit.spend(guard, 50, 50)
    released = guard.admit(kit.call(), kit.sizes(50, 50))
    guard.release(released)
    time.sleep(0.05)
    assert used(guard) == (0, 600)
    store.down = False
    assert guard.flush(60)
    assert used(guard) == (500, 0)


def test_a_settlement_that_always_fails_does_not_hold_up_the_others(kit: Any) -> None:
    store = Far()
    guard = kit.guard(Budget("b", tokens=10_000, per="tenant"), store=store)
    settle = store.settle
    broken = "b|tokens|tenant=broken"

    def settle_what_is_whole(key: str, slots: Any, amounts: Any) -> Any:
        if any(slot.key == broken for slot in slots):
            raise StoreError("this account is damaged")
        return settle(key, slots, amounts)

    store.settle = settle_what_is_whole  # type: ignore[method-assign]
    kit.spend(guard, 50, 50, tenant="broken")
    for _ in range(3):
        kit.spend(guard, 50, 50, tenant="whole")
    deadline = time.monotonic() + 300
    while {row.scope: row.used for row in guard.status()}["tenant=whole"] != 300:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_queue_merges_and_loses_nothing(kit: Any) -> None:
    store = Far()
    guard = kit.guard(Budget("b", tokens=100_000), store=store, queue=5, lease_seconds=0.5)
    store.open.clear()
    for _ in range(50):
        kit.spend(guard, 50, 50)
    assert guard._state.renewer.merged >= 40
    store.open.set()
    assert guard.flush(60)
    assert used(guard)[0] == 5000
    deadline = time.monotonic() + 300
    while used(guard) != (5000, 0):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_leases_in_flight_are_renewed_and_only_those(kit: Any) -> None:
    kit.now = 1795219200.0
    store = Far(kit.clock)
    guard = kit.guard(Budget("b", tokens=1000), store=store, lease_seconds=0.15)
    slow = guard.admit(kit.call(), kit.sizes(100, 200))
    done = guard.admit(kit.call(), kit.sizes(100, 100))
    guard.settle(done, kit.record(done))
    assert guard.flush(60)
    store.renewed.clear()
    for _ in range(4):
        kit.now += 0.1
        renewed, deadline = len(store.renewed), time.monotonic() + 300
        while len(store.renewed) == renewed:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert used(guard) == (150, 300)
    assert set(store.renewed) == {slow.key}
    guard.settle(slow, kit.record(slow))
    assert guard.flush(60)
    assert used(guard) == (300, 0)


def test_closing_settles_what_it_can_and_starts_again(kit: Any) -> None:
    store = Far()
    guard = kit.guard(Budget("b", tokens=1000), store=store)
    kit.spend(guard, 50, 50)
    guard.close()
    assert used(guard) == (100, 0)
    kit.spend(guard, 50, 50)
    assert guard.flush(60)
    assert used(guard) == (200, 0)
    store.down = True
    kit.spend(guard, 50, 50)
    began = time.monotonic()
    guard.close(0.2)
    assert time.monotonic() - began < 20
    store.down = False


def test_thresholds_are_found_on_the_thread(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100), store=Far())
    kit.spend(guard, 50, 40)
    assert guard.flush(60)
    assert [event.threshold for event in kit.kinds("threshold")] == ["70 %", "90 %"]


def test_a_guard_in_a_forked_child(kit: Any, store_kind: Any) -> None:
    store = store_kind.open()
    guard = kit.guard(Budget("b", tokens=1000), store=store)
    held = guard.admit(kit.call(), kit.sizes(100, 100))

    def child(answer: Any) -> None:
        lease = guard.admit(kit.call("model-1"), kit.sizes(50, 50))
        guard.settle(lease, kit.record(lease, 50, 50))
        answer((guard.flush(60), guard._state.renewer.in_flight, len(guard.decisions())))

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue.put,))
    process.start()
    assert queue.get() == (True, 0, 1)
    process.join(300)
    assert process.exitcode == 0
    guard.settle(held, kit.record(held, 100, 100))
    assert guard.flush(60)
    assert used(guard) == ((300, 0) if store_kind.shared else (200, 0))


def test_forking_while_threads_admit(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=10**9), Budget("c", calls=10**6))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            kit.spend(guard, 1, 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(5):
            process = context.Process(target=kit.spend, args=(guard,))
            process.start()
            process.join(300)
            assert process.exitcode == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_cancelled_tasks_give_everything_back(kit: Any, store_kind: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000), store=store_kind.open())

    async def one() -> None:
        lease = await guard.aadmit(kit.call(), kit.sizes(5, 5))
        try:
            await asyncio.sleep(30)
        finally:
            guard.release(lease)

    async def run() -> None:
        tasks = [asyncio.create_task(one()) for _ in range(200)]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert guard.flush(60)
    assert used(guard) == (0, 0)
    assert guard._state.renewer.in_flight == 0


def test_an_interrupt_while_asking_leaves_nothing(kit: Any) -> None:
    class Interrupted(MemoryStore):
        def admit(self, *args: Any, **more: Any) -> Any:
            super().admit(*args, **more)
            raise KeyboardInterrupt

    guard = kit.guard(Budget("b", tokens=1000), store=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        guard.admit(kit.call(), kit.sizes())
    assert used(guard) == (0, 0)


def test_memory_stays_flat(kit: Any) -> None:
    import tracemalloc

    guard = kit.guard(Budget("b", tokens=10**9), Budget("s", calls=10**6, per="session", forget="1s"))
    for n in range(12_000):
        kit.spend(guard, 1, 1, session=f"s{n % 50}")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for n in range(12_000):
        kit.spend(guard, 1, 1, session=f"s{n % 50}")
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 3_000_000


def test_refusals_leave_no_lease(kit: Any) -> None:
    guard = kit.guard(Budget("b", calls=0))
    for _ in range(10):
        with pytest.raises(BudgetExceededError):
            guard.admit(kit.call(), kit.sizes())
    assert guard._state.renewer.in_flight == 0


def test_two_threads_that_fork_at_once(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=10**9))
    context = multiprocessing.get_context("fork")
    children: list[Any] = []

    def fork() -> None:
        for _ in range(4):
            process = context.Process(target=kit.spend, args=(guard,))
            process.start()
            process.join(300)
            children.append(process)

    threads = [threading.Thread(target=fork) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Not before: multiprocessing lets any thread that starts a process reap the others' children.
    assert [child.exitcode for child in children] == [0] * 12
    kit.spend(guard)
