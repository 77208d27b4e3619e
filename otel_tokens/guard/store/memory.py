"""Budgets in this process's memory: one lock, one dictionary of accounts. The reference for the other stores."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from otel_tokens.guard.forks import at_fork
from otel_tokens.guard.store.base import Admission, Balance, Booking, Change, Row, Slot, Store

REMEMBERED_KEYS = 8192
_FAR = 1 << 62


def _unix_ms() -> int:
    return int(time.time() * 1000)


class _Account:
    """What is kept for one (budget, unit, scope): rules in `base.py`."""

    __slots__ = (
        "born",
        "carried",
        "carried_from",
        "declared",
        "end",
        "extra",
        "finished",
        "grace_at",
        "grace_by",
        "keep_ms",
        "limit_set",
        "paused_until",
        "reserved",
        "review_until",
        "slice_ms",
        "slices",
        "slot",
        "start",
        "updated",
        "used",
    )

    def __init__(self, slot: Slot, now: int) -> None:
        self.slot = slot
        self.start = slot.start
        self.end = slot.end
        self.used = 0
        self.reserved = 0
        self.extra = 0
        self.born = now
        self.updated = now
        self.limit_set: int | None = None
        self.finished = False
        self.paused_until = 0
        self.review_until = 0
        self.grace_by = ""
        self.grace_at = 0
        self.carried = 0
        self.carried_from = -1
        self.slices: deque[list[int]] | None = deque() if slot.slice_ms else None

    def roll(self, slot: Slot, limit: int, now: int) -> None:
        """Begin the slot's window; a debt of the old one is carried over (rule 7)."""
        carried = max(0, self.used + self.reserved - limit) if self.grace_by else 0
        self.carried, self.carried_from = carried, self.start if carried else -1
        self.slot, self.start, self.end = slot, slot.start, slot.end
        self.used, self.reserved, self.extra = carried, 0, 0
        self.born = now
        self.finished, self.paused_until, self.review_until = False, 0, 0
        self.grace_by, self.grace_at = "", 0
        self.slices = deque() if slot.slice_ms else None

    def age(self, now: int, limit: int) -> None:
        """Rolling windows: drop the slices that left; forget a repaid grace after a whole window."""
        slices = self.slices
        if slices is None:
            return
        slot = self.slot
        oldest = now // slot.slice_ms - slot.slices
        while slices and slices[0][0] < oldest:
            self.used -= slices.popleft()[1]
        if self.grace_by and now - self.grace_at >= slot.slice_ms * slot.slices and self.used <= limit:
            self.grace_by = ""

    def book(self, amount: int, now: int) -> None:
        """Count `amount` as used, now."""
        self.used += amount
        self.updated = now
        if self.slices is not None:
            index = now // self.slot.slice_ms
            if self.slices and self.slices[-1][0] >= index:
                self.slices[-1][1] += amount
            else:
                self.slices.append([index, amount])

    def correct_carried(self, start: int, difference: int) -> None:
        """A lease of the window the debt came from used `difference` more (or less) than it had reserved."""
        if start == self.carried_from and self.carried:
            difference = max(difference, -self.carried)
            self.carried += difference
            self.used += difference

    def clear(self, now: int) -> None:
        """Start over within the window; leases stay reserved."""
        self.used = self.extra = self.carried = 0
        self.carried_from = -1
        self.grace_by, self.grace_at, self.finished, self.born = "", 0, False, now
        self.paused_until = self.review_until = 0
        if self.slices is not None:
            self.slices.clear()

    def forgotten(self, now: int) -> bool:
        """Whether nothing depends on this account any more (rule 9)."""
        if self.reserved > 0:
            return False
        if self.end:
            return now >= 2 * self.end - self.start and self.limit_set is None
        return self.slot.keep_ms > 0 and now >= self.updated + self.slot.keep_ms
