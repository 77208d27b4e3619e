"""One limit of one budget: its current window, its accounts, its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.budgets.fields import DeclaredLimit
from otel_tokens.guard.budgets.thresholds import STEERING, Action, Threshold
from otel_tokens.guard.store.base import NEVER, Slot

DOWNGRADE_AT = 700  # permille
Measure = str
"""What a limit takes of a call's amounts: a unit, with "~" in front for the expected instead of the upper one."""

_LONGEST = 256  # characters, as many as a tag may have
_ESCAPES = str.maketrans({c: f"%{ord(c):02X}" for c in "%,=|\n\r\0\t"})


class Limit:
    """A limit that calls are admitted against. Everything but the cached window is fixed."""

    __slots__ = (
        "_limit",
        "_slice",
        "_turn",
        "budget",
        "clamp_at",
        "counts_operations",
        "downgrade_at",
        "hard",
        "identity",
        "ladder",
        "measure",
        "name",
        "pause_at",
        "pause_seconds",
        "scope_keys",
        "slow",
        "steers",
        "thresholds",
        "unit",
        "wait_seconds",
        "wall",
        "window",
    )

    def __init__(
        self,
        budget: Budget,
        most: DeclaredLimit,
        thresholds: tuple[Threshold, ...],
        estimate: Literal["upper", "expected"],
    ) -> None:
        self.budget = budget
        self.name = budget.name
        self.unit = most.unit
        self._limit = most
        self.counts_operations = units.family(most.unit) == units.OPERATIONS
        self.hard = budget.enforce == "hard"
        self.scope_keys = budget.scope_keys
        self.window = budget.span
        self.wall = budget.wall and most.unit == units.SECONDS
        words = [self.window.identity] if self.window is not None else []
        self.identity = " ".join([*words, "wall"] if self.wall else words)
        self.measure: Measure = self._measure(budget.estimate or estimate)
        self.thresholds = budget.marks if budget.marks is not None else thresholds
        self.ladder = budget.rungs
        self.wait_seconds = budget.wait_seconds if self.hard else 0.0
        acts = budget.enforce != "observe"
        steering = [(t.permille, a) for t in self.thresholds for a in t.actions if a.kind in STEERING] if acts else []
        self.downgrade_at = [at for at, action in steering if action.kind == "downgrade" and self.ladder]
        if self.ladder and acts and not self.downgrade_at:
            # A ladder that nobody climbs down would be a mistake nobody sees: it begins at the first threshold.
            self.downgrade_at = [min((t.permille for t in self.thresholds), default=DOWNGRADE_AT)]
        self.clamp_at = _first(steering, "clamp")
        self.pause_at = _first(steering, "pause")
        self.pause_seconds = max((a.seconds for _, a in steering if a.kind == "pause"), default=0.0)
        self.slow = [(at, action.seconds) for at, action in steering if action.kind == "slow"]
        # A hard budget that is used up refuses by itself; a soft one must be watched to pause at 100 %.
        self.steers = bool(self.downgrade_at or self.slow or self.pause_at < (1000 if self.hard else 1001))
        self._turn: tuple[int, int, int, int] = (0, 0, 0, 0)
        span = self.window
        self._slice = (span.slice_ms, span.slices) if span is not None else (0, 0)

    def _measure(self, estimate: str) -> Measure:
        if self.unit == units.SECONDS:
            return "wall" if self.wall else units.SECONDS
        return f"~{self.unit}" if estimate == "expected" and self.unit != units.CALLS else self.unit

    def now(self, now: int) -> tuple[int, int, int, int]:
        """(start, end, limit, unix ms until which this holds)."""
        turn = self._turn
        if turn[3] <= now or now < turn[0]:
            self._turn = turn = self._work_out(now)
        return turn

    def _work_out(self, now: int) -> tuple[int, int, int, int]:
        span, declared = self.window, self._limit
        if span is None:
            return 0, 0, declared.amount, NEVER
        start, end = span.at(now)
        if not declared.by_weekday:
            return start, end, declared.amount, end or NEVER
        # A calendar window has the limit of the day it begins on; a rolling one that of today.
        amount = declared.by_weekday[span.weekday(start or now)]
        return start, end, amount, end or span.day_end(now)

    def slot(self, scope: str, key: str, now: int) -> Slot:
        """The slot of a scope in the window of `now`."""
        start, end, most, _ = self.now(now)
        return Slot(
            key=key,
            budget=self.name,
            unit=self.unit,
            scope=scope,
            limit=most,
            start=start,
            end=end,
            slice_ms=self._slice[0],
            slices=self._slice[1],
            hard=self.hard,
            wall=self.wall,
            grace=self._limit.grace,
            keep_ms=self.budget.keep_ms,
            window=self.identity,
        )

    def resets_at(self, now: int) -> float | None:
        """Unix seconds at which the calendar window ends, or None."""
        end = self.now(now)[1]
        return end / 1000 if end else None


def scope_name(keys: Sequence[str], values: Sequence[str]) -> str:
    """The scope of these values: "tenant=acme,user=bob"; "" for a budget that is not split.

    A value that is missing is empty: calls without the tag share one scope.
    Values longer than a tag may be are cut.
    """
    return ",".join([f"{key}={_plain(value)}" for key, value in zip(keys, values, strict=True)])


def _plain(value: str) -> str:
    return value[:_LONGEST] if value.isalnum() else value[:_LONGEST].translate(_ESCAPES)


def slot_key(limit: Limit, scope: str) -> str:
    """The identity of a limit's account for `scope`. Limits with different windows have different accounts."""
    key = f"{limit.name}|{limit.unit}|{scope}"
    return f"{key}|{limit.identity}" if limit.identity else key


def _first(steering: Sequence[tuple[int, Action]], kind: str) -> int:
    return min((at for at, action in steering if action.kind == kind), default=NEVER)
