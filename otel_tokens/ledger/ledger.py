"""The ledger's writer: a record is in the file before `write` returns, and no trouble of the file reaches the caller.

In the write-ahead log a row survives the death of the process. One connection per process, guarded by a lock,
closed around a fork: SQLite's own bookkeeping of file locks would be wrong in a child that inherited it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from otel_tokens.errors import LedgerError
from otel_tokens.forks import at_fork
from otel_tokens.ledger.retention import Retention
from otel_tokens.ledger.rows import Row, encode, repaired
from otel_tokens.ledger.schema import code_of, explain, is_busy, open_writer, resolve
from otel_tokens.ledger.upkeep import BATCH, Upkeep
from otel_tokens.safely import interruption, report_fault, safely
from otel_tokens.values import Record

logger = logging.getLogger("otel_tokens")

_BACKLOG = 10_000  # rows kept in memory while another process holds the file
_BUSY_AGAIN = 0.1  # seconds; who has waited the full time once does not make every call wait as long
_RETRY = 60.0  # seconds until a ledger that failed is tried again
_LOOK = 1.0  # seconds between two looks whether the file is still there
_PRUNE_EVERY = 1000  # writes
_TROUBLES = (sqlite3.Error, OSError, LedgerError, ValueError)  # the last: a path or text that can be none
# Troubles that trying again does not mend; a full disk, a wrong mode or too many open files may be mended outside.
_FINAL = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Ledger:
    """Writes records to the SQLite file at `path`; for threads, processes and forks. Never raises into a call.

    `max_age_days` and `max_bytes` bound what is kept (oldest go first). `busy_timeout` is in seconds: how long a
    write waits for other processes before its row goes to memory, to be written with the next. When the file cannot be
    used the ledger is `disabled` (the reason, else None): logged once. `errors` counts lost records, `on_lost` is told.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_age_days: float | None = None,
        max_bytes: int | None = None,
        on_lost: Callable[[int], None] | None = None,
        busy_timeout: float = 5.0,
    ) -> None:
        self.path = resolve(path)
        self.errors = 0
        self.disabled: str | None = None
        self._retention = Retention(None if max_age_days is None else max_age_days * 86400, max_bytes)
        self.on_lost = on_lost
        self._busy_timeout = busy_timeout
        # Reentrant: a signal handler that flushes may interrupt a write in the same thread.
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._place = (os.getpid(), socket.gethostname())
        self._backlog: deque[Row] = deque()
        self._troubled = False  # disabled, or rows wait: the two states in which a write is not simply a write
        self._impatient = False
        self._retry_at: float | None = None
        self._look_at = 0.0
        self._writes = 0
        self._stop = False
        self._upkeep = self._new_upkeep()
        at_fork(self)
        atexit.register(_finish, weakref.ref(self))
        self._guarded(self._open)
        if self._retention and self.disabled is None:
            self._upkeep.start()

    # ---- for the engine -------------------------------------------------------------------------------------
    def write(self, record: Record) -> None:
        """Put a record into the file. Writing the same call twice is harmless.

        Raises what a signal handler of the program raises meanwhile, once the record is in the file.
        """
        try:
            self._write(record)
        except BaseException as error:
            if interruption(error) is not None or not isinstance(error, Exception):
                self._write(record)
            raise

    def _write(self, record: Record) -> None:
        try:
            row = encode(record, self._place)
        except Exception as error:  # a fault of ours; the record is lost, the call is not
            _raise_interruption(error)
            self._lose(1)
            report_fault("ledger.write", error)
            return
        trouble: str | None = None
        number: int | None = None
        with self._lock:
            try:
                connection = self._connection
                if connection is None or self._troubled or time.monotonic() >= self._look_at:
                    number = self._write_with_care(row)
                else:
                    number = connection.execute(*row).lastrowid
            except (*_TROUBLES, OverflowError) as error:
                trouble = self._second_try(error, row)
            self._writes += 1
        if trouble is not None:
            logger.error("%s", trouble)
        # Whoever writes each 4096th row of the file takes the rows into the summary.
        if (number and number % BATCH == 0) or (self._retention and self._writes % _PRUNE_EVERY == 0):
            self._upkeep.start()

    def flush(self) -> None:
        """Write what waits in memory, if the file can be had now."""
        if self._backlog and self.disabled is None:
            self._guarded(self._catch_up)

    def close(self) -> None:
        """Flush and close the file. A later `write` opens it again."""
        self._stop = True
        self.flush()
        try:
            self._upkeep.join(timeout=2.0)
        finally:
            with self._lock:
                self._disconnect()

    def finish(self) -> None:
        """Close at the end of the process: what still waits is lost."""
        self.close()
        left = self.pending
        if left:
            self._backlog.clear()
            self._lose(left)
            logger.error("ledger %s: %d records are lost, another process holds the file", self.path, left)

    @property
    def pending(self) -> int:
        """How many records wait in memory for another process to let go of the file."""
        return len(self._backlog)

    # ---- the file -------------------------------------------------------------------------------------------
    def _open(self) -> sqlite3.Connection:
        self._stop = False
        connection = self._connection
        if connection is None:
            connection = open_writer(self.path, self._patience())
            status = os.stat(self.path)  # noqa: PTH116
            self._connection, self._file = connection, (status.st_dev, status.st_ino)
            self._look_at = time.monotonic() + _LOOK
        return connection  # not the attribute: a handler in this very thread may have closed it again

    def _new_upkeep(self) -> Upkeep:
        return Upkeep(self._retention, self._lock, lambda: None if self._stop else self._connection)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _write_with_care(self, row: Row) -> int | None:
        """Write when all is not as usual: what waits goes first, a disabled ledger only tries now and then."""
        if self.disabled is not None and not self._may_retry():
            self._lose(1)
            return None
        if self._backlog:
            self._postpone(row)
            number = self._catch_up()
        else:
            number = self._insert(row)
        self._be_patient(True)
        if self.disabled is not None:
            self.disabled = self._retry_at = None
            logger.warning("ledger %s keeps records again; %d were lost", self.path, self.errors)
        self._troubled = False
        return number

    def _second_try(self, error: Exception, row: Row) -> str | None:
        _raise_interruption(error)
        if not isinstance(error, (OverflowError, UnicodeError, sqlite3.InterfaceError, sqlite3.ProgrammingError)):
            return self._failed(error, row)
        try:
            # A value that SQLite cannot hold, or a handler in this very thread closed the file in the meantime.
            self._insert(repaired(row))
        except _TROUBLES as worse:
            return self._failed(worse, row)
        return None

    def _insert(self, row: Row) -> int | None:
        """The number of the row."""
        connection = self._connection or self._open()
        if time.monotonic() >= self._look_at:
            self._look()
        return connection.execute(*row).lastrowid

    def _look(self) -> None:
        """Notice a file that was removed or replaced: SQLite would go on writing to the one nobody can see."""
        self._look_at = time.monotonic() + _LOOK
        try:
            status = os.stat(self.path)  # noqa: PTH116
        except FileNotFoundError:
            raise LedgerError("the file was removed while in use", path=self.path) from None
        if (status.st_dev, status.st_ino) != self._file:
            raise LedgerError("the file was replaced while in use", path=self.path)

    # ---- trouble --------------------------------------------------------------------------------------------
    def _guarded(self, step: Callable[[], object]) -> None:
        trouble: str | None = None
        with self._lock:
            try:
                step()
            except _TROUBLES as error:
                trouble = self._failed(error, None)
        if trouble is not None:
            logger.error("%s", trouble)

    def _failed(self, error: Exception, row: Row | None) -> str | None:
        """Take in a failure and the row it hit; the message to tell if it is news."""
        _raise_interruption(error)
        if isinstance(error, sqlite3.Error) and is_busy(error):
            news = not self._troubled
            self._troubled = True
            self._be_patient(False)
            if row is not None and not self._waits(row):
                self._postpone(row)
            return f"ledger {self.path}: another process holds the file; records wait in memory" if news else None
        final = isinstance(error, LedgerError) or (isinstance(error, sqlite3.Error) and code_of(error) in _FINAL)
        self._retry_at = None if final else time.monotonic() + _RETRY
        self._troubled = True
        self._lose(len(self._backlog) + (row is not None and not self._waits(row)))
        self._backlog.clear()
        self._disconnect()
        news = self.disabled is None
        self.disabled = explain(error)
        if not news:
            return None
        until = "until restart" if final else f"tried again every {_RETRY:.0f} s"
        return f"ledger {self.path} is disabled ({until}): {self.disabled}. Calls go on and are not recorded"

    def _postpone(self, row: Row) -> None:
        if len(self._backlog) >= _BACKLOG:
            self._backlog.popleft()
            self._lose(1)
        self._backlog.append(repaired(row))

    def _waits(self, row: Row) -> bool:
        call_id = row[1][0]
        return any(waiting[1][0] == call_id for waiting in self._backlog)

    def _catch_up(self) -> int | None:
        number = None
        while self._backlog:
            number = self._insert(self._backlog[0])
            self._backlog.popleft()
        return number

    def _patience(self) -> float:
        return min(_BUSY_AGAIN, self._busy_timeout) if self._impatient else self._busy_timeout

    def _be_patient(self, patient: bool) -> None:
        if self._impatient != patient:
            return
        self._impatient = not patient
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute(f"PRAGMA busy_timeout={int(self._patience() * 1000)}")

    def _may_retry(self) -> bool:
        if self._retry_at is None or time.monotonic() < self._retry_at:
            return False
        self._retry_at = time.monotonic() + _RETRY
        return True

    def _lose(self, count: int) -> None:
        self.errors += count
        if count and self.on_lost is not None:
            safely("ledger.on_lost", self.on_lost, count)

    # ---- fork -----------------------------------------------------------------------------------------------
    def before_fork(self) -> None:
        """Close the file and let nobody in until the fork is done."""
        self._lock.acquire()
        self._disconnect()

    def after_fork(self, *, child: bool) -> None:
        """Go on; the next write opens the file again. In the child what waits in memory is the parent's to write."""
        if not child:
            self._lock.release()
            return
        self._lock = threading.RLock()
        self._upkeep = self._new_upkeep()
        self._backlog.clear()
        self._disconnect()  # only if it was forked by code that runs no handler before
        self._place = (os.getpid(), self._place[1])


def _finish(held: weakref.ref[Ledger]) -> None:
    if (ledger := held()) is not None:
        ledger.finish()


def _raise_interruption(error: Exception) -> None:
    """Raise what a signal handler of the program raised, in the `except` clause that caught `error`."""
    raised = interruption(error)
    if raised is not None:
        raise raised
