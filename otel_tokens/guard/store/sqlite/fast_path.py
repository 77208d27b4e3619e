"""The short ways of the SQLite store, for calls like the one before: two statements to admit, two to settle.

They decide nothing themselves. Nothing is done unless all accounts are known under the very declarations at hand and
plain (no slices, no wall clock, not finished), and no reservation is due. The rules in `rules.py` take the rest.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from otel_tokens.guard.store.account import ReservedAmount
from otel_tokens.guard.store.base import Admission, Booking, Slot
from otel_tokens.guard.store.sqlite.tables import Declarations, part_text, parts_of

AVAILABLE = sqlite3.sqlite_version_info >= (3, 35)
"""Whether this SQLite knows UPDATE … FROM … RETURNING."""

# Each account has four parameters in a row: key, declaration, then two of its own. The count is taken before any
# account is changed: all are updated, or none. (Only placeholders and a number are put into the text.)
_RESERVE = """
WITH asked(key, declaration, hard, amount) AS (VALUES {rows})
UPDATE budget_accounts SET reserved = reserved + asked.amount, updated = ?
FROM asked WHERE asked.key = budget_accounts.key
    AND {count} = (
        SELECT count(*) FROM asked JOIN budget_accounts AS held ON held.key = asked.key
        WHERE held.declaration = asked.declaration AND held.plain
            AND (NOT asked.hard OR held.used + held.reserved + asked.amount <= held.limit_now)
    )
    AND (SELECT next_expiry FROM budget_store) BETWEEN ? AND ?
    AND NOT EXISTS (SELECT 1 FROM budget_leases WHERE key = ?)
    AND NOT EXISTS (SELECT 1 FROM budget_ended WHERE key = ?)
RETURNING key, used, reserved, limit_now
"""
_BOOK = """
WITH asked(key, declaration, amount, reserved) AS (VALUES {rows})
UPDATE budget_accounts SET used = used + asked.amount, reserved = budget_accounts.reserved - asked.reserved, updated = ?
FROM asked WHERE asked.key = budget_accounts.key
    AND {count} = (
        SELECT count(*) FROM asked JOIN budget_accounts AS held ON held.key = asked.key
        WHERE held.declaration = asked.declaration AND held.plain
    )
RETURNING key, used, reserved, limit_now
"""
_NEW = "INSERT INTO budget_leases VALUES (?, ?, ?)"
_END = "DELETE FROM budget_leases WHERE key = ? RETURNING held"


@lru_cache(64)
def _for(statement: str, count: int) -> str:
    return statement.format(rows=", ".join(["(?, ?, ?, ?)"] * count), count=count)


class FastPath:
    """The short ways of one transaction at one moment (`now`, unix ms)."""

    def __init__(self, connection: sqlite3.Connection, now: int, declarations: Declarations) -> None:
        self._connection = connection
        self._now = now
        self._declarations = declarations

    def admit(self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int) -> Admission | None:
        """Reserve where there is room on every account; else None, with nothing done."""
        now, expires, text = self._now, self._now + ttl_ms, self._declarations.text
        wanted: list[Any] = []
        parts: list[str] = []
        for slot, amount in zip(slots, amounts, strict=True):
            wanted += (slot.key, text(slot), slot.hard, amount)
            parts.append(part_text(ReservedAmount(amount, slot.start, slot.start, slot.key)))
        # A reservation that would be the first to expire changes `next_expiry`: not here.
        wanted += (now, now + 1, expires, key, key)
        rows = self._update(_RESERVE, slots, wanted)
        if rows is None:
            return None
        self._connection.execute(_NEW, (key, expires, "".join(parts)))
        return Admission(True, now, [rows[slot.key][1:] for slot in slots])

    def end(self, key: str) -> list[ReservedAmount] | None:
        """End a living reservation; what it reserved, which is still to be given back. None: it does not live."""
        found = self._connection.execute(_END, (key,)).fetchone()
        return None if found is None else list(parts_of(found[0]))

    def settle(
        self, slots: Sequence[Slot], amounts: Sequence[int], parts: Sequence[ReservedAmount]
    ) -> Sequence[Booking] | None:
        """Book where the reservation named just these slots, still in their windows; else None, with nothing done."""
        text = self._declarations.text
        wanted: list[Any] = []
        for slot, amount, part in zip(slots, amounts, parts, strict=True):
            wanted += (slot.key, text(slot), amount, part.amount)
        rows = self._update(_BOOK, slots, [*wanted, self._now])
        if rows is None:
            return None
        bookings: list[Booking] = []
        for slot, amount in zip(slots, amounts, strict=True):
            _, used, reserved, limit = rows[slot.key]
            bookings.append((used - amount, used, reserved, limit))
        return bookings

    def _update(self, statement: str, slots: Sequence[Slot], values: Sequence[Any]) -> dict[str, Any] | None:
        """The accounts as they are now, by key; None if they were left alone."""
        found = self._connection.execute(_for(statement, len(slots)), values).fetchall()
        return {row[0]: row for row in found} if found else None


def usual(slots: Sequence[Slot]) -> bool:
    """Whether the short ways may be tried: there are slots, not too many, and no account twice."""
    return 0 < len(slots) <= 64 and len({slot.key for slot in slots}) == len(slots) and AVAILABLE
