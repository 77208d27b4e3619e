"""The rules of `base.py` over accounts of the SQLite store: deciding, granting, booking, changing by hand."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from otel_tokens.guard.store.account import Account, Reservation, by_key, refusal
from otel_tokens.guard.store.base import LIMIT_CHANGES, Admission, AdmitRequest, Booking, Change, Slot, StoreError
from otel_tokens.guard.store.sqlite_books import EXPIRED, LIVES, SETTLED, Books, Lease

_PAGE = 500  # accounts changed in one transaction: nobody waits for more


def admit(books: Books, request: AdmitRequest) -> Admission:
    """Rules 2 to 5 and 7: all slots, or none."""
    now = books.now
    lease = books.lease(request.key) if request.ttl_ms else None
    if lease is not None and lease.state == SETTLED:
        raise StoreError(f"lease {request.key} has ended")
    accounts = [books.open(slot) for slot in request.slots]
    for account in accounts:
        account.age(now)
    return refusal(request, accounts, now) or _grant(books, request, accounts, lease)


def _grant(books: Books, request: AdmitRequest, accounts: Sequence[Account], lease: Lease | None) -> Admission:
    now = books.now
    reservations: list[Reservation] = []
    for account, slot, amount in zip(accounts, request.slots, request.amounts, strict=True):
        held = account.grant(slot, amount, now, request.critical, lease=request.ttl_ms > 0)
        reservations.append(Reservation(held, slot.start, account.start, slot.key))
    if request.ttl_ms:
        expires = now + request.ttl_ms
        if lease is not None and lease.state == LIVES:
            expires, reservations = max(expires, lease.expires), [*lease.reservations, *reservations]
        books.keep_alive(request.key, expires, reservations)
    return Admission(True, now, [account.balance(now) for account in accounts])


def settle(books: Books, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
    """Rule 6."""
    lease = books.lease(key)
    if lease is not None and lease.state == SETTLED:
        return ()
    books.end(key, None)
    reservations = lease.reservations if lease else []
    if lease and lease.state == EXPIRED:  # its reservation is back already
        reservations = [reservation._replace(amount=0) for reservation in reservations]
    held = by_key(reservations)
    bookings = [_book(books, slot, amount, held.pop(slot.key, ())) for slot, amount in zip(slots, amounts, strict=True)]
    for rest in held.values():  # accounts that only the lease names used nothing
        books.shift(rest, -1)
    return bookings


def _book(books: Books, slot: Slot, amount: int, reservations: Sequence[Reservation]) -> Booking:
    account = books.find(slot.key)
    if account is None or account.start < slot.start:
        if slot.end and slot.end <= books.now:
            return (0, 0, 0, slot.limit)
        account = books.open(slot)
    return account.settle(slot, amount, reservations, books.now)


class Pages:
    """One change by hand, over many accounts, a page per transaction. `count` is how many were changed so far."""

    def __init__(self, budget: str, op: Change, unit: str | None, scope: str | None, amount: int) -> None:
        if unit is None and op in LIMIT_CHANGES:
            raise ValueError(f"{op} needs a unit")
        self.count = 0
        self.more = True
        self._what = (budget, op, unit, scope, amount)
        self._after: tuple[str, str, str] | None = None

    def turn(self, books: Books, connection: sqlite3.Connection) -> list[Account]:
        """Change the next page. Leaves this object alone, since the transaction may fail: see `turned`."""
        budget, op, unit, scope, amount = self._what
        if self._after is None and scope is None and op == "set":
            connection.execute("INSERT OR REPLACE INTO budget_limits VALUES (?, ?, ?)", (budget, unit, amount))
        elif self._after is None and scope is None and op == "unset":
            connection.execute("DELETE FROM budget_limits WHERE budget = ? AND unit = ?", (budget, unit))
        where, values = narrowed(books.now, budget=budget, scope=scope, unit=unit)
        if self._after is not None:
            where, values = f"{where} AND (scope, unit, key) > (?, ?, ?)", (*values, *self._after)
        accounts = books.select(where, values, _PAGE)
        for account in accounts:
            account.apply(op, amount, books.now, own=scope is not None)
            account.relimit(books.wide(account.slot))
        return accounts

    def turned(self, accounts: list[Account]) -> None:
        """The page is done."""
        _, op, _, scope, _ = self._what
        wide = self._after is None and scope is None and op in {"set", "unset"}
        self.count += len(accounts) + wide
        self.more = len(accounts) == _PAGE
        if accounts:
            last = accounts[-1].slot
            self._after = (last.scope, last.unit, last.key)


def narrowed(now: int, **names: str | None) -> tuple[str, tuple[Any, ...]]:
    """The condition for accounts whose window isn't over, narrowed by what is not None."""
    given = {name: value for name, value in names.items() if value is not None}
    return " AND ".join(["(ends = 0 OR ends > ?)", *(f"{name} = ?" for name in given)]), (now, *given.values())
