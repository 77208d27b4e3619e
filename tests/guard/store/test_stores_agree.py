"""All stores tell the same story in time too: windows, slices, expiry, debts, on a clock that the test turns."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_tokens.guard.store.base import LIMIT_CHANGES, Slot, Store, StoreError
from otel_tokens.guard.store.memory.store import MemoryStore


def slots_at(now: int, rng: random.Random) -> list[Slot]:
    """What five declarations look like now: calendar windows, a rolling one, a wall clock, one without a window."""
    seconds, minute = now // 5000 * 5000, now // 60_000 * 60_000
    return [
        Slot("w|t|", "w", "tokens", "", 100, seconds, seconds + 5000, grace=20),
        Slot("m|t|a=1", "m", "tokens", "a=1", 300, minute, minute + 60_000, grace=15, hard=rng.random() < 0.8),
        Slot("r|t|", "r", "tokens", "", 120, slice_ms=700, slices=5, grace=10),
        Slot("s|s|", "s", "seconds", "", 30_000, minute, minute + 60_000, wall=True),
        Slot("n|usd|b=2", "n", "usd", "b=2", 10**13, grace=10**11),
    ]


def admitted(store: Store, key: str, slots: tuple[Slot, ...], amounts: list[int], ttl: int, critical: str) -> object:
    try:
        answer = store.admit(key, slots, amounts, ttl, critical)
    except StoreError:
        return "ended"
    return replace(answer, balances=[tuple(b) for b in answer.balances])


def tell(store: Store, clock: Any, rng: random.Random, steps: int) -> list[object]:
    """A random story of calls, streams that ask for more, changes by hand and passing time; returns all it heard."""
    keys: list[tuple[str, tuple[Slot, ...]]] = []
    seen: list[object] = []
    for n in range(steps):
        clock.ms += rng.choice([0, 1, 40, 300, 900, 2500, 7000])
        now = slots_at(clock.ms, rng)
        roll = rng.choice(["admit"] * 5 + ["more", "settle", "settle", "part", "release", "renew", "change"])
        if roll == "admit" or not keys:
            chosen = tuple(rng.sample(now, rng.randint(1, 5)))
            keys.append((f"k{n}", chosen))
            ttl = rng.choice([0, 400, 3000, 20_000])
            seen.append(admitted(store, f"k{n}", chosen, amounts(chosen, rng), ttl, rng.choice(["", "", "x", "y"])))
        elif roll == "more":  # a stream; its lease may live, or have expired, been settled, or never been granted
            key, _ = rng.choice(keys)
            chosen = tuple(rng.sample(now, rng.randint(1, 5)))
            keys.append((key, chosen))
            seen.append(admitted(store, key, chosen, amounts(chosen, rng), rng.choice([400, 20_000]), ""))
        elif roll in {"settle", "part"}:
            key, chosen = rng.choice(keys)
            chosen = chosen if roll == "settle" else chosen[:1]
            # What is booked on a window that is over is nobody's business: the account may be forgotten or not.
            booked = zip(chosen, store.settle(key, chosen, amounts(chosen, rng)), strict=False)
            seen.append(("settle", [tuple(b) for s, b in booked if not s.end or s.end > clock.ms]))
        elif roll == "release":
            store.release(rng.choice([*keys, ("unknown", ())])[0])
        elif roll == "renew":
            chance = rng.sample([key for key, _ in keys], min(3, len(keys)))
            store.renew([*chance, "unknown"], rng.choice([400, 20_000]))
        else:
            op = rng.choice(["add", "set", "unset", "reset", "finish", "pause", "review"])
            scope = rng.choice([None, None, "", "a=1"])
            unit = "tokens" if op in LIMIT_CHANGES else rng.choice(["tokens", None])
            amount = clock.ms + 2000 if op in {"pause", "review"} else rng.randint(-5, 150)
            seen.append((op, store.change(rng.choice("wmrsn"), op, unit=unit, scope=scope, amount=amount)))
        seen.append(("read", [tuple(b) for b in store.read(now)]))
        if n % 10 == 9:
            seen.append(("rows", [replace(row, updated=0) for row in store.rows()]))
    return seen


def amounts(slots: tuple[Slot, ...], rng: random.Random) -> list[int]:
    return [rng.randint(0, 40) * (10**11 if slot.unit == "usd" else 1) for slot in slots]


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 90))
def test_the_same_story_on_a_turned_clock(fresh: Callable[[], Store], clock: Any, seed: int, steps: int) -> None:
    began = clock.start
    clock.ms = began
    expected = tell(MemoryStore(clock), clock, random.Random(seed), steps)
    clock.ms = began
    for step, (found, wanted) in enumerate(
        zip(tell(fresh(), clock, random.Random(seed), steps), expected, strict=True)
    ):
        assert found == wanted, f"step {step}"
