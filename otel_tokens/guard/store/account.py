"""The rules of `base.py` for one account (budget, unit, scope). It has no lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from otel_tokens.guard.store.base import NEVER, Admission, AdmitRequest, Balance, Booking, Change, Row, Slot


class ReservedAmount(NamedTuple):
    """The part of a reservation on one account: amount, and starts of its slot and of the account at admission."""

    amount: int
    start: int
    began: int
    key: str


class Account:
    """What is kept for one (budget, unit, scope). `limit` is the limit in force, kept current by its changers."""

    __slots__ = (
        "born",
        "carried",
        "carried_from",
        "end",
        "extra",
        "finished",
        "grace_at",
        "grace_by",
        "limit",
        "limit_set",
        "past_start",
        "past_used",
        "paused_until",
        "plain",
        "reserved",
        "review_until",
        "slices",
        "slot",
        "start",
        "until",
        "updated",
        "used",
    )

    def __init__(self, slot: Slot, now: int, wide: int | None) -> None:
        self.reserved: int = 0
        self.limit: int = 0
        self.limit_set: int | None = None
        self.carried: int = 0
        self.carried_from: int = -1
        self.past_start: int = -1
        self.past_used: int = 0
        self.updated: int = now
        self.used: int = 0
        self.slot: Slot = slot
        self._begin(slot, now, 0)
        self.relimit(wide)

    def _begin(self, slot: Slot, now: int, carried: int) -> None:
        """A fresh window. `plain` accounts are a pair of sums and a limit: the store's short way is for them."""
        self.slot = slot
        self.start: int = slot.start
        self.end: int = slot.end
        self.until: int = slot.end or NEVER
        self.used = carried
        self.reserved = 0
        self.extra: int = 0
        self.born: int = now
        self.finished: bool = False
        self.paused_until: int = 0
        self.review_until: int = 0
        self.grace_by: str = ""
        self.grace_at: int = 0
        self.slices: deque[list[int]] | None = deque() if slot.slice_ms else None
        self.plain: bool = not slot.slice_ms and not slot.wall

    def relimit(self, wide: int | None) -> None:
        """Work out the limit in force (rule 1); `wide` is the budget-wide one set by hand."""
        base = self.limit_set if self.limit_set is not None else wide
        self.limit = (self.slot.limit if base is None else base) + self.extra

    def turn(self, slot: Slot, now: int, wide: int | None) -> None:
        """See the account through another slot: the next window (rule 2), or another declaration of this one."""
        if slot.start <= now < self.start:
            self._roll_back(slot, now)
        elif slot.start <= now and (slot.start > self.start or (slot.start != self.start and self.end <= now)):
            self._roll(slot, now)
        elif slot.start == self.start:
            self._redeclare(slot, now)
        self.relimit(wide)

    def _roll(self, slot: Slot, now: int) -> None:
        carried: int = max(0, self.used + self.reserved - self.limit) if self.grace_by else 0
        self.carried, self.carried_from = carried, self.start if carried else -1
        self.past_start, self.past_used = self.start, self.used
        self._begin(slot, now, carried)

    def _roll_back(self, slot: Slot, now: int) -> None:
        """The clock was ahead and was put right. What was spent meanwhile belongs to the window of `now`."""
        ahead = self.used + self.reserved
        past = self.past_used if self.past_start == slot.start else 0
        self.carried, self.carried_from = ahead, self.start  # the calls that run settle against it
        self.past_start, self.past_used = -1, 0
        self._begin(slot, now, past + ahead)

    def _redeclare(self, slot: Slot, now: int) -> None:
        if slot.slice_ms != self.slot.slice_ms:
            self.slices = deque([[now // slot.slice_ms, self.used]]) if slot.slice_ms else None
        self.slot, self.end, self.until = slot, slot.end, slot.end or NEVER
        self.plain = not slot.slice_ms and not slot.wall and not self.finished

    def age(self, now: int) -> None:
        """Rolling windows: drop the slices that left (rule 3); forget a repaid grace after a whole window.

        What was booked while the clock was ahead is booked now.
        """
        slices, slot = self.slices, self.slot
        self.born = min(self.born, now)
        if slices is None:
            return
        index = now // slot.slice_ms
        if slices and slices[-1][0] > index:
            self._pull_back(slices, index)
        oldest = index - slot.slices
        while slices and slices[0][0] < oldest:
            self.used -= slices.popleft()[1]
        if self.grace_by and now - self.grace_at >= slot.slice_ms * slot.slices and self.used <= self.limit:
            self.grace_by = ""

    @staticmethod
    def _pull_back(slices: deque[list[int]], index: int) -> None:
        ahead = 0
        while slices and slices[-1][0] > index:
            ahead += slices.pop()[1]
        if slices and slices[-1][0] == index:
            slices[-1][1] += ahead
        else:
            slices.append([index, ahead])

    def refuses(self, slot: Slot, amount: int, now: int, critical: str) -> bool:
        """Whether a hard slot has no room for `amount` more, grace included (rules 4, 5 and 7)."""
        if self.finished:
            return True
        if slot.wall:
            return now - self.born >= self.limit
        free = self.limit - self.used - self.reserved
        if amount <= free:
            return False
        if not critical or slot.grace <= 0 or amount > free + slot.grace:
            return True
        return self.grace_by != critical and (self.grace_by != "" or self.used > self.limit)

    def grant(self, slot: Slot, amount: int, now: int, critical: str, *, reservation: bool) -> int:
        """Reserve `amount`, or book it at once. Returns what is reserved. What does not fit uses the grace."""
        if slot.wall:
            return 0
        if slot.hard and amount > self.limit - self.used - self.reserved:
            self.grace_by, self.grace_at = critical, now
        if reservation:
            self.reserved += amount
            self.updated = now
        else:
            self.book(amount, now)
        return amount

    def book(self, amount: int, now: int) -> None:
        """Count `amount` as used, now."""
        self.updated = now
        if self.slot.wall:
            self.used = now - self.born
            return
        self.used += amount
        if self.slices is not None:
            index = now // self.slot.slice_ms
            if self.slices and self.slices[-1][0] >= index:
                self.slices[-1][1] += amount
            else:
                self.slices.append([index, amount])

    def correct(self, start: int, difference: int) -> None:
        """A reservation of the window the debt came from used `difference` more (or less) than it had reserved."""
        if start == self.carried_from:
            difference = max(difference, -self.carried)
            self.carried += difference
            self.used += difference

    def shift(self, part: ReservedAmount, sign: int) -> None:
        """Give back (-1) or take again (+1) what a reservation reserves here, or correct what was carried of it."""
        if self.start in {part.start, part.began}:
            self.reserved += sign * part.amount
        else:
            self.correct(part.start, sign * part.amount)

    def settle(self, slot: Slot, amount: int, parts: Sequence[ReservedAmount], now: int) -> Booking:
        """Give `reservations` back and book `amount` on their window; on a later one, only correct its debt."""
        mine = self.start == slot.start or any(self.start == part.began for part in parts)
        if not mine:
            expected = sum(part.amount for part in parts if part.start == slot.start)
            self.correct(slot.start, amount - expected)
            parts = [part for part in parts if part.start != slot.start]
        for part in parts:
            self.shift(part, -1)
        if not mine:
            return (self.used, self.used, self.reserved, self.limit)
        self.age(now)
        before = self.used
        self.book(amount, now)
        return (before, self.used, self.reserved, self.limit)

    def clear(self, now: int) -> None:
        """Start over within the window; reservations stay reserved."""
        self.used = self.extra = self.carried = 0
        self.carried_from = -1
        self.born = now
        self.grace_by, self.grace_at, self.finished = "", 0, False
        self.paused_until = self.review_until = 0
        self.plain = self.slices is None and not self.slot.wall
        if self.slices is not None:
            self.slices.clear()

    def apply(self, op: Change, amount: int, now: int, *, own: bool) -> None:
        """Change by hand; `own` says the change names this scope (else it is budget-wide). Caller relimits."""
        if op == "add":
            self.extra += amount
            self.finished = False
            self.plain = self.slices is None and not self.slot.wall
        elif op == "set" and own:
            self.limit_set = amount
        elif op == "unset" and own:
            self.limit_set = None
        elif op == "reset":
            self.clear(now)
        elif op == "finish":
            self.finished = True
            self.plain = False
        elif op == "pause":
            self.paused_until = max(self.paused_until, amount)
        elif op == "review":
            self.review_until = amount

    def retry_at(self, now: int) -> int:
        """When budget frees by itself: the window's end, or the moment the oldest slice leaves; 0 is unknown."""
        if self.slices:
            slot = self.slot
            return max(now, (self.slices[0][0] + slot.slices + 1) * slot.slice_ms)
        return self.end

    def balance(self, now: int) -> Balance:
        """(used, reserved, limit in force)."""
        return (now - self.born if self.slot.wall else self.used, self.reserved, self.limit)

    def forgotten(self, now: int) -> bool:
        """Whether nothing depends on this account any more (rule 9)."""
        if self.reserved > 0 or self.limit_set is not None:
            return False
        if self.end:
            return now >= 2 * self.end - self.start
        return 0 < self.slot.keep_ms <= now - self.updated

    def row(self, now: int) -> Row:
        """The account as it is listed."""
        slot = self.slot
        used, reserved, limit = self.balance(now)
        return Row(
            budget=slot.budget,
            unit=slot.unit,
            scope=slot.scope,
            used=used,
            reserved=reserved,
            limit=limit,
            declared=slot.limit,
            extra=self.extra,
            start=self.start,
            end=self.end,
            rolling_ms=slot.slice_ms * slot.slices,
            overdraft=max(0, used - limit) if self.grace_by or self.carried else 0,
            finished=self.finished,
            paused_until=self.paused_until if self.paused_until > now else 0,
            review_until=self.review_until if self.review_until > now else 0,
            updated=self.updated,
            window=slot.window,
        )


def refusal(request: AdmitRequest, accounts: Sequence[Account], now: int) -> Admission | None:
    """Rules 4, 5 and 7: the refusal of the first account that has no room, finished ones first; None if all have."""
    refused = -1
    for index, (account, slot, amount) in enumerate(zip(accounts, request.slots, request.amounts, strict=True)):
        if (
            slot.hard
            and account.refuses(slot, amount, now, request.critical)
            and (refused < 0 or (account.finished and not accounts[refused].finished))
        ):
            refused = index
    if refused < 0:
        return None
    culprit = accounts[refused]
    balances = [account.balance(now) for account in accounts]
    return Admission(False, now, balances, refused, "finished" if culprit.finished else "limit", culprit.retry_at(now))


def by_key(parts: Sequence[ReservedAmount]) -> dict[str, list[ReservedAmount]]:
    """The reservations of each account."""
    found: dict[str, list[ReservedAmount]] = {}
    for part in parts:
        found.setdefault(part.key, []).append(part)
    return found
