"""The file of the SQLite store: opened, locked by one transaction at a time, closed around forks."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from otel_tokens.forks import at_fork
from otel_tokens.guard.store.base import StoreError
from otel_tokens.guard.store.sqlite.schema import make_file, migrate

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_LOOK = 1.0  # seconds between two looks whether the file is still there
_FORBEARANCE = 60  # times the timeout, that an operation waits at most while others are served
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


class _BusyError(Exception):
    """Another process is writing. Nothing has happened. `version` changes with what others write (None: unknown)."""

    def __init__(self, version: int | None) -> None:
        super().__init__()
        self.version = version


class _InUseError(Exception):
    """Another thread of this process is using the connection. Nothing has happened."""


class File:
    """Transactions on the file at `path`.

    Raises StoreError when other processes keep the file locked for `timeout` seconds without writing anything. Waiting
    for other threads of this process has no limit: they do the same. Time is counted by the pauses that were asked for,
    since a pause that ends late means only that this process had to wait for the processor.

    One connection per process, guarded by a lock, closed around a fork: SQLite's own bookkeeping of file locks
    would be wrong in a child that inherited it.
    """

    _connection: sqlite3.Connection | None = None

    def __init__(self, path: str | os.PathLike[str], timeout: float) -> None:
        self.path = str(Path(path).expanduser().absolute())
        self._timeout = timeout
        self._new_lock()
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self._identity = (0, 0)
        self._look_at = 0.0
        self.lost_at: int | None = None
        at_fork(self)

    def run(self, work: Work[T]) -> T:
        """Do `work` in one write transaction.

        Threads take turns: only the one whose turn it is competes with other processes. If all did, they would
        keep each other from the file, and some would never get it.
        """
        if self._kind is not threading.Lock:
            self._new_lock()  # gevent has turned threads into greenlets since: they take turns by locks of their own
        patience = _Patience(self, self._timeout)
        with self._lock:  # a fork gives the child another
            while True:
                try:
                    return self._transact(work)
                except _BusyError as busy:
                    pause = patience.pause(busy)
                time.sleep(pause)

    def run_at_once(self, work: Work[T], wait: float) -> T:
        """`run` that waits at most about `wait` seconds, for whatever reason."""
        patience = _Patience(self, wait, forbearing=False)
        while True:
            try:
                return self._attempt(work)
            except _InUseError:
                pause = patience.pause(_BusyError(None))
            except _BusyError as busy:
                pause = patience.pause(busy)
            time.sleep(pause)

    async def arun(self, work: Work[T]) -> T:
        """`run` without blocking the event loop while others are at it. The tasks of a loop take turns as well."""
        turn = self._turn()
        if not turn.locked():
            with suppress(_BusyError, _InUseError):
                return self._attempt(work)
        patience = _Patience(self, self._timeout)
        async with turn:
            while True:
                try:
                    return self._attempt(work)
                except _InUseError:
                    pause = patience.turn()
                except _BusyError as busy:
                    pause = patience.pause(busy)
                await asyncio.sleep(pause)

    def _turn(self) -> asyncio.Lock:
        """Whose turn it is among the tasks of the running loop."""
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            turn = self._turns[loop] = asyncio.Lock()
        return turn

    def close(self) -> None:
        """Close the file. The next transaction opens it again."""
        with self._lock:
            self._disconnect()

    def __del__(self) -> None:
        # Nobody uses it any more, so nobody holds the lock. From Python 3.13 an unclosed connection is warned of.
        self._disconnect()

    def before_fork(self) -> None:
        """Close the file and let nobody in until the fork is done."""
        self._lock.acquire()
        self._disconnect()

    def after_fork(self, *, child: bool) -> None:
        """Go on; the next transaction opens the file again, in the child with a lock of its own."""
        if child:
            self._new_lock()
            self._turns.clear()
        else:
            self._lock.release()

    def _new_lock(self) -> None:
        self._lock, self._kind = threading.Lock(), threading.Lock

    def _attempt(self, work: Work[T]) -> T:
        lock, taken = self._lock, list[bool]()
        try:
            # In one step: if a signal handler raises right after it, `taken` knows that the lock has to be released.
            taken.extend(map(lock.acquire, (False,)))
            if not taken[0]:
                raise _InUseError
            return self._transact(work)
        finally:
            if taken and taken[0]:
                lock.release()

    def _transact(self, work: Work[T]) -> T:
        """One try, with the lock held."""
        try:
            connection = self._begin()
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            if _is_busy(error):
                raise _BusyError(self._version()) from None
            self._disconnect()
            raise StoreError(f"{self.path}: {error}") from error
        self.lost_at = None
        return result

    def _version(self) -> int | None:
        """A number that changes with each transaction of other processes; None if it cannot be read."""
        if self._connection is None:
            return None
        try:
            return self._connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:
            return None

    def _begin(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is not None and time.monotonic() >= self._look_at:
            connection = self._look()
        if connection is None:
            connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        return connection

    def _look(self) -> sqlite3.Connection | None:
        """Notice a file that was removed or replaced: SQLite would go on writing to the one nobody can see."""
        self._look_at = time.monotonic() + _LOOK
        try:
            found = os.stat(self.path)  # noqa: PTH116
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            self._disconnect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _open(self) -> sqlite3.Connection:
        make_file(self.path)
        # No waiting inside SQLite: its pauses grow to 100 ms, and would block an event loop.
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=4000")
            migrate(connection)
            found = os.stat(self.path)  # noqa: PTH116
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity = connection, (found.st_dev, found.st_ino)
        self._look_at = time.monotonic() + _LOOK
        return connection


class _Patience:
    """How long one operation goes on waiting for other processes.

    `forbearing`: as long as others write, they are being served and our turn comes; but not for ever.
    """

    def __init__(self, file: File, timeout: float, *, forbearing: bool = True) -> None:
        self._file = file
        self._timeout = self._left = timeout
        self._in_all = timeout * (_FORBEARANCE if forbearing else 1)
        self._version: int | None = None
        self._longest = 0.0004

    def turn(self) -> float:
        """Seconds until the next look whether this process is free: some, never in step with others."""
        self._longest = min(0.002, self._longest * 1.5)
        return self._longest * random.uniform(0.3, 1.0)  # noqa: S311 (not for secrets)

    def pause(self, busy: _BusyError) -> float:
        """Seconds until the next try. Raises StoreError when there should be none."""
        file, pause = self._file, self.turn()
        if busy.version != self._version:
            self._version, self._left = busy.version, self._timeout
            if busy.version == file.lost_at:
                self._left /= 10  # another operation has waited in vain, and nothing has been written since
        self._left -= pause
        self._in_all -= pause
        if self._left <= 0:
            file.lost_at = busy.version
            raise self._late()
        if self._in_all <= 0:
            raise self._late()
        return pause

    def _late(self) -> StoreError:
        return StoreError(f"{self._file.path}: locked by others for more than {self._timeout:g} s")


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BUSY
