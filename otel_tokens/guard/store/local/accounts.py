"""What one process knows of accounts without their store: the last balances, and what it let through since."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from otel_tokens.guard.store.base import Admission, AdmitRequest, Balance, Booking, Row, Slot

MAX_KNOWN = 65_536
"""Accounts whose balances are kept of the newest; as many older ones stay until there are as many again."""


class Known(NamedTuple):
    """The last balance of an account. `at` is unix ms by the store's clock, `noted` `time.monotonic()`."""

    slot: Slot
    balance: Balance
    at: int
    noted: float
    finished: bool = False

    @property
    def left(self) -> int:
        """What is neither used nor reserved."""
        used, reserved, limit = self.balance
        return limit - used - reserved


class LetThrough:
    """What this process let through on one account in one window, and the store has not booked yet.

    `running` has the amounts of calls under way by reservation key, `ended` those of calls that have ended, with the
    unix ms of their end, oldest first. `total` is the sum of both. `born`: the first admission, for wall clocks.
    """

    __slots__ = ("born", "ended", "grace_by", "running", "start", "total")

    def __init__(self, start: int, now: int) -> None:
        self.start = start
        self.born = now
        self.total = 0
        self.running: dict[str, int] = {}
        self.ended: dict[str, tuple[int, int]] = {}
        self.grace_by = ""

    def add(self, key: str, amount: int) -> None:
        """A call under way takes `amount` (more)."""
        self.running[key] = self.running.get(key, 0) + amount
        self.total += amount

    def end(self, key: str, amount: int, now: int) -> None:
        """The call has ended, or a part of several: its amount is `amount` and no longer what was taken."""
        self.remove(key)
        if amount:
            self.ended[key] = (amount, now)
            self.total += amount

    def amount(self, key: str) -> int:
        """What counts here for one reservation."""
        return self.running.get(key, 0) + self.ended.get(key, (0, 0))[0]

    def remove(self, key: str) -> None:
        """The store has booked it, or nothing was billed."""
        self.total -= self.running.pop(key, 0) + self.ended.pop(key, (0, 0))[0]

    def leave(self, before: int) -> None:
        """Drop what ended before `before` (unix ms): it has left the rolling window."""
        while self.ended:
            key, (amount, at) = next(iter(self.ended.items()))
            if at >= before:
                return
            del self.ended[key]
            self.total -= amount


class LocalAccounts:
    """Decides admissions without the store. All methods may be called from any thread.

    An account whose balance in its current window is known has what was left of it. Any other has `share` (0 to 1)
    of its limit, rounded down. What was let through counts until the store has booked it.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._forget_all()

    def _forget_all(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Known] = {}
        self._older: dict[str, Known] = {}
        self._let_through: dict[str, LetThrough] = {}
        self.keys: dict[str, Sequence[Slot]] = {}
        """The hard slots of each reservation that the store has not booked yet."""

    def before_fork(self) -> None:
        """Rest while the process is copied."""
        self._lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """What the parent let through is the parent's to book."""
        if not child:
            self._lock.release()
            return
        known, older = self._known, self._older
        self._forget_all()
        self._known, self._older = known, older

    # ---- what the store answers ----------------------------------------------------------------------------------
    def note(
        self, slots: Sequence[Slot], balances: Sequence[Balance], at: int, asked: float, *, finished: int = -1
    ) -> None:
        """Remember balances that the store answered at `at` (unix ms) to a request sent at `asked` (monotonic).

        Answers of requests that overlap come in any order: the one with less left is kept. `finished` is the index of
        the account that was finished by hand.
        """
        noted = time.monotonic()
        with self._lock:
            for index, (slot, balance) in enumerate(zip(slots, balances, strict=True)):
                new = Known(slot, balance, at, noted, index == finished)
                old = self._known.get(slot.key)
                if old is not None and (
                    slot.start < old.slot.start
                    or (slot.start == old.slot.start and asked < old.noted and old.left < new.left)
                ):
                    continue
                if old is None and len(self._known) >= MAX_KNOWN:
                    self._older, self._known = self._known, {}
                self._known[slot.key] = new
                if slot.wall:
                    self._let_through.pop(slot.key, None)

    def forget(self, key: str) -> None:
        """The reservation no longer counts here: the store has booked it, or it was released."""
        with self._lock:
            for slot in self.keys.pop(key, ()):
                there = self._let_through.get(slot.key)
                if there is not None:
                    there.remove(key)
                    self._drop_empty(slot, there)

    def _drop_empty(self, slot: Slot, there: LetThrough) -> None:
        if not there.running and not there.ended and not slot.wall and not there.grace_by:
            self._let_through.pop(slot.key, None)

    # ---- without the store -----------------------------------------------------------------------------------------
    def admit(self, request: AdmitRequest, now: int, lost: str) -> Admission:
        """Reserve on all slots or none, as a store does; `lost` says why the store was not asked."""
        for slot in request.slots:
            if slot.end and not slot.start <= now < slot.end:
                return Admission(False, now, (), -1, "moved")
        with self._lock:
            balances = [self._balance(slot, now) for slot in request.slots]
            for index, (slot, amount) in enumerate(zip(request.slots, request.amounts, strict=True)):
                if slot.hard and self._refuses(slot, amount, balances[index], request.critical):
                    reason = "finished" if self._is_finished(slot) else "limit"
                    return Admission(False, now, balances, index, reason, slot.end, lost)
            for slot, amount, balance in zip(request.slots, request.amounts, balances, strict=True):
                if slot.hard:
                    self._take(request, slot, amount, balance, now)
            self.keys[request.key] = _hard(request.slots)
            return Admission(True, now, [self._balance(slot, now) for slot in request.slots], lost=lost)

    def _take(self, request: AdmitRequest, slot: Slot, amount: int, balance: Balance, now: int) -> None:
        there = self._here(slot, now) or self._let_through.setdefault(slot.key, LetThrough(slot.start, now))
        if slot.wall:
            return
        if amount > balance[2] - balance[0] - balance[1]:
            there.grace_by = request.critical
        if request.ttl_ms:
            there.add(request.key, amount)
        else:
            there.end(request.key, amount, now)

    def _refuses(self, slot: Slot, amount: int, balance: Balance, critical: str) -> bool:
        """Rules 4, 5 and 7 of `base.py`."""
        used, reserved, limit = balance
        if self._is_finished(slot):
            return True
        if slot.wall:
            return used >= limit
        free = limit - used - reserved
        if amount <= free:
            return False
        if not critical or slot.grace <= 0 or amount > free + slot.grace:
            return True
        there = self._let_through.get(slot.key)
        by = there.grace_by if there is not None else ""
        return by != critical and (by != "" or used > limit)

    def _is_finished(self, slot: Slot) -> bool:
        known = self._known.get(slot.key) or self._older.get(slot.key)
        return known is not None and known.finished and known.slot.start == slot.start

    def read(self, slots: Iterable[Slot], now: int) -> list[Balance]:
        """The balances that this process goes by."""
        with self._lock:
            return [self._balance(slot, now) for slot in slots]

    def _balance(self, slot: Slot, now: int) -> Balance:
        there = self._here(slot, now)
        let_through = 0 if there is None else there.total
        known = self._known.get(slot.key) or self._older.get(slot.key)
        if known is None:
            used, reserved, limit = 0, 0, int(slot.limit * self._share)
        elif known.slot.start == slot.start and (not slot.slice_ms or now < known.at + _length(slot)):
            used, reserved, limit = known.balance
            if slot.wall:
                return (used + now - known.at, 0, limit)
        else:
            overdrawn = max(0, -known.left) if slot.grace else 0
            used, reserved, limit = overdrawn, 0, int(min(slot.limit, known.balance[2]) * self._share)
        if slot.wall:
            return (0 if there is None else now - there.born, 0, limit)
        return (used, reserved + let_through, limit)

    def _here(self, slot: Slot, now: int) -> LetThrough | None:
        """What was let through in the slot's window; what belongs to an earlier one is dropped."""
        there = self._let_through.get(slot.key)
        if there is None:
            return None
        if there.start < slot.start:
            del self._let_through[slot.key]
            return None
        if slot.slice_ms:
            there.leave(now - _length(slot))
        return there

    # ---- the end of a call -----------------------------------------------------------------------------------------
    def settled(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], reserved: Sequence[int], *, now: int
    ) -> None:
        """A call has ended whose settlement is not booked yet: `amounts` of `reserved` were used. No slots: released.

        What the store itself has reserved for the call stands in the last balance, and only what goes beyond it counts.
        """
        if not slots:
            self.forget(key)
            return
        with self._lock:
            kept: list[Slot] = []
            for slot, amount, held in zip(slots, amounts, reserved, strict=True):
                there = self._here(slot, now) if slot.hard and not slot.wall else None
                mine = 0 if there is None else there.amount(key)
                beyond = max(0, mine + amount - held)
                if mine or beyond:
                    there = there or self._let_through.setdefault(slot.key, LetThrough(slot.start, now))
                    there.end(key, beyond, now)
                    self._drop_empty(slot, there)
                if beyond:
                    kept.append(slot)
            if kept:
                self.keys[key] = kept
            else:
                self.keys.pop(key, None)

    def merge(self, key: str, into: str, now: int) -> None:
        """The amounts of `key` will be booked under the key `into`, with others."""
        with self._lock:
            slots = self.keys.pop(key, ())
            for slot in slots:
                there = self._here(slot, now)
                if there is not None:
                    amount = there.amount(key) + there.amount(into)
                    there.remove(key)
                    there.end(into, amount, now)
            if slots:
                both = {slot.key: slot for slot in (*self.keys.get(into, ()), *slots)}
                self.keys[into] = tuple(both.values())

    def beyond(self, request: AdmitRequest, answer: Admission) -> Admission | None:
        """The refusal of a call that the store admitted, where what it has not booked yet leaves no room; else None."""
        balances: list[Balance] = []
        refused = -1
        with self._lock:
            for index, (slot, balance) in enumerate(zip(request.slots, answer.balances, strict=True)):
                there = self._here(slot, answer.now) if slot.hard and not slot.wall else None
                unbooked = 0 if there is None else there.total - there.amount(request.key)
                used, reserved, limit = balance
                grace = slot.grace if request.critical else 0
                if unbooked and refused < 0 and used + reserved + unbooked > limit + grace:
                    refused = index
                balances.append((used, reserved + unbooked - request.amounts[index], limit))
        if refused < 0:
            return None
        return Admission(False, answer.now, balances, refused, "limit", request.slots[refused].end)

    def rows(self, budget: str | None, scope: str | None, limit: int, now: int) -> list[Row]:
        """What `Store.rows` returns, of the accounts that are known."""
        rows: list[Row] = []
        with self._lock:
            for known in {**self._older, **self._known}.values():
                slot = known.slot
                if budget in (None, slot.budget) and scope in (None, slot.scope) and not 0 < slot.end <= now:
                    used, reserved, most = self._balance(slot, now)
                    row = Row(slot.budget, slot.unit, slot.scope, used, reserved, most, slot.limit)
                    times = {"start": slot.start, "end": slot.end, "rolling_ms": slot.slice_ms * slot.slices}
                    rows.append(replace(row, **times, finished=known.finished, updated=known.at, lost=True))
        rows.sort(key=lambda row: (row.budget, row.scope, row.unit))
        return rows[:limit]


def _length(slot: Slot) -> int:
    """Milliseconds that a rolling window looks back at most."""
    return slot.slice_ms * (slot.slices + 1)


def _hard(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    return tuple(slot for slot in slots if slot.hard)


def balances_after(bookings: Sequence[Booking]) -> list[Balance]:
    """The balances that bookings leave."""
    return [(after, reserved, limit) for _, after, reserved, limit in bookings]
