"""All stores tell the same story in time too: windows, slices, expiry, debts, on a clock that the test turns."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from otel_tokens.guard.store import sqlite
from otel_tokens.guard.store.base import Slot, Store
from otel_tokens.guard.store.memory import MemoryStore
from otel_tokens.guard.store.redis import RedisStore
from otel_tokens.guard.store.redis_wire import Request, Script
from otel_tokens.guard.store.sqlite import SqliteStore


class Clock:
    def __init__(self) -> None:
        self.ms = 4_102_444_800_000  # the year 2100: Redis drops keys by its own clock

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "redis"])
def turned(
    request: pytest.FixtureRequest, clock: Clock, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A shared store that lives by the test's clock."""
    if request.param == "sqlite":
        monkeypatch.setattr(sqlite, "host_ms", clock)
        store: Store = SqliteStore(tmp_path / "budgets.db", timeout=10)
        yield store
        store.close()
        return

    import redis

    prefix = uuid.uuid4().hex
    scripts = {name: turned_script(name) for name in ("admit", "settle", "renew", "read", "rows", "change")}
    monkeypatch.setattr(Script, "named", staticmethod(scripts.__getitem__))
    store = RedisStore(redis_url, timeout=10, prefix=prefix)
    by_hand = redis.Redis.from_url(redis_url)
    ask = store._links.ask

    def with_clock(request: Request) -> object:
        by_hand.set(f"{{{prefix}}}:clock", clock.ms * 1000)
        return ask(request)

    monkeypatch.setattr(store._links, "ask", with_clock)
    yield store
    store.close()
    by_hand.close()


def turned_script(name: str) -> Script:
    """The script with its looks at the server's clock turned to a key that the test sets."""
    script = Script(name)
    assert script.text.count("call('TIME')") >= 1
    script.text = script.text.replace("call('TIME')", "{'0', call('GET', root .. ':clock')}")
    digest = hashlib.sha1(script.text.encode()).hexdigest().encode()
    script.by_digest = b"$7\r\nEVALSHA\r\n$40\r\n" + digest + b"\r\n"
    return script


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


def tell(store: Store, clock: Clock, seed: int) -> list[object]:
    rng = random.Random(seed)
    keys: list[tuple[str, tuple[Slot, ...]]] = []
    ended: set[str] = set()
    lives: dict[str, int] = {}
    seen: list[object] = []
    for n in range(90):
        clock.ms += rng.choice([0, 1, 40, 300, 900, 2500, 7000])
        now = slots_at(clock.ms, rng)
        roll = rng.random()
        if roll < 0.5 or not keys:
            chosen = tuple(rng.sample(now, rng.randint(1, 5)))
            open_keys = [entry for entry in keys if entry[0] not in ended and clock.ms < lives.get(entry[0], 0)]
            key = f"k{n}"
            if open_keys and rng.random() < 0.15:  # a stream that asks for more
                key, chosen = rng.choice(open_keys)
            amounts = [rng.randint(0, 40) * (10**11 if s.unit == "usd" else 1) for s in chosen]
            ttl = rng.choice([0, 400, 3000, 20_000])
            answer = store.admit(key, chosen, amounts, ttl, rng.choice(["", "", "x", "y"]))
            if ttl:
                keys.append((key, chosen))
                if answer.granted:
                    lives[key] = max(lives.get(key, 0), clock.ms + ttl)
            seen.append(("admit", answer._replace(balances=[tuple(b) for b in answer.balances])))
        elif roll < 0.72:
            key, chosen = rng.choice(keys)
            ended.add(key)
            amounts = [rng.randint(0, 40) * (10**11 if s.unit == "usd" else 1) for s in chosen]
            # What is booked on a window that is over is nobody's business: the account may be forgotten or not.
            booked = zip(chosen, store.settle(key, chosen, amounts), strict=False)
            seen.append(("settle", [tuple(b) for s, b in booked if not s.end or s.end > clock.ms]))
        elif roll < 0.8:
            key, chosen = rng.choice(keys)
            if not any(s.wall or s.slice_ms for s in chosen):
                ended.add(key)
                store.release(key)
        elif roll < 0.86:
            store.renew(rng.sample([key for key, _ in keys], min(3, len(keys))), 20_000)
        else:
            op = rng.choice(["add", "set", "unset", "reset", "finish", "pause", "review"])
            scope = rng.choice([None, None, "", "a=1"])
            amount = clock.ms + 2000 if op in {"pause", "review"} else rng.randint(-5, 150)
            seen.append((op, store.change(rng.choice("wmrsn"), op, unit="tokens", scope=scope, amount=amount)))
        seen.append(("read", [tuple(b) for b in store.read(now)]))
        if n % 10 == 0:
            seen.append(("rows", [replace(row, updated=0) for row in store.rows()]))
    return seen


@pytest.mark.parametrize("seed", range(25))
def test_the_same_story_on_a_turned_clock(turned: Store, clock: Clock, seed: int) -> None:
    began = clock.ms
    expected = tell(MemoryStore(clock), clock, seed)
    clock.ms = began
    for step, (found, wanted) in enumerate(zip(tell(turned, clock, seed), expected, strict=True)):
        assert found == wanted, f"step {step}"
