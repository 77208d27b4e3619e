"""The memory store: one lock, one dictionary of accounts. The reference for the other stores."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from otel_tokens.forks import at_fork
from otel_tokens.guard.store.account import Account, ReservedAmount, by_key, refusal
from otel_tokens.guard.store.base import (
    LIMIT_CHANGES,
    NEVER,
    Admission,
    AdmitRequest,
    Balance,
    Booking,
    Change,
    EndedError,
    Row,
    Slot,
    Store,
)
from otel_tokens.guard.store.memory.accounts import Accounts, Group, Groups, Held, added, part_of, parts_of, running

REMEMBERED_KEYS = 1024


def unix_ms() -> int:
    """Unix milliseconds of this host."""
    return time.time_ns() // 1_000_000


class MemoryStore(Store):
    """All budgets of one process. `clock` gives unix milliseconds. Nothing survives the process."""

    direct = True
    poll_seconds = 0.02

    def __init__(self, clock: Callable[[], int] = unix_ms) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts = Accounts()
        self._groups = Groups()
        self._reservations: dict[str, Held] = {}
        self._lapsed: dict[str, Held] = {}
        self._settled: set[str] = set()
        self._settled_order: deque[str] = deque()
        self._reap_at = NEVER
        at_fork(self)

    def now(self) -> int:
        """Unix milliseconds."""
        return self._clock()

    def admit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """Reserve on all `slots` or none."""
        now = self._clock()
        with self._lock:
            if now >= self._reap_at:
                self._reap(now)
            group = self._groups.by_id.get(id(slots))
            if group is None or now >= group.until or not ttl_ms or key in self._reservations or key in self._settled:
                return self._admit(AdmitRequest(key, slots, amounts, ttl_ms, critical), now)
            # The short way: plain accounts with room, seen through these very slots before. It refuses nothing itself.
            balances: list[Balance] = []
            for account, slot, amount in zip(group.accounts, slots, amounts):  # noqa: B905 (`strict` costs a call)
                used, limit, reserved = account.used, account.limit, account.reserved + amount
                if used + reserved > limit or account.slot is not slot or not account.plain:
                    break
                account.reserved = reserved
                account.updated = now
                balances.append((used, reserved, limit))
            else:
                expires = now + ttl_ms
                self._reservations[key] = (expires, group, amounts)
                if expires < self._reap_at:  # noqa: PLR1730 (min() costs a call)
                    self._reap_at = expires
                return Admission(True, now, balances)
            for account, amount, _ in zip(group.accounts, amounts, balances):  # noqa: B905 (as far as it got)
                account.reserved -= amount
            return self._admit(AdmitRequest(key, slots, amounts, ttl_ms, critical), now)

    def settle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """Give back the reservation, book the actual amounts."""
        with self._lock:
            if key in self._settled:
                return ()
            self._settled.add(key)
            self._settled_order.append(key)
            if len(self._settled_order) > REMEMBERED_KEYS:
                self._settled.discard(self._settled_order.popleft())
            held = self._reservations.pop(key, None)
            lapsed = self._lapsed.pop(key, None) if self._lapsed else None  # a key that lapsed and then grew has both
            if held is not None and held[1].slots is slots:
                return self._book(amounts, held)
            parts = parts_of(held) if held is not None else []
            if held is None and lapsed is not None:  # its reservation is back already
                parts = [part._replace(amount=0) for part in parts_of(lapsed)]
            by_account = by_key(parts)
            now = self._clock()
            bookings = [
                self._book_one(slot, amount, by_account.pop(slot.key, ()), now)
                for slot, amount in zip(slots, amounts, strict=True)
            ]
            for rest in by_account.values():  # accounts that only the reservation names used nothing
                self._shift(rest, -1)
            return bookings

    settle_at_once = settle

    def _admit(self, request: AdmitRequest, now: int) -> Admission:
        """The whole of `admit`: windows turn, slices leave, graces are given, refusals said."""
        if request.ttl_ms and request.key in self._settled:
            raise EndedError(f"reservation {request.key} has ended")
        for slot in request.slots:
            if slot.end and not slot.start <= now < slot.end:
                return Admission(False, now, (), -1, "moved")
        accounts = [self._accounts.open(slot, now) for slot in request.slots]
        for account in accounts:
            account.age(now)
        return refusal(request, accounts, now) or self._grant(request, accounts, now)

    def _grant(self, request: AdmitRequest, accounts: Sequence[Account], now: int) -> Admission:
        reserved = [
            account.grant(slot, amount, now, request.critical, reservation=request.ttl_ms > 0)
            for account, slot, amount in zip(accounts, request.slots, request.amounts, strict=True)
        ]
        if request.ttl_ms:
            expires = now + request.ttl_ms
            group = Group(request.slots, accounts, [account.start for account in accounts])
            self._groups.keep(group)
            more = (expires, group, reserved)
            held = self._reservations.get(request.key)
            self._reservations[request.key] = more if held is None else added(held, more)
            self._reap_at = min(self._reap_at, expires)
        return Admission(True, now, [account.balance(now) for account in accounts])

    def _book(self, amounts: Sequence[int], held: Held) -> list[Booking]:
        """Settle a reservation on the very slots it was admitted with."""
        bookings: list[Booking] = []
        _, group, reserved = held
        rows = zip(group.accounts, group.slots, amounts, reserved)  # noqa: B905 (`strict` costs a call)
        for account, slot, amount, given_back in rows:
            if account.slot is not slot or not account.plain:
                parts = (part_of(held, len(bookings)),)
                bookings.append(self._book_one(slot, amount, parts, self._clock()))
                continue
            before, left = account.used, account.reserved - given_back
            account.used = after = before + amount
            account.reserved = left
            bookings.append((before, after, left, account.limit))
        return bookings

    def _book_one(self, slot: Slot, amount: int, parts: Sequence[ReservedAmount], now: int) -> Booking:
        account = self._accounts.known.get(slot.key)
        if account is None or account.start < slot.start or account.start > now:
            if slot.end and slot.end <= now:
                return (0, 0, 0, slot.limit)
            account = self._accounts.open(slot, now)
        return account.settle(slot, amount, parts, now)

    def renew(self, keys: Sequence[str], ttl_ms: int) -> None:
        """Extend living reservations, revive lapsed ones."""
        now = self._clock()
        with self._lock:
            for key in keys:
                held = self._reservations.get(key)
                if held is None:
                    held = self._lapsed.pop(key, None)
                    if held is None:
                        continue
                    self._shift(parts_of(held), 1)
                _, group, amounts = held
                self._reservations[key] = (now + ttl_ms, group, amounts)
                self._reap_at = min(self._reap_at, now + ttl_ms)
            self._reap(now)

    def read(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """The balances of `slots` now."""
        now = self._clock()
        with self._lock:
            self._reap(now)
            return [self._accounts.balance(slot, now) for slot in slots]

    def rows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """Living accounts, sorted by budget, scope and unit."""
        now = self._clock()
        with self._lock:
            self._reap(now)
            every = list(self._accounts.known.values())
        # Choosing among 100,000 takes a while, and calls go on meanwhile.
        found = running(every, now, budget, None, scope)
        chosen = heapq.nsmallest(limit, found, key=lambda a: (a.slot.budget, a.slot.scope, a.slot.unit))
        with self._lock:
            for account in chosen:
                account.age(now)
            return [account.row(now) for account in chosen]

    def change(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """Change running accounts."""
        if unit is None and op in LIMIT_CHANGES:
            raise ValueError(f"{op} needs a unit")
        now = self._clock()
        with self._lock:
            return self._accounts.change(budget, op, unit, scope, amount=amount, now=now)

    def before_fork(self) -> None:
        """Rest while the process is copied."""
        self._lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """In the child: the parent's reservations are not ours to settle; our copy of them is given back."""
        if not child:
            self._lock.release()
            return
        self._lock = threading.Lock()
        for held in self._reservations.values():
            self._shift(parts_of(held), -1)
        self._reservations.clear()

    # Everything below is called with the lock held.

    def _reap(self, now: int) -> None:
        """Give back what expired reservations reserve. Runs only when the earliest known expiry has passed."""
        if now < self._reap_at:
            return
        for key in [key for key, (expires, _, _) in self._reservations.items() if expires <= now]:
            held = self._lapsed[key] = self._reservations.pop(key)
            self._shift(parts_of(held), -1)
        while len(self._lapsed) > REMEMBERED_KEYS:
            del self._lapsed[next(iter(self._lapsed))]
        self._reap_at = min((expires for expires, _, _ in self._reservations.values()), default=NEVER)

    def _shift(self, parts: Sequence[ReservedAmount], sign: int) -> None:
        """Give back (-1) or take again (+1) what a reservation reserves."""
        for part in parts:
            account = self._accounts.known.get(part.key)
            if account is not None:
                account.shift(part, sign)
