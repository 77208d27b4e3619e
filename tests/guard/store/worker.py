"""What the test's other processes do: `worker.py URL PREFIX STORY …`. Says "ready", then waits for a line."""

from __future__ import annotations

import random
import sys
import time

from otel_tokens.guard.store.base import Slot, Store
from otel_tokens.guard.store.open import open_store

TTL = 60_000
CAP = (Slot("cap|t|", "cap", "tokens", "", 4000), Slot("tenant|t|", "tenant", "tokens", "tenant=a", 5000))


def ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def spend(store: Store, name: str) -> None:
    """Spend until refused ten times in a row; print what was spent."""
    rng = random.Random(name)
    store.read(CAP)
    ready()
    spent = calls = refused = 0
    while refused < 10:
        key, amount = f"{name}-{calls}", rng.randint(1, 20)
        calls += 1
        if not store.admit(key, CAP, [amount] * 2, TTL).granted:
            refused += 1
            continue
        refused = 0
        actual = amount - rng.randint(0, 2)
        store.settle(key, CAP, [actual] * 2)
        spent += actual
    print(spent, flush=True)


def hold(store: Store, ttl_ms: str) -> None:
    """Reserve everything there is, and wait to be killed."""
    while True:
        admission = store.admit("held", CAP, [10, 10], int(ttl_ms))
        if not admission.granted:
            break
    ready()


def hammer(store: Store, name: str) -> None:
    """Write as fast as possible, until killed."""
    store.read(CAP)
    print("ready", flush=True)
    n = 0
    while True:
        n += 1
        store.admit(f"{name}-{n}", CAP, [1, 1], 100)
        store.settle(f"{name}-{n}", CAP, [0, 0])


def skewed(store: Store, start: str, end: str) -> None:
    """Admit in a window of the tests, with a clock that is two hours ahead."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + 7200  # type: ignore[assignment]
    time.time_ns = lambda: real_ns() + 7200 * 10**9  # type: ignore[assignment]
    slot = Slot("day|t|", "day", "tokens", "", 100, int(start), int(end))
    by_own_clock = Slot("day|t|", "day", "tokens", "", 100, int(start) + 7_200_000, int(end) + 7_200_000)
    moved = store.admit("skewed-1", [by_own_clock], [50], TTL)
    granted = store.admit("skewed-2", [slot], [60], TTL)
    store.settle("skewed-2", [slot], [60])
    print(moved.reason, granted.granted, abs(store.now() - real() * 1000) < 60_000, flush=True)


if __name__ == "__main__":
    url, prefix, story, *words = sys.argv[1:]
    store = open_store(url, timeout=300, prefix=prefix)
    {"spend": spend, "hold": hold, "hammer": hammer, "skewed": skewed}[story](store, *words)
    store.close()
