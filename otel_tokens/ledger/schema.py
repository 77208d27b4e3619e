"""The ledger's file: its tables, how an older file becomes today's, and how it is opened. Raises LedgerError."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from urllib.parse import quote

from otel_tokens.errors import LedgerError

APPLICATION_ID = 0x6F746B6E
"""Marks the file as ours ("otkn"), so that another program's database is never touched."""

# Step n turns a file of version n into one of version n + 1; a new file takes them all. History is appended: a
# step that was released is never edited. Amounts are text (exact decimals), counts are integers.
_CALLS = """
CREATE TABLE calls(
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    started REAL, duration REAL, outcome TEXT,
    session TEXT, task TEXT, tenant TEXT, user TEXT, agent TEXT, feature TEXT,
    provider TEXT, endpoint TEXT, operation TEXT, model TEXT, response_model TEXT,
    origin TEXT, input INTEGER DEFAULT 0, output INTEGER DEFAULT 0,
    cache_read INTEGER DEFAULT 0, cache_write INTEGER DEFAULT 0, reasoning INTEGER DEFAULT 0, total INTEGER,
    currency TEXT, cost_status TEXT, cost_source TEXT, price_version TEXT, price_rule TEXT,
    cost_total TEXT, cost_input TEXT, cost_cache_read TEXT, cost_cache_write TEXT, cost_output TEXT, cost_other TEXT,
    cost_local TEXT, cost_provider TEXT, reported_cost TEXT,
    error_type TEXT, missing_reason TEXT, decision TEXT,
    service_tier TEXT, speed TEXT, geo TEXT, server_address TEXT, server_port INTEGER,
    sdk TEXT, stream INTEGER DEFAULT 0, request_tier TEXT, max_output INTEGER, choices INTEGER DEFAULT 1,
    free INTEGER DEFAULT 0,
    response_id TEXT, finish_reasons TEXT,
    first_chunk REAL, chunks INTEGER DEFAULT 0, attempts INTEGER DEFAULT 1,
    trace_id TEXT, span_id TEXT, pid INTEGER, host TEXT,
    cache_write_5m INTEGER DEFAULT 0, cache_write_30m INTEGER DEFAULT 0,
    cache_write_1h INTEGER DEFAULT 0, cache_write_12h INTEGER DEFAULT 0,
    input_text INTEGER DEFAULT 0, input_audio INTEGER DEFAULT 0,
    input_image INTEGER DEFAULT 0, input_video INTEGER DEFAULT 0,
    cache_read_text INTEGER DEFAULT 0, cache_read_audio INTEGER DEFAULT 0,
    cache_read_image INTEGER DEFAULT 0, cache_read_video INTEGER DEFAULT 0,
    output_text INTEGER DEFAULT 0, output_audio INTEGER DEFAULT 0,
    output_image INTEGER DEFAULT 0, output_video INTEGER DEFAULT 0,
    web_searches INTEGER DEFAULT 0, web_fetches INTEGER DEFAULT 0,
    components TEXT, component_input INTEGER DEFAULT 0, component_output INTEGER DEFAULT 0,
    reported TEXT, flags TEXT, tags TEXT
);
CREATE INDEX calls_session ON calls(session) WHERE session IS NOT NULL;
CREATE INDEX calls_task ON calls(task) WHERE task IS NOT NULL;
"""
# What retention takes away stays in `totals`, so that cumulative counters never go down.
_TOTALS = """
CREATE TABLE totals(key TEXT PRIMARY KEY, sums TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES('ledger', lower(hex(randomblob(16))));
INSERT INTO meta VALUES('pruned_through', 0);
"""
# What the application asked for, where the guard put a cheaper model in its place.
_ASKED_MODEL = "ALTER TABLE calls ADD COLUMN asked_model TEXT"
# The terms asked for, beside `request_tier`.
_ASKED_TERMS = "ALTER TABLE calls ADD COLUMN request_speed TEXT; ALTER TABLE calls ADD COLUMN request_geo TEXT"
# See summary.py. The indexes on session and task go: `places` does their work, and writing a row takes a quarter less.
_SUMMARY = """
CREATE TABLE kinds(
    kind INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, sums BLOB NOT NULL,
    model TEXT, response_model TEXT, asked_model TEXT, provider TEXT, operation TEXT, endpoint TEXT, outcome TEXT,
    error_type TEXT, service_tier TEXT, server_address TEXT, server_port INTEGER, sdk TEXT, origin TEXT,
    missing_reason TEXT, cost_status TEXT, cost_source TEXT, currency TEXT, decision TEXT, cost_total INTEGER
);
CREATE TABLE by_time(
    bucket INTEGER, kind INTEGER, sums BLOB NOT NULL, PRIMARY KEY(bucket, kind)
) WITHOUT ROWID;
CREATE TABLE by_tag(
    tag TEXT, bucket INTEGER, value, kind INTEGER, sums BLOB NOT NULL, PRIMARY KEY(tag, bucket, value, kind)
) WITHOUT ROWID;
CREATE TABLE spans(bucket INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL);
CREATE TABLE places(
    tag TEXT, value TEXT, first INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY(tag, value)
) WITHOUT ROWID;
CREATE TABLE odd(seq INTEGER PRIMARY KEY);
INSERT INTO meta VALUES('summed', 0), ('edits', 0), ('edits_summed', 0);
CREATE TRIGGER calls_changed AFTER UPDATE ON calls BEGIN
    UPDATE meta SET value = value + 1 WHERE key = 'edits';
END;
CREATE TRIGGER calls_deleted AFTER DELETE ON calls BEGIN
    UPDATE meta SET value = value + 1 WHERE key = 'edits';
END;
DROP INDEX calls_session;
DROP INDEX calls_task;
"""
MIGRATIONS: tuple[str, ...] = (_CALLS, _TOTALS, _ASKED_MODEL, _ASKED_TERMS, _SUMMARY)
VERSION = len(MIGRATIONS)

_PAGE = 2048  # bytes
_CHECKPOINT = 2000  # pages in the log before they are moved into the file, which takes the disk's time
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)  # the last: lost too many races


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code of an error, 0 for those of Python's own binding."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else holds the file just now: the one trouble that passes by itself."""
    return code_of(error) in _BUSY


def resolve(path: str | os.PathLike[str]) -> str:
    """The absolute path: the application may change its directory between two openings."""
    place = Path(path)
    with contextlib.suppress(RuntimeError):  # a user nobody knows: then it is a name like any other
        place = place.expanduser()
    return str(place.absolute())


def open_writer(path: str, timeout: float = 5.0) -> sqlite3.Connection:
    """A connection that may write, to a file of today's schema, made or migrated as needed.

    The file is made with mode 0600 and missing parents with 0700. `timeout` (seconds) bounds each wait for other
    processes. Raises LedgerError for a file that is not ours or newer, OSError and sqlite3.Error for the rest.
    """
    _make_file(path)
    # Threads share it under the ledger's lock.
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        version = _check(connection, path)
        if version == 0:
            # Only have an effect before the first table. A commit writes whole pages: small ones cost less.
            connection.execute(f"PRAGMA page_size={_PAGE}")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        _use_wal(connection, timeout)
        # With WAL, a commit without fsync survives the death of the process; of the machine, up to the last sync.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT}")
        if version < VERSION:
            _migrate(connection, path)
        _try_to_write(connection)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Generator[sqlite3.Connection]:
    """A read-only connection inside one read transaction: everything read through it is of one moment.

    Works while others write. Raises LedgerError, also for errors of the reading inside.
    """
    place = resolve(path)
    try:
        connection = _open_reader(place)
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(explain(error), path=place) from error
    try:
        connection.execute("BEGIN")
        yield connection
    except LedgerError as error:
        if error.path is None:
            raise LedgerError(str(error), path=place) from None
        raise
    except sqlite3.Error as error:
        raise LedgerError(explain(error), path=place) from error
    finally:
        connection.close()


def explain(error: BaseException) -> str:
    """What went wrong, in words for a user."""
    if isinstance(error, LedgerError):
        return str(error).removeprefix(f"{error.path}: ")
    if isinstance(error, sqlite3.Error):
        words = {
            sqlite3.SQLITE_FULL: "no space left",
            sqlite3.SQLITE_NOTADB: "not a ledger (not even a SQLite database)",
            sqlite3.SQLITE_CORRUPT: "the file is damaged",
            sqlite3.SQLITE_READONLY: "the file or its directory is read-only",
            sqlite3.SQLITE_CANTOPEN: "cannot open the file",
            sqlite3.SQLITE_IOERR: "the disk reports an error",
            sqlite3.SQLITE_BUSY: "another process holds the file",
        }.get(code_of(error))
        return f"{words} ({error})" if words else str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


def _open_reader(path: str) -> sqlite3.Connection:
    if not os.path.exists(path):  # noqa: PTH110
        raise LedgerError("there is no ledger here", path=path)
    _must_be_file(path)
    connection = _connect_reading(path)
    try:
        version = _check(connection, path)
        if version == 0:
            raise LedgerError("not a ledger (an empty file)", path=path)
    except BaseException:
        connection.close()
        raise
    if version < VERSION:
        connection.close()
        open_writer(path).close()  # brings the file up to date
        return _connect_reading(path)
    return connection


def _connect_reading(path: str) -> sqlite3.Connection:
    address = f"file:{quote(path)}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        connection.close()
        if code_of(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or os.path.exists(f"{path}-wal"):  # noqa: PTH110
            raise
        # WAL needs a place beside the file even for reading; where there is none, nobody can be writing either.
        return sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None, check_same_thread=False)
    return connection


def _make_file(path: str) -> None:
    missing = [parent for parent in Path(path).parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)
    try:
        # Only ever opens a file of its own making: closing a descriptor of one that SQLite has open elsewhere in
        # this process would drop its locks. SQLite gives -wal and -shm the mode of the file.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        _must_be_file(path)
        if not os.path.getsize(path):  # noqa: PTH202
            os.chmod(path, 0o600)  # noqa: PTH101


def _must_be_file(path: str) -> None:
    if os.path.isdir(path):  # noqa: PTH112
        raise LedgerError("is a directory, not a ledger", path=path)
    if not os.path.isfile(path):  # noqa: PTH113
        raise LedgerError("is not a regular file", path=path)


def _check(connection: sqlite3.Connection, path: str) -> int:
    """The schema version of the file; 0 for an empty one."""
    # One read transaction: another process may be making the ledger in this very moment.
    alone = not connection.in_transaction
    if alone:
        connection.execute("BEGIN")
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        ours: bool = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        used = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None
    finally:
        if alone:
            connection.execute("ROLLBACK")
    if not ours:
        if version or used:
            raise LedgerError("a SQLite database of something else, not a ledger", path=path)
        return 0
    if version > VERSION:
        raise LedgerError(
            f"written by a newer otel-tokens (schema {version}; this one knows {VERSION}): update otel-tokens",
            path=path,
        )
    return version


def _use_wal(connection: sqlite3.Connection, timeout: float) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            # Two processes that make the change at once: SQLite refuses one of them without waiting.
            if not is_busy(error) or time.monotonic() > end:
                raise
            time.sleep(0.005)


def _try_to_write(connection: sqlite3.Connection) -> None:
    """Find out now, not at the first call, that the file is read-only."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in MIGRATIONS[_check(connection, path) :]:  # read again: another process may have been quicker
            for statement in _statements(step):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for piece in script.split(";"):
        statement += piece
        if sqlite3.complete_statement(statement := f"{statement};"):  # the body of a trigger has semicolons, too
            yield statement
            statement = ""
