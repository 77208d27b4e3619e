"""The race itself, on every store: what guards spend together never passes the cap, and would without reservation."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.store.base import Store


class Other:
    """A kit whose calls have ids that no other process uses."""

    def __init__(self, kit: Any, seed: int) -> None:
        self._kit = kit
        self._seed = seed

    def call(self, **tags: str) -> Any:
        call = self._kit.call(**tags)
        return replace(call, id=f"{self._seed}:{call.id}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kit, name)


CAP = Decimal("0.05")
BUDGETS = (
    Budget("cap", usd=CAP),
    Budget("tokens", tokens=40_000, per="tenant"),
    Budget("soft", calls=5, enforce="soft"),
)


def use(kit: Any, guard: Any, rng: random.Random) -> Decimal:
    """One call: admitted, run for a moment, and ended in one of the ways calls end."""
    given, bound = rng.randint(0, 200), rng.randint(1, 400)
    lease = guard.admit(kit.call(tenant="acme"), kit.sizes(given, bound))
    time.sleep(rng.random() / 5000)
    if rng.random() < 0.1:
        guard.release(lease)
        return Decimal(0)
    record = kit.record(lease, given, rng.randint(0, bound))
    guard.settle(lease, record)
    return record.cost.total


def loop(kit: Any, guard: Any, seed: int, calls: int) -> Decimal:
    rng = random.Random(seed)
    spent = Decimal(0)
    for _ in range(calls):
        try:
            spent += use(kit, guard, rng)
        except BudgetExceededError:
            continue
    return spent


def ends_clean(guard: Any, spent: Decimal) -> None:
    assert guard.flush(60)
    rows = {row.name: row for row in guard.status()}
    assert rows["cap"].used == spent
    assert spent <= CAP
    assert rows["tokens"].used <= 40_000
    assert {row.reserved for row in rows.values()} == {0}


def test_64_threads(kit: Any, store: Store) -> None:
    guard = kit.guard(*BUDGETS, store=store)
    with ThreadPoolExecutor(64) as pool:
        spent = sum(pool.map(lambda seed: loop(kit, guard, seed, 8), range(64)), Decimal(0))
    ends_clean(guard, spent)
    assert spent > CAP / 2


def test_1000_tasks(kit: Any, store: Store) -> None:
    guard = kit.guard(*BUDGETS, store=store)

    async def one(seed: int) -> Decimal:
        rng = random.Random(seed)
        given, bound = rng.randint(0, 200), rng.randint(1, 400)
        try:
            lease = await guard.aadmit(kit.call(tenant="acme"), kit.sizes(given, bound))
        except BudgetExceededError:
            return Decimal(0)
        await asyncio.sleep(rng.random() / 1000)
        record = kit.record(lease, given, rng.randint(0, bound))
        guard.settle(lease, record)
        return record.cost.total

    async def run() -> Decimal:
        return sum(await asyncio.gather(*(one(seed) for seed in range(1000))), Decimal(0))

    spent = asyncio.run(run())
    ends_clean(guard, spent)
    assert spent > CAP / 2


def test_without_reservation_the_same_race_overspends(kit: Any) -> None:
    """The control: read, decide, call, book. If this held the cap, the tests above would show nothing."""
    guard = kit.guard(Budget("cap", usd=CAP))
    slot = guard._state.index.plan(kit.call(), "model-1", kit.clock()).slots
    ready = threading.Barrier(32)

    def one(seed: int) -> Decimal:
        rng = random.Random(seed)
        spent = Decimal(0)
        ready.wait(300)
        for n in range(20):
            used, _, limit = guard.store.read(slot)[0]
            amount = rng.randint(500_000, 1_000_000)
            if used + amount > limit:
                continue
            time.sleep(0.001)
            guard.store.settle(f"{seed}-{n}", slot, [amount])
            spent += Decimal(amount) / 10**9
        return spent

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(one, range(32)), Decimal(0)) > CAP


def test_spent_plus_reserved_never_passes_the_cap_while_it_runs(kit: Any, store: Store) -> None:
    guard = kit.guard(Budget("cap", usd=CAP, grace={"usd": "0.01"}), store=store)
    done = threading.Event()
    worst = [Decimal(0)]

    def watch() -> None:
        last = False
        while not last:
            last = done.is_set()
            for row in guard.status():
                worst[0] = max(worst[0], row.used + row.reserved)

    def work(seed: int) -> Decimal:
        if seed % 2:
            with guard.critical(f"section {seed}"):
                return loop(kit, guard, seed, 15)
        return loop(kit, guard, seed, 15)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    done.set()
    watcher.join()
    assert CAP / 2 < worst[0] <= CAP + Decimal("0.01")


def in_child(
    kind: Any, kit: Any, work: Callable[[Any], Any], answer: Callable[[Any], None], lease_seconds: float = 300
) -> None:
    guard = kit.guard(*BUDGETS, store=kind.make(), lease_seconds=lease_seconds)
    answer(work(guard))
    guard.close(60)


@pytest.mark.parametrize("store_kind", ["sqlite", "redis"], indirect=True)
def test_8_processes(kit: Any, store_kind: Any) -> None:
    last = kit.guard(*BUDGETS, store=store_kind.open())
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child(seed: int) -> None:
        in_child(store_kind, Other(kit, seed), lambda guard: loop(Other(kit, seed), guard, seed, 40), queue.put)

    children = [context.Process(target=child, args=(seed,)) for seed in range(8)]
    for process in children:
        process.start()
    spent = sum((queue.get() for _ in children), Decimal(0))
    for process in children:
        process.join(300)
        assert process.exitcode == 0
    ends_clean(last, spent)
    assert spent > CAP / 2


@pytest.mark.parametrize("store_kind", ["sqlite", "redis"], indirect=True)
def test_a_killed_process_gives_back(kit: Any, store_kind: Any) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child() -> None:
        def work(guard: Any) -> str:
            lease = guard.admit(kit.call(tenant="acme"), kit.sizes(10_000, 10_000))
            queue.put(lease.key)
            time.sleep(100)
            return lease.key

        in_child(store_kind, kit, work, queue.put, lease_seconds=2)

    guard = kit.guard(*BUDGETS, store=store_kind.open())
    process = context.Process(target=child)
    process.start()
    queue.get()
    time.sleep(2.5)
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(tenant="acme"), kit.sizes(10_000, 20_000))
    process.kill()
    process.join(300)
    deadline = time.monotonic() + 300
    while any(row.reserved for row in guard.status()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lost_lease_expires_and_gives_back(kit: Any, store: Store) -> None:
    guard = kit.guard(Budget("b", tokens=1000), store=store, lease_seconds=2)
    kept = guard.admit(kit.call(), kit.sizes(100, 200))
    guard.admit(kit.call(), kit.sizes(100, 600))
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(100, 600))
    deadline = time.monotonic() + 300
    while guard.status()[0].reserved != 300:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(2.1)
    assert guard.status()[0].reserved == 300
    guard.settle(kept, kit.record(kept))
    assert guard.flush(10)
    assert guard.status()[0].reserved == 0
