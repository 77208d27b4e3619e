"""Many at once against one cap: threads, tasks, processes. What is spent never passes the cap, not by one."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from otel_tokens.guard.store.base import Slot, Store, StoreError

TTL = 60_000


def cap(limit: int) -> tuple[Slot, ...]:
    return (Slot("cap|t|", "cap", "tokens", "", limit), Slot("tenant|t|a", "tenant", "tokens", "tenant=a", 10 * limit))


def test_64_threads(place) -> None:
    store, slots = place.open(), cap(2000)
    worst: list[int] = []
    begin = threading.Barrier(64)

    def work(worker: int) -> int:
        rng = random.Random(worker)
        spent = 0
        begin.wait()
        for n in range(12):
            amount = rng.randint(1, 20)
            admission = store.admit(f"{worker}-{n}", slots, [amount] * 2, TTL)
            used, reserved, _ = admission.balances[0]
            worst.append(used + reserved)
            if admission.granted:
                actual = amount - rng.randint(0, 1)
                store.settle(f"{worker}-{n}", slots, [actual] * 2)
                spent += actual
        return spent

    with ThreadPoolExecutor(64) as pool:
        total = sum(pool.map(work, range(64)))
    assert store.read(slots) == [(total, 0, 2000), (total, 0, 20_000)]
    assert 1900 < total <= 2000
    assert max(worst) <= 2000


async def test_1000_tasks(place) -> None:
    store, slots = place.open(), cap(3000)

    async def work(n: int) -> int:
        rng = random.Random(n)
        amount = rng.randint(1, 10)
        if not (await store.aadmit(f"task-{n}", slots, [amount] * 2, TTL)).granted:
            return 0
        await asyncio.sleep(0)
        bookings = await store.asettle(f"task-{n}", slots, [amount - 1] * 2)
        assert bookings[0][1] + bookings[0][2] <= 3000
        return amount - 1

    total = sum(await asyncio.gather(*(work(n) for n in range(1000))))
    assert await store.aread(slots) == [(total, 0, 3000), (total, 0, 30_000)]
    assert 2000 < total <= 3000
    await store.aclose()


def test_8_processes(place, run_worker) -> None:
    workers = [run_worker(place, "spend", f"process-{n}") for n in range(8)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [worker.communicate(timeout=300) for worker in workers]
    assert [stderr for _, stderr in answers] == [""] * 8
    spent = [int(stdout) for stdout, _ in answers]
    used, reserved, limit = place.open().read([Slot("cap|t|", "cap", "tokens", "", 4000)])[0]
    assert (used, reserved) == (sum(spent), 0)
    assert 3900 < used <= limit
    assert sum(1 for amount in spent if amount) > 1, "only one process got anything: no race"


def test_the_same_race_without_reservation_overspends(place) -> None:
    store, slots = place.open(), cap(100)
    everyone_has_looked = threading.Barrier(16)

    def careless(worker: int) -> None:
        used, _, limit = store.read(slots)[0]
        everyone_has_looked.wait()
        if used + 20 <= limit:
            store.settle(f"careless-{worker}", slots, [20, 20])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(careless, range(16)))
    assert store.read(slots)[0][0] == 320


def test_threads_and_loops_share_one_store(place) -> None:
    store, slots = place.open(), cap(500)

    def in_thread(worker: int) -> int:
        return sum(5 for n in range(20) if spend(store, f"t{worker}-{n}"))

    def spend(store: Store, key: str) -> bool:
        granted = store.admit(key, slots, [5, 5], TTL).granted
        if granted:
            store.settle(key, slots, [5, 5])
        return granted

    def in_loop(worker: int) -> int:
        async def one(n: int) -> int:
            if not (await store.aadmit(f"l{worker}-{n}", slots, [5, 5], TTL)).granted:
                return 0
            await store.asettle(f"l{worker}-{n}", slots, [5, 5])
            return 5

        async def all_of_them() -> int:
            return sum(await asyncio.gather(*(one(n) for n in range(20))))

        return asyncio.run(all_of_them())

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(story, n) for n in range(4) for story in (in_thread, in_loop)]
        total = sum(future.result() for future in futures)
    assert total == 500
    assert store.read(slots)[0] == (500, 0, 500)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_cancelled_and_released_leaves_nothing(place, asynchronous: bool) -> None:
    """A task cancelled at any moment, whose lease is then released, leaks nothing and confuses nobody."""
    store, slots = place.open(), cap(10_000)

    async def one(n: int) -> None:
        try:
            await store.aadmit(f"c{n}", slots, [7, 7], TTL)
            await asyncio.sleep(60)
        finally:
            if asynchronous:
                await store.arelease(f"c{n}")
            else:
                store.release(f"c{n}")

    async def story() -> None:
        rng = random.Random(1)
        tasks = [asyncio.ensure_future(one(n)) for n in range(100)]
        for task in tasks:
            await asyncio.sleep(rng.random() * 0.001)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Other requests get their own answers, not those of the cancelled.
        assert (await store.aread(slots))[0][0] == 0
        assert (await store.aadmit("other", slots, [1, 1], TTL)).granted
        await store.asettle("other", slots, [1, 1])
        await store.aclose()

    asyncio.run(story())
    until = time.monotonic() + 300
    while store.read(slots)[0] != (1, 0, 10_000):  # a cancelled request may still be on its way
        assert time.monotonic() < until, store.read(slots)
        time.sleep(0.01)


def test_an_admission_overtaken_by_its_release_reserves_nothing(place) -> None:
    store, slots = place.open(), cap(100)
    store.admit("before", slots, [1, 1], TTL)
    store.settle("before", slots, [0, 0])
    store.release("k")
    with pytest.raises(StoreError, match="has ended"):
        store.admit("k", slots, [10, 10], TTL)
    assert store.read(slots)[0] == (0, 0, 100)
