"""Budgets seen and changed from outside a call: by the CLI on a store of its own, or in the process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, get_args

from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.limit import scope_name
from otel_tokens.guard.store.base import Change, Row, Store
from otel_tokens.values import EXACT


@dataclass(frozen=True, slots=True)
class Status:
    """The state of one budget in one scope. Amounts are in whole units of `unit` (USD, tokens, seconds, …).

    `declared` is the limit as configured, `limit` the one in force after changes by hand; `start` and `end` are unix
    seconds, None without a calendar window; `window_seconds` is the length of a rolling one. `overdraft` is what
    is used beyond the limit under grace and not repaid. `paused_until` is set while a call waits here, a few seconds
    ahead and renewed; `review_until` while a person looks at it. Both are None when that is over.
    `lost`: the store does not answer; the row is what this process last knew, with what it let through since.
    """

    name: str
    unit: str
    scope: str
    used: Decimal
    reserved: Decimal
    limit: Decimal
    declared: Decimal
    start: float | None = None
    end: float | None = None
    window_seconds: float | None = None
    overdraft: Decimal = Decimal(0)
    finished: bool = False
    paused_until: float | None = None
    review_until: float | None = None
    updated: float | None = None
    lost: bool = False

    @property
    def remaining(self) -> Decimal:
        """What is neither used nor reserved, never below 0."""
        return max(Decimal(0), EXACT.subtract(EXACT.subtract(self.limit, self.used), self.reserved))

    @property
    def ratio(self) -> float:
        """used / limit; 1 for a limit of nothing."""
        return float(self.used) / float(self.limit) if self.limit > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: amounts as text, nothing lost."""
        row: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        row = {key: str(value) if isinstance(value, Decimal) else value for key, value in row.items()}
        return {**row, "remaining": str(self.remaining), "ratio": round(self.ratio, 6)}


def status(store: Store, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Status]:
    """The running accounts of a store, at most `limit`, by budget, scope and unit. Raises StoreError."""
    return [from_row(row) for row in store.rows(budget, scope, limit)]


def from_row(row: Row) -> Status:
    """A store's row in whole units."""

    def whole(amount: int) -> Decimal:
        return units.from_smallest(row.unit, amount)

    return Status(
        name=row.budget,
        unit=row.unit,
        scope=row.scope,
        used=whole(row.used),
        reserved=whole(row.reserved),
        limit=whole(row.limit),
        declared=whole(row.declared),
        start=row.start / 1000 if row.start else None,
        end=row.end / 1000 if row.end else None,
        window_seconds=row.rolling_ms / 1000 if row.rolling_ms else None,
        overdraft=whole(row.overdraft),
        finished=row.finished,
        paused_until=row.paused_until / 1000 if row.paused_until else None,
        review_until=row.review_until / 1000 if row.review_until else None,
        updated=row.updated / 1000 if row.updated else None,
        lost=row.lost,
    )


def change(store: Store, op: Change, name: str, amount: str | None = None, *, scope: str | None = None) -> int:
    """Change budget `name`, everywhere or in one `scope` ("tenant=acme"); how many accounts were changed.

    `amount` is text such as "5USD", "50k tokens", "10 calls", "15min": what add and set need, what unset needs as
    a unit ("USD"), and for review how long (default 10 min). Raises ValueError for an amount that makes no sense,
    StoreError for a store that does not answer.
    """
    if op not in get_args(Change):
        raise ValueError(f"{op!r} is no change; allowed: {', '.join(get_args(Change))}")
    if op == "review":
        length = units.duration(amount if amount is not None else "10min")
        return store.change(name, op, scope=scope, amount=store.now() + int(length * 1000))
    if op == "unset":
        unit, _ = units.parse_amount(f"0 {amount or ''}")
        return store.change(name, op, unit=unit, scope=scope)
    if op not in {"add", "set"}:
        return store.change(name, op, scope=scope)
    if amount is None:
        raise ValueError(f"{op} needs an amount, such as 5USD or 50k tokens")
    unit, smallest = units.parse_amount(amount)
    if op == "set" and smallest < 0:
        raise ValueError("a limit cannot be below 0")
    return store.change(name, op, unit=unit, scope=scope, amount=smallest)


def of_tags(rows: Iterable[Status], tags: dict[str, str]) -> list[Status]:
    """The rows whose scope names one of these tags ("task=42"): a task's state."""
    wanted = {scope_name((key,), (str(value),)) for key, value in tags.items()}
    return [row for row in rows if wanted & set(row.scope.split(","))]
