"""The tables of the SQLite store, and the file they are in."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from otel_tokens.guard.store.base import NEVER, REMEMBER_MS

VERSION = 1

_SCHEMA = (
    # `next_expiry`: no living reservation expires before it. An index would cost a page per call.
    "CREATE TABLE budget_store (version INTEGER NOT NULL, next_expiry INTEGER NOT NULL)",
    f"INSERT INTO budget_store VALUES ({VERSION}, {NEVER})",  # noqa: S608 (numbers of ours)
    """
    CREATE TABLE budget_accounts (
        key TEXT PRIMARY KEY, budget TEXT NOT NULL, unit TEXT NOT NULL, scope TEXT NOT NULL,
        declaration TEXT NOT NULL, ends INTEGER NOT NULL, plain INTEGER NOT NULL, limit_now INTEGER NOT NULL,
        used INTEGER NOT NULL, reserved INTEGER NOT NULL, born INTEGER NOT NULL, updated INTEGER NOT NULL,
        extra INTEGER NOT NULL, own_limit INTEGER, finished INTEGER NOT NULL, paused_until INTEGER NOT NULL,
        review_until INTEGER NOT NULL, grace_by TEXT NOT NULL, grace_at INTEGER NOT NULL,
        carried INTEGER NOT NULL, carried_from INTEGER NOT NULL, slices TEXT,
        past_start INTEGER NOT NULL DEFAULT -1, past_used INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID
    """,
    "CREATE INDEX budget_accounts_names ON budget_accounts (budget, scope, unit)",
    "CREATE TABLE budget_limits (budget TEXT, unit TEXT, amount INTEGER NOT NULL, PRIMARY KEY (budget, unit)) "
    "WITHOUT ROWID",
    # `held`: a line per account. An ended reservation that expired still has it, a settled one has not.
    "CREATE TABLE budget_leases (key TEXT PRIMARY KEY, expires INTEGER NOT NULL, held TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE budget_ended (key TEXT PRIMARY KEY, remember_until INTEGER NOT NULL, held TEXT) WITHOUT ROWID",
)

_ENDED = f"""
    CREATE TRIGGER IF NOT EXISTS budget_leases_end AFTER DELETE ON budget_leases BEGIN
        INSERT OR REPLACE INTO budget_ended VALUES (old.key, old.expires + {REMEMBER_MS}, NULL);
    END
"""  # noqa: S608 (a number of ours)
"""A reservation that is deleted is remembered as settled. Whoever lets one expire writes over that."""

_ADDED = {"past_start": "INTEGER NOT NULL DEFAULT -1", "past_used": "INTEGER NOT NULL DEFAULT 0"}
"""Columns of later versions. Earlier ones do without them, and may use the same file."""


def make_file(path: str) -> None:
    """Make the file and the folders above it, for this user only, if they aren't there."""
    missing = [parent for parent in Path(path).parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)
    # Only ever opens a file of its own making: closing a descriptor of one that SQLite has open elsewhere in this
    # process would drop its locks. SQLite gives -wal and -shm the mode of the file.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def migrate(connection: sqlite3.Connection) -> None:
    """Make the tables, if they aren't there. They may share the file with others, so the version is in a table."""
    known = "SELECT 1 FROM sqlite_master WHERE name = 'budget_store'"
    if connection.execute(known).fetchone() is None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if connection.execute(known).fetchone() is None:
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    version = connection.execute("SELECT version FROM budget_store").fetchone()
    if version is None or version[0] != VERSION:
        raise sqlite3.DatabaseError(
            f"budgets of schema {version and version[0]}, this otel-tokens knows {VERSION}: update otel-tokens"
        )
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'budget_leases_end'").fetchone():
        connection.execute(_ENDED)
    columns = {row[1] for row in connection.execute("PRAGMA table_info(budget_accounts)")}
    for name, kind in _ADDED.items():
        if name not in columns:
            try:
                connection.execute(f"ALTER TABLE budget_accounts ADD COLUMN {name} {kind}")
            except sqlite3.OperationalError as error:
                if "duplicate column" not in str(error):  # another process was faster
                    raise
