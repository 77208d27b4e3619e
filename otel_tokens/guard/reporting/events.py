"""Events of the guard, for people, spans and hooks, and counts of its decisions."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, Literal

from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.store.base import Balance, Slot
from otel_tokens.values import EMPTY, Call

Kind = Literal[
    "threshold", "exceeded", "cut", "overdraft", "downgrade", "clamp", "slow", "pause", "resume", "unpriced", "store",
    "estimate", "failed_action",
]  # fmt: skip
Decision = Literal["allow", "warn", "deny"]
_COUNT_EVERY = 256


@dataclass(frozen=True, slots=True)
class Event:
    """Something the guard saw or did. Amounts are in whole units (USD, tokens, seconds); `at` is unix seconds.

    `ratio` is used / limit, `threshold` the share that was crossed ("70 %"), `detail` says the rest in words.
    """

    kind: Kind
    budget: str = ""
    scope: str = ""
    unit: str = ""
    used: Decimal | None = None
    reserved: Decimal | None = None
    limit: Decimal | None = None
    ratio: float | None = None
    threshold: str = ""
    resets_at: float | None = None
    provider: str = ""
    model: str = ""
    detail: str = ""
    at: float = 0.0
    tags: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON takes it; money as text, so that nothing is lost."""
        row: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for key in ("used", "reserved", "limit"):
            row[key] = None if row[key] is None else str(row[key])
        row["tags"] = dict(self.tags)
        return row


def about(kind: Kind, limit: Limit, slot: Slot, balance: Balance, *, call: Call | None, now: int, **more: Any) -> Event:
    """An event about one account."""
    used, reserved, most = balance
    return Event(
        kind,
        budget=limit.name,
        scope=slot.scope,
        unit=limit.unit,
        used=units.from_smallest(limit.unit, used),
        reserved=units.from_smallest(limit.unit, reserved),
        limit=units.from_smallest(limit.unit, most),
        ratio=used / most if most > 0 else 1.0,
        resets_at=limit.resets_at(now),
        provider="" if call is None else call.provider,
        model="" if call is None else call.model,
        at=now / 1000,
        tags=EMPTY if call is None else call.tags,
        **more,
    )


Emit = Callable[[Event], object]


class Decisions:
    """How often each budget allowed, warned or denied, by provider and model: the totals of a counter.

    `Plan.decision_key` names a model, its provider and all budgets of a plan: one count stands for all of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._allowed: deque[str] = deque()
        self._plans: Counter[str] = Counter()
        self._single: dict[tuple[str, str, str, str, str], int] = {}

    def allowed(self, decision_key: str) -> None:
        """All budgets of a plan allowed a call."""
        # Appending needs no lock, which would cost more than all the rest.
        self._allowed.append(decision_key)
        if len(self._allowed) >= _COUNT_EVERY:
            self._count()

    def _count(self) -> None:
        with self._lock:
            self._plans.update([self._allowed.popleft() for _ in range(len(self._allowed))])

    def warned(self, decision_key: str, names: Collection[str]) -> None:
        """The budgets of a plan allowed a call, `names` of them with a warning."""
        model, provider, *every = decision_key.split("\n")
        for name in every:
            self.single(name, "warn" if name in names else "allow", provider, model)

    def single(self, budget: str, decision: Decision, provider: str, model: str, reason: str = "") -> None:
        """A decision of one budget, or for a `reason` such as "store" of none."""
        key = (budget, decision, provider, model, reason)
        with self._lock:
            self._single[key] = self._single.get(key, 0) + 1

    def totals(self) -> Sequence[tuple[str, str, str, str, str, int]]:
        """(budget, decision, provider, model, reason, count), all since the start of the process."""
        self._count()
        with self._lock:
            plans, counts = dict(self._plans), dict(self._single)
        for decision_key, count in plans.items():
            model, provider, *names = decision_key.split("\n")
            for name in names:
                key = (name, "allow", provider, model, "")
                counts[key] = counts.get(key, 0) + count
        return [(*key, count) for key, count in sorted(counts.items())]

    def after_fork(self) -> None:
        """A child counts from zero: the parent reports its own."""
        self._lock = threading.Lock()
        self._allowed.clear()
        self._plans.clear()
        self._single.clear()
