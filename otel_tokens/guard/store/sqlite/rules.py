"""The rules of `base.py` on the tables of the SQLite store: admit, settle, change."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from otel_tokens.guard.store.account import Account, ReservedAmount, by_key, refusal
from otel_tokens.guard.store.base import LIMIT_CHANGES, Admission, AdmitRequest, Booking, Change, EndedError, Slot
from otel_tokens.guard.store.sqlite.tables import EXPIRED, LIVES, SETTLED, StoredReservation, Tables

_PAGE = 500  # accounts changed in one transaction: nobody waits for more


def admit(tables: Tables, request: AdmitRequest) -> Admission:
    """Rules 2 to 5 and 7: all slots, or none."""
    now = tables.now
    reservation = tables.reservation(request.key) if request.ttl_ms else None
    if reservation is not None and reservation.state == SETTLED:
        raise EndedError(f"reservation {request.key} has ended")
    accounts = [tables.open(slot) for slot in request.slots]
    for account in accounts:
        account.age(now)
    return refusal(request, accounts, now) or _grant(tables, request, accounts, reservation)


def _grant(
    tables: Tables, request: AdmitRequest, accounts: Sequence[Account], reservation: StoredReservation | None
) -> Admission:
    now = tables.now
    parts: list[ReservedAmount] = []
    for account, slot, amount in zip(accounts, request.slots, request.amounts, strict=True):
        held = account.grant(slot, amount, now, request.critical, reservation=request.ttl_ms > 0)
        parts.append(ReservedAmount(held, slot.start, account.start, slot.key))
    if request.ttl_ms:
        expires = now + request.ttl_ms
        if reservation is not None and reservation.state == LIVES:
            expires, parts = max(expires, reservation.expires), [*reservation.parts, *parts]
        tables.keep_alive(request.key, expires, parts)
    return Admission(True, now, [account.balance(now) for account in accounts])


def settle(
    tables: Tables,
    key: str,
    slots: Sequence[Slot],
    amounts: Sequence[int],
    *,
    ended: Sequence[ReservedAmount] | None = None,
) -> Sequence[Booking]:
    """Rule 6. `ended` is what the reservation reserves if it was living and has been ended already."""
    parts = ended
    if parts is None:
        reservation = tables.reservation(key)
        if reservation is not None and reservation.state == SETTLED:
            return ()
        tables.end(key, None)
        parts = reservation.parts if reservation else []
        if reservation and reservation.state == EXPIRED:  # its reservation is back already
            parts = [part._replace(amount=0) for part in parts]
    held = by_key(parts)
    bookings = [
        _book(tables, slot, amount, held.pop(slot.key, ())) for slot, amount in zip(slots, amounts, strict=True)
    ]
    for rest in held.values():  # accounts that only the reservation names used nothing
        tables.shift(rest, -1)
    return bookings


def _book(tables: Tables, slot: Slot, amount: int, parts: Sequence[ReservedAmount]) -> Booking:
    account = tables.find(slot.key)
    if account is None or account.start < slot.start or account.start > tables.now:
        if slot.end and slot.end <= tables.now:
            return (0, 0, 0, slot.limit)
        account = tables.open(slot)
    return account.settle(slot, amount, parts, tables.now)


class Pages:
    """One change by hand, over many accounts, a page per transaction. `count` is how many were changed so far."""

    def __init__(self, budget: str, op: Change, unit: str | None, scope: str | None, amount: int) -> None:
        if unit is None and op in LIMIT_CHANGES:
            raise ValueError(f"{op} needs a unit")
        self.count = 0
        self.more = True
        self._what = (budget, op, unit, scope, amount)
        self._after: tuple[str, str, str] | None = None

    def turn(self, tables: Tables, connection: sqlite3.Connection) -> list[Account]:
        """Change the next page. Leaves this object alone, since the transaction may fail: see `turned`."""
        budget, op, unit, scope, amount = self._what
        if self._after is None and scope is None and op == "set":
            connection.execute("INSERT OR REPLACE INTO budget_limits VALUES (?, ?, ?)", (budget, unit, amount))
        elif self._after is None and scope is None and op == "unset":
            connection.execute("DELETE FROM budget_limits WHERE budget = ? AND unit = ?", (budget, unit))
        where, values = narrowed(tables.now, budget=budget, scope=scope, unit=unit)
        if self._after is not None:
            where, values = f"{where} AND (scope, unit, key) > (?, ?, ?)", (*values, *self._after)
        accounts = tables.select(where, values, _PAGE)
        for account in accounts:
            account.apply(op, amount, tables.now, own=scope is not None)
            account.relimit(tables.wide(account.slot))
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
