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
    Row,
    Slot,
    Store,
    StoreError,
)
from otel_tokens.guard.store.memory.accounts import Accounts, MemoryReservation, running

REMEMBERED_KEYS = 8192


def unix_ms() -> int:
    """Unix milliseconds of this host."""
    return int(time.time() * 1000)


class MemoryStore(Store):
    """All budgets of one process. `clock` gives unix milliseconds. Nothing survives the process."""

    direct = True
    poll_seconds = 0.02

    def __init__(self, clock: Callable[[], int] = unix_ms) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts = Accounts()
        self._reservations: dict[str, MemoryReservation] = {}
        self._lapsed: dict[str, MemoryReservation] = {}
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
        balances: list[Balance] = []
        with self._lock:
            if now >= self._reap_at:
                self._reap(now)
            if not ttl_ms or key in self._reservations or key in self._settled:
                return self._admit(AdmitRequest(key, slots, amounts, ttl_ms, critical), now)
            known = self._accounts.known
            # The short way: accounts seen through these very slots before, with room. It decides nothing itself.
            for slot, amount in zip(slots, amounts, strict=True):
                account = known.get(slot.key)
                if account is None or account.slot is not slot or not account.plain or now >= account.until:
                    break
                reserved = account.reserved + amount
                if account.used + reserved > account.limit:
                    break
                account.reserved = reserved
                account.updated = now
                balances.append((account.used, reserved, account.limit))
            else:
                expires = now + ttl_ms
                self._reservations[key] = MemoryReservation(expires, slots, amounts, ())
                if expires < self._reap_at:  # noqa: PLR1730 (min() costs a call)
                    self._reap_at = expires
                return Admission(True, now, balances)
            for slot, amount, _ in zip(slots, amounts, balances):  # noqa: B905 (as far as the short way got)
                known[slot.key].reserved -= amount
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
            reservation = self._reservations.pop(key, None)
            lapsed = self._lapsed.pop(key, None) if self._lapsed else None  # a key that lapsed and then grew has both
            if reservation is not None and reservation.slots is slots:
                return self._book(slots, amounts, reservation)
            parts = reservation.parts() if reservation is not None else []
            if reservation is None and lapsed is not None:  # its reservation is back already
                parts = [part._replace(amount=0) for part in lapsed.parts()]
            held = by_key(parts)
            now = self._clock()
            bookings = [
                self._book_one(slot, amount, held.pop(slot.key, ()), now)
                for slot, amount in zip(slots, amounts, strict=True)
            ]
            for rest in held.values():  # accounts that only the reservation names used nothing
                self._shift(rest, -1)
            return bookings

    settle_at_once = settle

    def _admit(self, request: AdmitRequest, now: int) -> Admission:
        """The whole of `admit`: windows turn, slices leave, graces are given, refusals said."""
        if request.ttl_ms and request.key in self._settled:
            raise StoreError(f"reservation {request.key} has ended")
        for slot in request.slots:
            if slot.end and not slot.start <= now < slot.end:
                return Admission(False, now, (), -1, "moved")
        accounts = [self._accounts.open(slot, now) for slot in request.slots]
        for account in accounts:
            account.age(now)
        return refusal(request, accounts, now) or self._grant(request, accounts, now)

    def _grant(self, request: AdmitRequest, accounts: Sequence[Account], now: int) -> Admission:
        held = [
            account.grant(slot, amount, now, request.critical, reservation=request.ttl_ms > 0)
            for account, slot, amount in zip(accounts, request.slots, request.amounts, strict=True)
        ]
        if request.ttl_ms:
            expires = now + request.ttl_ms
            more = MemoryReservation(expires, request.slots, held, [account.start for account in accounts])
            reservation = self._reservations.setdefault(request.key, more)
            if reservation is not more:
                reservation.grow(more)
            self._reap_at = min(self._reap_at, expires)
        return Admission(True, now, [account.balance(now) for account in accounts])

    def _book(self, slots: Sequence[Slot], amounts: Sequence[int], reservation: MemoryReservation) -> list[Booking]:
        """Settle a reservation on the very slots it was admitted with."""
        bookings: list[Booking] = []
        known = self._accounts.known
        for slot, amount, reserved in zip(slots, amounts, reservation.amounts, strict=True):
            account = known.get(slot.key)
            if account is None or account.slot is not slot or not account.plain:
                parts = (reservation.parts()[len(bookings)],)
                bookings.append(self._book_one(slot, amount, parts, self._clock()))
                continue
            before = account.used
            account.used = after = before + amount
            account.reserved = left = account.reserved - reserved
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
                reservation = self._reservations.get(key)
                if reservation is None:
                    reservation = self._lapsed.pop(key, None)
                    if reservation is None:
                        continue
                    self._shift(reservation.parts(), 1)
                    self._reservations[key] = reservation
                reservation.expires = now + ttl_ms
                self._reap_at = min(self._reap_at, reservation.expires)
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
        for reservation in self._reservations.values():
            self._shift(reservation.parts(), -1)
        self._reservations.clear()

    # Everything below is called with the lock held.

    def _reap(self, now: int) -> None:
        """Give back what expired reservations reserve. Runs only when the earliest known expiry has passed."""
        if now < self._reap_at:
            return
        for key in [key for key, reservation in self._reservations.items() if reservation.expires <= now]:
            reservation = self._lapsed[key] = self._reservations.pop(key)
            self._shift(reservation.parts(), -1)
        while len(self._lapsed) > REMEMBERED_KEYS:
            del self._lapsed[next(iter(self._lapsed))]
        self._reap_at = min((reservation.expires for reservation in self._reservations.values()), default=NEVER)

    def _shift(self, parts: Sequence[ReservedAmount], sign: int) -> None:
        """Give back (-1) or take again (+1) what a reservation reserves."""
        for part in parts:
            account = self._accounts.known.get(part.key)
            if account is not None:
                account.shift(part, sign)
