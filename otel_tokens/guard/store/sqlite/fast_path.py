"""The short ways of the SQLite store, for calls like the one before. They decide nothing themselves.

Each returns None, with nothing done, unless all accounts are known under the very declaration at hand and plain (no
slices, no wall clock, not finished), and no reservation is due. Then five statements are enough.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from otel_tokens.guard.store.account import ReservedAmount
from otel_tokens.guard.store.base import REMEMBER_MS, Admission, Balance, Booking, Slot
from otel_tokens.guard.store.sqlite.tables import Declarations, part_text, parts_of

_SEEN = (
    "SELECT declaration, plain, used, reserved, limit_now, (SELECT next_expiry FROM budget_store) "
    "FROM budget_accounts WHERE key = ?"
)
_RESERVE = "UPDATE budget_accounts SET reserved = reserved + ?, updated = ? WHERE key = ?"
_BOOK = "UPDATE budget_accounts SET used = used + ?, reserved = reserved - ?, updated = ? WHERE key = ?"
_NEW_LEASE = (
    "INSERT OR IGNORE INTO budget_leases SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM budget_ended WHERE key = ?1)"
)
_LEASE = "SELECT held FROM budget_leases WHERE key = ?"
_END_LEASE = "DELETE FROM budget_leases WHERE key = ?"
_REMEMBER = "INSERT OR REPLACE INTO budget_ended VALUES (?, ?, NULL)"


class FastPath:
    """The short ways of one transaction at one moment (`now`, unix ms)."""

    def __init__(self, connection: sqlite3.Connection, now: int, declarations: Declarations) -> None:
        self._connection = connection
        self._now = now
        self._declarations = declarations

    def admit(self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int) -> Admission | None:
        """Reserve, where there is room on every account."""
        execute, now, expires = self._connection.execute, self._now, self._now + ttl_ms
        balances: list[Balance] = []
        parts: list[str] = []
        for slot, amount in zip(slots, amounts, strict=True):
            seen = execute(_SEEN, (slot.key,)).fetchone()
            if seen is None or seen[0] != self._declarations.text(slot):
                return None
            _, plain, used, reserved, limit, next_expiry = seen
            reserved += amount
            # A reservation that would be the first to expire changes `next_expiry`: not here.
            if not plain or not now < next_expiry <= expires or (slot.hard and used + reserved > limit):
                return None
            balances.append((used, reserved, limit))
            parts.append(part_text(ReservedAmount(amount, slot.start, slot.start, slot.key)))
        if execute(_NEW_LEASE, (key, expires, "".join(parts))).rowcount != 1:
            return None
        for slot, amount in zip(slots, amounts, strict=True):
            execute(_RESERVE, (amount, now, slot.key))
        return Admission(True, now, balances)

    def settle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking] | None:
        """Book, where the reservation lives and names just these slots, still in their windows."""
        execute, now = self._connection.execute, self._now
        found = execute(_LEASE, (key,)).fetchone()
        if found is None:
            return None
        held = list(parts_of(found[0]))
        if [part.key for part in held] != [slot.key for slot in slots]:
            return None
        bookings: list[Booking] = []
        for slot, amount, part in zip(slots, amounts, held, strict=True):
            seen = execute(_SEEN, (slot.key,)).fetchone()
            if seen is None or seen[0] != self._declarations.text(slot) or not seen[1]:
                return None
            _, _, used, reserved, limit, _ = seen
            bookings.append((used, used + amount, reserved - part.amount, limit))
        execute(_END_LEASE, (key,))
        execute(_REMEMBER, (key, now + REMEMBER_MS))
        for slot, amount, part in zip(slots, amounts, held, strict=True):
            execute(_BOOK, (amount, part.amount, now, slot.key))
        return bookings
