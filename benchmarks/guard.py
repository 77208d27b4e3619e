"""What the guard costs: admit and settle on each store, against the barest thing that could do the same."""

from __future__ import annotations

import itertools
import shutil
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import callgrind
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.guard import Guard
from otel_tokens.guard.options import GuardOptions
from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.guard.store.open import open_store
from otel_tokens.pricing.bounds import straight
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import Pricer
from otel_tokens.values import Call, CallSizes, Cost, Record, Usage, make

ROUNDS = 15
USAGE = Usage(input=1200, output=80, origin="provider")
COST = Cost(*[Decimal("0.001")] * 2, *[Decimal(0)] * 4, status="priced")  # type: ignore[arg-type]
CALL = Call(
    id="1",
    provider="openai",
    endpoint="openai.chat",
    operation="chat",
    model="gpt-4o",
    started=time.time(),
    max_output=500,
    tags={"tenant": "acme", "session": "s", "task": "t", "user": "u"},
)
SIZES = CallSizes(input_tokens_estimate=1200, input_upper=1500, output_bound=500)
RECORD = Record(call=CALL, usage=USAGE, cost=COST, outcome="ok", duration=1.0)
FIVE = [
    Budget("day", usd="1000000", window="day"),
    Budget("tenant", usd="1000000", per="tenant"),
    Budget("session", tokens=10**12, per="session"),
    Budget("task", calls=10**9, per="task"),
    Budget("user", usd="1000000", per="user", window="month"),
]


MANY = [Budget(f"b{n}", usd="1000000", match={"model": f"other-{n}"}) for n in range(995)]
FLOOR, ADMIT = "floor: five keys", "admit + settle"

PRICER = Pricer(Catalog())
OPTIONS = GuardOptions(straight=partial(straight, PRICER))


def guarded(url: str, budgets: list[Budget]) -> tuple[Guard, Callable[[], None]]:
    """A guard on a store, and one admission with its settlement."""
    guard = Guard(budgets, open_store(url, timeout=5.0), price=PRICER, options=OPTIONS)
    calls = fresh_calls()

    def one() -> None:
        lease = guard.admit(next(calls), SIZES)
        if lease is not None:
            guard.settle(lease, RECORD)

    return guard, one


def on_store(store: Store, budgets: list[Budget]) -> Callable[[], None]:
    """The store's own part of it: one admission and settlement of the same accounts."""
    guard = Guard(budgets, store, price=PRICER, options=OPTIONS)
    slots = guard._state.index.plan(CALL, CALL.model, store.now()).slots  # pyright: ignore[reportPrivateUsage]
    amounts = [1] * len(slots)
    keys = map(str, itertools.count())

    def one() -> None:
        key = next(keys)
        store.admit(key, slots, amounts, 60_000)
        store.settle(key, slots, amounts)

    return one


def fresh_calls() -> Iterator[Call]:
    """Calls with ids of their own: a lease belongs to one call."""
    values = dict(vars(CALL))
    return (make(Call, {**values, "id": f"call-{number}"}) for number in itertools.count())


def cases() -> dict[str, callgrind.Case]:
    """What is counted in instructions."""
    PRICER("openai", "gpt-4o", USAGE, at=time.time())  # the price list is loaded once, not by each fork

    def floor(steps: int) -> None:
        step = bare()
        for _ in range(steps):
            step()

    def used(budgets: list[Budget], steps: int) -> None:
        _, one = guarded("memory", budgets)
        for _ in range(steps):
            one()

    def store(steps: int) -> None:
        one = on_store(MemoryStore(), FIVE)
        for _ in range(steps):
            one()

    def public(steps: int) -> None:
        guard, _ = guarded("memory", FIVE)
        for _ in range(steps):
            guard.settle(guard.reserve("openai", "gpt-4o", input_tokens=1200, max_output=500), USAGE)

    return {
        FLOOR: floor,
        ADMIT: partial(used, FIVE),
        "admit + settle, among 1,000": partial(used, FIVE + MANY),
        "the memory store alone": store,
        "reserve + settle": public,
    }


def instructions() -> None:
    """Print what is counted."""
    took = callgrind.instructions("benchmarks.guard:cases")
    print("instructions, in memory, five budgets (targets: admit + settle <= 60,000, reserve <= 1.2 x of it)")
    for name, count in took.items():
        print(f"{name:<42}{count:>9,.0f}  ({count / took[FLOOR]:.1f} x the floor, {count / took[ADMIT]:.2f} x)")


def bare() -> Callable[[], None]:
    """The floor: reserve on five keys behind a lock, then give that back and book."""
    lock, keys = threading.Lock(), [f"{budget.name}|scope" for budget in FIVE]
    reserved, used = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)

    def step() -> None:
        with lock:
            for key in keys:
                reserved[key] += 5
        with lock:
            for key in keys:
                reserved[key] -= 5
                used[key] += 3

    return step


def compare(
    floor: Callable[[], None],
    ours: Callable[[], None],
    calls: int,
    *,
    wall: bool,
    between: Callable[[], object] = int,
) -> tuple[float, float]:
    """Microseconds a call of both, medians over interleaved rounds; `between` them something not measured."""
    clock = time.perf_counter_ns if wall else time.process_time_ns
    took: dict[str, list[float]] = {"floor": [], "ours": []}
    for _ in range(ROUNDS):
        for name, step in (("floor", floor), ("ours", ours)):
            started = clock()
            for _call in range(calls):
                step()
            took[name].append((clock() - started) / calls / 1000)
            between()
    return statistics.median(took["floor"]), statistics.median(took["ours"])


def memory() -> None:
    """In memory, against a lock and a dictionary."""
    guard, ours = guarded("memory", FIVE)
    floor, took = compare(bare(), ours, 2000, wall=False)
    print(f"memory, five budgets     floor {floor:7.2f} us   admit+settle {took:8.2f} us   (target <= 15 us)")
    guard.close()
    _, alone = compare(bare(), on_store(MemoryStore(), FIVE), 2000, wall=False)
    print(f"memory, the store alone  {'':21}admit+settle {alone:8.2f} us   ({alone / floor:.1f} x)")
    guard, ours = guarded("memory", FIVE + MANY)
    _, among = compare(bare(), ours, 2000, wall=False)
    print(f"memory, among 1,000      {'':21}admit+settle {among:8.2f} us   ({among / took:.2f} x of five)")
    guard.close()


def sqlite(folder: Path) -> None:
    """On SQLite, against one bare indexed UPDATE in a transaction."""
    connection = sqlite3.connect(folder / "floor.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE used (key TEXT PRIMARY KEY, amount INTEGER) WITHOUT ROWID")
    connection.execute("INSERT INTO used VALUES ('day', 0)")

    def bare() -> None:
        connection.execute("UPDATE used SET amount = amount + 1 WHERE key = 'day'")

    guard, ours = guarded(f"sqlite:///{folder / 'guard.db'}", FIVE[:1])
    floor, took = compare(bare, ours, 200, wall=False)
    # admit and settle are two transactions, so two of the floor's.
    ratio = took / 2 / floor
    print(f"sqlite, one budget       floor {2 * floor:7.2f} us   admit+settle {took:8.2f} us   ({ratio:.2f} x)")
    guard.close()
    connection.close()


@contextmanager
def redis_server() -> Iterator[str | None]:
    """A redis-server on a free loopback port, or None where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait()


def redis() -> None:
    """On Redis: one admission against one bare EVALSHA round trip."""
    with redis_server() as url:
        if url is None:
            print("redis: not measured (apt-get install redis-server)")
            return
        import redis as client_library

        client = client_library.Redis.from_url(url)
        for _ in range(100):
            try:
                client.ping()
                break
            except client_library.ConnectionError:
                time.sleep(0.05)
        script = client.script_load("return redis.call('HINCRBY', KEYS[1], 'used', ARGV[1])")

        def bare() -> None:
            client.evalsha(script, 1, "{floor}", 1)

        store = open_store(url, timeout=5.0)
        guard = Guard(FIVE[:1], store, price=PRICER, options=OPTIONS)
        slots = guard._state.index.plan(CALL, CALL.model, store.now()).slots  # pyright: ignore[reportPrivateUsage]
        calls, keys, leases = fresh_calls(), map(str, itertools.count()), list[Any]()

        def admit() -> None:
            store.admit(next(keys), slots, (1,), 60_000)

        def guarded_admit() -> None:
            leases.append(guard.admit(next(calls), SIZES))

        def settled() -> None:
            """Settlements run on the guard's thread: outside the time that is taken, lest they run into it."""
            while leases:
                guard.release(leases.pop())
            guard.flush(30)

        bare()
        for name, ours in (("the store alone", admit), ("one budget", guarded_admit)):
            ours()
            floor, took = compare(bare, ours, 100, wall=True, between=settled)
            ratio = f"{took / floor:.2f} x, target 1.15"
            print(f"redis, {name:<17} EVALSHA {floor:5.1f} us   admit {took:15.2f} us   ({ratio})")
        guard.close()
        client.close()


def main() -> None:
    """Print the table."""
    if callgrind.available():
        instructions()
    else:
        print("instructions: not counted (apt-get install valgrind)")
    with tempfile.TemporaryDirectory() as name:
        memory()
        sqlite(Path(name))
        redis()


if __name__ == "__main__":
    main()
