"""The ledger's file: its tables, how an older file becomes today's, and how it is opened. Raises LedgerError."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote

from otel_tokens.errors import LedgerError
from otel_tokens.ledger.migrations import APPLICATION_ID, DROP_INDEXES, MIGRATIONS, VERSION, statements

_PAGE = 2048  # bytes
_CHECKPOINT = 8000  # pages in the log before they are moved into the file, which takes the disk's time
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
            for statement in statements(step):
                connection.execute(statement)
        if connection.execute("SELECT 1 FROM calls").fetchone() is None:
            for statement in DROP_INDEXES:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
