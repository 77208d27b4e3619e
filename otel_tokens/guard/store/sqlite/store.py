"""The SQLite store: one write transaction for each operation."""

from __future__ import annotations

import os
import random
import sqlite3
import time
import uuid
from collections.abc import Sequence
from functools import partial

from otel_tokens.guard.store.account import Account
from otel_tokens.guard.store.base import Admission, AdmitRequest, Balance, Booking, Change, Row, Slot, Store
from otel_tokens.guard.store.sqlite.fast_path import FastPath, usual
from otel_tokens.guard.store.sqlite.file import File
from otel_tokens.guard.store.sqlite.rules import Pages, admit, narrowed, settle
from otel_tokens.guard.store.sqlite.tables import Declarations, Tables

_AT_ONCE = 0.005  # seconds
_RENEWALS = 500  # per transaction: nobody waits for more
_CLEAN_EVERY = 32  # settlements between two looks for reservations that need not be remembered any more
_CLEAN = 4 * _CLEAN_EVERY  # reservations looked at then: faster than they come


def host_ms() -> int:
    """Unix milliseconds of this host, asked from the system: a test that moves `time.time` moves no window."""
    if hasattr(time, "clock_gettime_ns"):
        return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1_000_000
    return time.time_ns() // 1_000_000


class SqliteStore(Store):
    """Budgets in the file at `path`, made (mode 0600) at the first use; `timeout` (seconds) bounds waiting for others.

    Many processes and threads may use it at once, and other tables may live in the file. After a crash of the
    system (not of a process) the last transactions may be missing. The file must be on a local disk.
    """

    direct = True
    poll_seconds = 0.1

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 0.5) -> None:
        self._file = File(path, timeout)
        self._declarations = Declarations()
        # Somewhere, for a process may end long before its own turn of cleaning would come, or come round.
        self._settlements = random.randrange(_CLEAN_EVERY)  # noqa: S311 (not for secrets)
        self._cleaned_to = uuid.uuid4().hex
        self._looked_at = ""

    def now(self) -> int:
        """Unix milliseconds of this host."""
        return host_ms()

    def admit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """Reserve on all `slots` or none."""
        return self._file.run(partial(self._admit, AdmitRequest(key, slots, amounts, ttl_ms, critical)))

    async def aadmit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """`admit` for event loops."""
        return await self._file.arun(partial(self._admit, AdmitRequest(key, slots, amounts, ttl_ms, critical)))

    def settle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """Give back the reservation, book the actual amounts."""
        return self._file.run(partial(self._settle, key, slots, amounts))

    def settle_at_once(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """`settle` that waits a few milliseconds at most."""
        return self._file.run_at_once(partial(self._settle, key, slots, amounts), _AT_ONCE)

    async def asettle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """`settle` for event loops."""
        return await self._file.arun(partial(self._settle, key, slots, amounts))

    def renew(self, keys: Sequence[str], ttl_ms: int) -> None:
        """Extend living reservations, revive expired ones."""
        for first in range(0, len(keys), _RENEWALS):
            self._file.run(partial(self._renew, keys[first : first + _RENEWALS], ttl_ms))

    def read(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """The balances of `slots` now."""
        return self._file.run(partial(self._read, slots))

    async def aread(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """`read` for event loops."""
        return await self._file.arun(partial(self._read, slots))

    def rows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """Living accounts, sorted by budget, scope and unit."""
        return self._file.run(partial(self._rows, budget, scope, limit))

    async def arows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """`rows` for event loops."""
        return await self._file.arun(partial(self._rows, budget, scope, limit))

    def change(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """Change running accounts, some hundred per transaction."""
        pages = Pages(budget, op, unit, scope, amount)
        while pages.more:
            pages.turned(self._file.run(partial(self._change, pages)))
        return pages.count

    async def achange(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """`change` for event loops."""
        pages = Pages(budget, op, unit, scope, amount)
        while pages.more:
            pages.turned(await self._file.arun(partial(self._change, pages)))
        return pages.count

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # Everything below runs inside a transaction, which may be tried again if it fails.

    def _tables(self, connection: sqlite3.Connection) -> Tables:
        return Tables(connection, host_ms(), self._declarations)

    def _admit(self, request: AdmitRequest, connection: sqlite3.Connection) -> Admission:
        now = host_ms()
        for slot in request.slots:
            if slot.end and not slot.start <= now < slot.end:
                return Admission(False, now, (), -1, "moved")
        if request.ttl_ms and usual(request.slots):
            quick = FastPath(connection, now, self._declarations)
            admission = quick.admit(request.key, request.slots, request.amounts, request.ttl_ms)
            if admission is not None:
                return admission
        tables = Tables(connection, now, self._declarations)
        tables.reap()
        admission = admit(tables, request)
        self._forget_some(tables, connection)
        tables.save()
        return admission

    def _settle(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], connection: sqlite3.Connection
    ) -> Sequence[Booking]:
        now = host_ms()
        bookings = parts = None
        if usual(slots):
            quick = FastPath(connection, now, self._declarations)
            parts = quick.end(key)
            if parts is not None and [part.key for part in parts] == [slot.key for slot in slots]:
                bookings = quick.settle(slots, amounts, parts)
        if bookings is None:
            tables = Tables(connection, now, self._declarations)
            bookings = settle(tables, key, slots, amounts, ended=parts)
            tables.save()
        self._settlements += 1
        if self._settlements % _CLEAN_EVERY == 0:
            self._clean(now, connection)
        return bookings

    def _renew(self, keys: Sequence[str], ttl_ms: int, connection: sqlite3.Connection) -> None:
        tables = self._tables(connection)
        tables.renew(keys, ttl_ms)
        tables.reap()
        tables.save()

    def _read(self, slots: Sequence[Slot], connection: sqlite3.Connection) -> Sequence[Balance]:
        tables = self._tables(connection)
        tables.reap()
        balances: list[Balance] = []
        for slot in slots:
            account = tables.find(slot.key)
            if account is None or account.start < slot.start:
                wide = tables.wide(slot)
                balances.append((0, 0, slot.limit if wide is None else wide))
            else:
                account.age(tables.now)
                balances.append(account.balance(tables.now))
        tables.save()
        return balances

    def _rows(self, budget: str | None, scope: str | None, limit: int, connection: sqlite3.Connection) -> list[Row]:
        tables = self._tables(connection)
        tables.reap()
        where, values = narrowed(tables.now, budget=budget, scope=scope)
        accounts = tables.select(where, values, limit)
        for account in accounts:
            account.age(tables.now)
        tables.save()
        return [account.row(tables.now) for account in accounts]

    def _change(self, pages: Pages, connection: sqlite3.Connection) -> list[Account]:
        tables = self._tables(connection)
        accounts = pages.turn(tables, connection)
        tables.save()
        return accounts

    def _forget_some(self, tables: Tables, connection: sqlite3.Connection) -> None:
        """Rule 9. Each new account pays for looks at two old ones, so none are kept in vain."""
        new = tables.made()
        if not new:
            return
        query = "SELECT key FROM budget_accounts WHERE key > ? ORDER BY key LIMIT ?"
        keys = connection.execute(query, (self._looked_at, 2 * new)).fetchall()
        for (key,) in keys:
            account = tables.find(key)
            if account is not None and account.forgotten(tables.now):
                tables.forget(key)
        self._looked_at = keys[-1][0] if keys else ""

    def _clean(self, now: int, connection: sqlite3.Connection) -> None:
        """Forget reservations that ended more than REMEMBER_MS ago."""
        query = "SELECT key, remember_until FROM budget_ended WHERE key > ? ORDER BY key LIMIT ?"
        found = connection.execute(query, (self._cleaned_to, _CLEAN)).fetchall()
        old = [(key,) for key, until in found if until <= now]
        connection.executemany("DELETE FROM budget_ended WHERE key = ?", old)
        self._cleaned_to = found[-1][0] if len(found) == _CLEAN else ""
