"""Budgets in a SQLite file, shared by the processes of one host. One write transaction per operation."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from otel_tokens.guard.store.account import Account
from otel_tokens.guard.store.base import (
    LIMIT_CHANGES,
    REMEMBER_MS,
    Admission,
    Balance,
    Booking,
    Change,
    Refusal,
    Row,
    Slot,
    Store,
)
from otel_tokens.guard.store.sqlite_books import EXPIRED, LIVES, SETTLED, Books, Declarations, Line, line_text
from otel_tokens.guard.store.sqlite_file import File, Work

T = TypeVar("T")

_PAGE = 500  # accounts changed in one transaction: nobody waits for more
_CLEAN_EVERY = 32  # settlements between two looks for leases that need not be remembered any more

_SEEN = (
    "SELECT declaration, plain, used, reserved, limit_now, "
    "(SELECT min(expires) FROM budget_leases WHERE state = 0) FROM budget_accounts WHERE key = ?"
)
_RESERVE = "UPDATE budget_accounts SET reserved = ?, updated = ? WHERE key = ?"
_NEW_LEASE = "INSERT OR IGNORE INTO budget_leases (key, state, expires, held) VALUES (?, 0, ?, ?)"


def host_ms() -> int:
    """Unix milliseconds of this host, asked from the system: a test that moves `time.time` moves no window."""
    if hasattr(time, "clock_gettime_ns"):
        return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1_000_000
    return time.time_ns() // 1_000_000


class SqliteStore(Store):
    """Budgets in the file at `path`, made (mode 0600) at the first use; `timeout` (seconds) bounds waiting for others.

    Several processes and threads may use it, and other tables may live in the file. After a crash of the system
    (not of a process) the last seconds may be missing. Keep it on a local disk: the write-ahead log needs one.
    """

    direct = True
    poll_seconds = 0.1

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 0.5) -> None:
        self._file = File(path, timeout)
        self._declarations = Declarations()
        self._settlements = 0
        self._forget_after = ""

    def now(self) -> int:
        """Unix milliseconds of this host."""
        return host_ms()

    def admit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """Reserve on all `slots` or none."""
        return self._file.run(self._admission(key, slots, amounts, ttl_ms, critical))

    async def aadmit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """`admit` for event loops."""
        return await self._file.arun(self._admission(key, slots, amounts, ttl_ms, critical))
