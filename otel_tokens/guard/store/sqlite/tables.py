"""Reads and writes the accounts and reservations of a SQLite transaction."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from otel_tokens.guard.store.account import Account, ReservedAmount
from otel_tokens.guard.store.base import NEVER, REMEMBER_MS, Slot, continues, window_of

LIVES, EXPIRED, SETTLED = "lives", "expired", "settled"

_REMEMBERED_SLOTS = 10_000
_NAMES = ("key", "budget", "unit", "scope")
_STATE = (
    "declaration", "ends", "plain", "limit_now", "used", "reserved", "born", "updated", "extra", "own_limit",
    "finished", "paused_until", "review_until", "grace_by", "grace_at", "carried", "carried_from",
    "past_start", "past_used", "slices",
)  # fmt: skip
# Names of columns, all ours, nothing from outside:
_COLUMNS = ", ".join((*_NAMES, *_STATE))
_READ = f"SELECT {_COLUMNS} FROM budget_accounts WHERE "  # noqa: S608
_INSERT = f"INSERT INTO budget_accounts ({_COLUMNS}) VALUES ({', '.join('?' * (len(_NAMES) + len(_STATE)))})"  # noqa: S608
_UPDATE = f"UPDATE budget_accounts SET {', '.join(f'{name} = ?' for name in _STATE)} WHERE key = ?"  # noqa: S608


Names = tuple[str, str, str, str]
"""(key, budget, unit, scope) of an account."""


class StoredReservation(NamedTuple):
    """A reservation as it is kept; `expires` is 0 for one that ended."""

    state: str
    expires: int
    parts: list[ReservedAmount]


class Declarations:
    """Slots as text, remembered: a slot is seen by every call and seldom changes."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[Slot, str]] = {}

    def text(self, slot: Slot) -> str:
        """Window, limit and kind of a slot."""
        known = self._texts.get(slot.key)
        if known is not None and known[0] is slot:
            return known[1]
        if len(self._texts) >= _REMEMBERED_SLOTS:
            self._texts.clear()
        numbers = (slot.start, slot.end, slot.limit, slot.slice_ms, slot.slices, int(slot.wall), slot.keep_ms)
        text = " ".join(map(str, numbers))
        self._texts[slot.key] = (slot, text)
        return text

    def slot(self, names: Names, text: str) -> Slot:
        """The slot an account was last seen through."""
        known = self._texts.get(names[0])
        if known is not None and known[1] == text:
            return known[0]
        start, end, limit, slice_ms, slices, wall, keep_ms = map(int, text.split())
        key, budget, unit, scope = names
        return Slot(
            key, budget, unit, scope, limit, start, end, slice_ms, slices,
            wall=bool(wall), keep_ms=keep_ms, window=window_of(key, budget, unit, scope),
        )  # fmt: skip


class Tables:
    """The accounts and reservations that one transaction touches, at one moment (`now`, unix ms)."""

    def __init__(self, connection: sqlite3.Connection, now: int, declarations: Declarations) -> None:
        self.now = now
        self._connection = connection
        self._declarations = declarations
        self._accounts: dict[str, Account | None] = {}
        self._rows: dict[str, tuple[Any, ...]] = {}

    # ---- accounts --------------------------------------------------------------------------------------------

    def find(self, key: str) -> Account | None:
        """The account of that key."""
        if key in self._accounts:
            return self._accounts[key]
        row = self._connection.execute(f"{_READ} key = ?", (key,)).fetchone()
        if row is None:
            self._accounts[key] = None
            return None
        return self._revive(row)

    def open(self, slot: Slot) -> Account:
        """The account of `slot`, turned to the slot's window; made if it isn't there."""
        account = self.find(slot.key)
        if account is None:
            account = self._accounts[slot.key] = self._adopt(slot) or Account(slot, self.now, self.wide(slot))
        elif account.slot is not slot and self._declarations.text(account.slot) != self._declarations.text(slot):
            account.turn(slot, self.now, self.wide(slot))
        return account

    def _adopt(self, slot: Slot) -> Account | None:
        """Go on with the account that an earlier version kept for any window, if it had this one."""
        old = self.find(slot.old_key) if slot.key != slot.old_key else None
        if old is None or not continues(old.slot, slot):
            return None
        self.forget(slot.old_key)
        old.reserved = 0  # its reservations name the other key
        old.turn(slot, self.now, self.wide(slot))
        old.slot = slot
        return old

    def select(self, where: str, values: tuple[Any, ...], limit: int) -> list[Account]:
        """Accounts by a condition, in the order of budget, scope and unit."""
        query = f"{_READ} {where} ORDER BY budget, scope, unit, key LIMIT ?"
        rows = self._connection.execute(query, (*values, limit)).fetchall()
        return [self._accounts.get(row[0]) or self._revive(row) for row in rows]

    def wide(self, slot: Slot) -> int | None:
        """The limit set for the whole budget."""
        query = "SELECT amount FROM budget_limits WHERE budget = ? AND unit = ?"
        row = self._connection.execute(query, (slot.budget, slot.unit)).fetchone()
        return row[0] if row else None

    def made(self) -> int:
        """How many accounts are new."""
        return sum(1 for key, account in self._accounts.items() if account is not None and key not in self._rows)

    def save(self) -> None:
        """Write what changed. Every operation ends with it."""
        for key, account in self._accounts.items():
            if account is None:
                continue
            before = self._rows.get(key)
            after = self._state(account)
            if before is None:
                slot = account.slot
                self._connection.execute(_INSERT, (key, slot.budget, slot.unit, slot.scope, *after))
            elif before[len(_NAMES) :] != after:
                self._connection.execute(_UPDATE, (*after, key))

    def forget(self, key: str) -> None:
        """Drop an account."""
        self._connection.execute("DELETE FROM budget_accounts WHERE key = ?", (key,))
        self._accounts[key] = None

    def _revive(self, row: tuple[Any, ...]) -> Account:
        names = (row[0], row[1], row[2], row[3])
        (text, _, _, _, used, reserved, born, updated, extra, own, finished, paused, review, *debt, slices) = row[4:]
        account = Account(self._declarations.slot(names, text), born, None)
        account.used, account.reserved, account.updated = used, reserved, updated
        account.extra, account.limit_set, account.finished = extra, own, bool(finished)
        account.paused_until, account.review_until = paused, review
        account.grace_by, account.grace_at, account.carried, account.carried_from, *past = debt
        account.past_start, account.past_used = past
        if slices is not None:
            pairs = [int(word) for word in slices.split()]
            account.slices = deque([pairs[i], pairs[i + 1]] for i in range(0, len(pairs), 2))
        account.plain = account.plain and not finished
        account.relimit(self.wide(account.slot))
        self._rows[row[0]] = row
        self._accounts[row[0]] = account
        return account

    def _state(self, account: Account) -> tuple[Any, ...]:
        slices = account.slices
        return (
            self._declarations.text(account.slot), account.end, int(account.plain), account.limit,
            account.used, account.reserved, account.born, account.updated, account.extra, account.limit_set,
            int(account.finished), account.paused_until, account.review_until, account.grace_by, account.grace_at,
            account.carried, account.carried_from, account.past_start, account.past_used,
            None if slices is None else " ".join(f"{index} {amount}" for index, amount in slices),
        )  # fmt: skip

    # ---- reservations ----------------------------------------------------------------------------------------------

    def reservation(self, key: str) -> StoredReservation | None:
        """The reservation of that key, whatever became of it."""
        row = self._connection.execute("SELECT expires, held FROM budget_leases WHERE key = ?", (key,)).fetchone()
        if row is not None:
            return StoredReservation(LIVES, row[0], list(parts_of(row[1])))
        row = self._connection.execute("SELECT held FROM budget_ended WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        return (
            StoredReservation(SETTLED, 0, [])
            if row[0] is None
            else StoredReservation(EXPIRED, 0, list(parts_of(row[0])))
        )

    def keep_alive(self, key: str, expires: int, parts: Sequence[ReservedAmount]) -> None:
        """Write a living reservation."""
        held = "".join(map(part_text, parts))
        self._connection.execute("INSERT OR REPLACE INTO budget_leases VALUES (?, ?, ?)", (key, expires, held))
        self._connection.execute("DELETE FROM budget_ended WHERE key = ?", (key,))
        self._connection.execute("UPDATE budget_store SET next_expiry = ? WHERE next_expiry > ?", (expires, expires))

    def end(self, key: str, held: str | None) -> None:
        """Remember that a reservation expired (with what it held) or was settled (None)."""
        self._connection.execute("DELETE FROM budget_leases WHERE key = ?", (key,))
        until = self.now + REMEMBER_MS
        self._connection.execute("INSERT OR REPLACE INTO budget_ended VALUES (?, ?, ?)", (key, until, held))

    def renew(self, keys: Sequence[str], ttl_ms: int) -> None:
        """Extend living reservations; one that had expired takes its reservation again."""
        for key in keys:
            reservation = self.reservation(key)
            if reservation is None or reservation.state == SETTLED:
                continue
            if reservation.state == EXPIRED:
                self.shift(reservation.parts, 1)
            self.keep_alive(key, self.now + ttl_ms, reservation.parts)

    def reap(self) -> None:
        """Rule 8: give back what expired reservations reserve. Bounded; the next operation goes on."""
        (next_expiry,) = self._connection.execute("SELECT next_expiry FROM budget_store").fetchone()
        if next_expiry > self.now:
            return
        query = "SELECT key, held FROM budget_leases WHERE expires <= ? LIMIT 1000"
        for key, held in self._connection.execute(query, (self.now,)).fetchall():
            self.shift(list(parts_of(held)), -1)
            self.end(key, held)
        query = "UPDATE budget_store SET next_expiry = coalesce((SELECT min(expires) FROM budget_leases), ?)"
        self._connection.execute(query, (NEVER,))

    def shift(self, parts: Sequence[ReservedAmount], sign: int) -> None:
        """Give back (-1) or take again (+1) what a reservation reserves."""
        for part in parts:
            account = self.find(part.key)
            if account is not None:
                account.shift(part, sign)


def part_text(part: ReservedAmount) -> str:
    """One account's part of a reservation, as the file keeps it."""
    return f"{part.amount} {part.start} {part.began} {part.key}\n"


def parts_of(held: str) -> Iterator[ReservedAmount]:
    """The reservations of a reservation as it is kept."""
    for text in held.split("\n"):
        if text:
            amount, start, began, key = text.split(" ", 3)
            yield ReservedAmount(int(amount), int(start), int(began), key)
