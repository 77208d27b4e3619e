"""Finding a call's budgets: right for any mix of patterns, and as fast among a thousand as among ten."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.budgets.limit import Limit, scope_name
from otel_tokens.guard.estimate.matching import Index
from otel_tokens.guard.store.memory.store import MemoryStore


def index(*budgets: Budget) -> Index:
    return Index([Limit(budget, limit, (), "upper") for budget in budgets for limit in budget.limits])


def names(plan: Any) -> set[str]:
    return {limit.name for limit in plan.limits}


def test_the_index_finds_what_a_full_search_finds(kit: Any) -> None:
    rng = random.Random(3)
    keys = ("model", "provider", "operation", "tenant", "user")
    patterns = ("a", "b", "c", "*", "a*", "?", "[ab]", "x")
    budgets = [
        Budget(
            f"b{n}",
            usd=1,
            match={k: rng.sample(patterns, rng.randint(1, 2)) for k in rng.sample(keys, rng.randint(0, 3))},
        )
        for n in range(300)
    ]
    found = index(*budgets)
    for _ in range(200):
        tags = {k: rng.choice(("a", "b", "abc", "zz")) for k in ("tenant", "user") if rng.random() < 0.8}
        call = replace(
            kit.call(rng.choice(("a", "b", "abc")), **tags), provider=rng.choice("abz"), operation=rng.choice("ac")
        )
        facts = {**tags, "model": call.model, "provider": call.provider, "operation": call.operation}
        expected = {
            b.name
            for b in budgets
            if all(
                k in facts and any(fnmatchcase(facts[k], p) for p in ([v] if isinstance(v, str) else v))
                for k, v in b.match.items()
            )
        }
        assert names(found.plan(call, call.model, 0)) == expected


def test_a_pattern_given_twice_counts_once(kit: Any) -> None:
    guard = kit.guard(
        Budget("t", calls=2, match={"tenant": ["acme", "acme"]}),
        Budget("m", calls=2, match={"model": ["Model-1", "model-1"]}),
    )
    for _ in range(2):
        kit.spend(guard, tenant="acme")
    assert [(row.name, row.used) for row in guard.status()] == [("m", 2), ("t", 2)]


def test_plans_and_slots_are_reused_until_a_window_ends(kit: Any) -> None:
    found = index(Budget("day", usd=1, window="day"), Budget("hour", calls=5, window="hour", per="tenant"))
    now = 1_795_219_200_000
    first = found.plan(kit.call(tenant="a"), "m", now)
    assert found.plan(kit.call(tenant="a"), "m", now + 3_599_999) is first
    later = found.plan(kit.call(tenant="a"), "m", now + 3_600_000)
    assert later is not first
    assert later.slots[0] is first.slots[0]
    assert later.slots[1].start == now + 3_600_000
    other = found.plan(kit.call(tenant="b"), "other", now)
    assert other.slots[0] is first.slots[0]


def test_scopes_cannot_be_confused() -> None:
    assert scope_name(("a", "b"), ("1,b=2", "")) != scope_name(("a", "b"), ("1", "2"))
    assert scope_name(("a",), ("x=y,z%|\n\x00",)) == "a=x%3Dy%2Cz%25%7C%0A%00"
    assert len(scope_name(("a",), ("x" * 1000,))) == 258


def cost(kit: Any, budgets: list[Budget], scopes: int) -> float:
    """Seconds of CPU per admit and settle, over calls of many scopes."""
    guard = kit.guard(*budgets, store=MemoryStore())
    calls = [kit.call(tenant=f"t{n % 1000}", session=f"s{n}") for n in range(scopes)]
    sizes = kit.sizes()
    for call in calls:
        guard.release(guard.admit(call, sizes))
    best = float("inf")
    for _ in range(3):
        picked = random.Random(1).choices(calls, k=500)
        batch = [replace(call, id=f"{call.id}x{time.monotonic_ns()}") for call in picked]
        began = time.thread_time()
        for call in batch:
            guard.release(guard.admit(call, sizes))
        best = min(best, time.thread_time() - began)
    return best / 500


def test_a_thousand_budgets_and_many_scopes_do_not_slow_a_call_down(kit: Any) -> None:
    few = [
        Budget("all", calls="1m"),
        Budget("session", tokens="1m", per="session"),
        Budget("t0", usd=9, match={"tenant": "t0"}),
    ]
    many = few[:2] + [Budget(f"t{n}", usd=9, match={"tenant": f"t{n}"}) for n in range(1000)]
    many += [Budget(f"m{n}", usd=9, match={"model": f"*model-{n + 5}x*"}) for n in range(200)]
    assert cost(kit, many, 10_000) < 6 * cost(kit, few, 100)


def test_accounts_are_forgotten(kit: Any) -> None:
    kit.now = 1_795_219_200.0
    guard = kit.guard(
        Budget("b", calls=9, per="session", window="minute"), Budget("c", calls=9, per="session", forget="1h")
    )
    for n in range(3000):
        kit.now += 10
        kit.spend(guard, session=f"s{n}")
    assert len(guard.store._accounts.known) < 1500
