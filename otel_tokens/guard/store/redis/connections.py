"""Redis connections for threads."""

from __future__ import annotations

import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from otel_tokens.guard.store.redis.address import Address, Connection
from otel_tokens.guard.store.redis.protocol import Request

_IDLE_CONNECTIONS = 32  # per process, kept for threads
_MAX_CONNECTING = 64  # threads that may be connecting at a time


def _readable(connection: Connection) -> bool:
    """Whether there is something to read on an idle link. `can_read` reads; asking the system is 5 µs cheaper.

    Not with TLS, where the system also sees what is not for us, such as session tickets.
    """
    bare = getattr(connection, "_sock", None)
    if type(bare) is not socket.socket or not hasattr(select, "poll"):
        return connection.can_read(0)
    probe = select.poll()
    probe.register(bare, select.POLLIN)
    return bool(probe.poll(0))


class _Attempt:
    """A request on a thread of its own, for a caller who waits only so long."""

    def __init__(self) -> None:
        self.outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self.abandoned = False

    def run(self, work: Callable[[_Attempt], Any], free: threading.BoundedSemaphore) -> None:
        """In the thread."""
        try:
            self.outcome.put((work(self), None))
        except BaseException as error:  # raised again where it is waited for
            self.outcome.put((None, error))
        finally:
            free.release()


class ThreadConnections:
    """Connections for threads: one request at a time each, taken from a stack, put back after the answer."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._idle: list[Connection] = []
        self._free, self._kind = threading.BoundedSemaphore(_MAX_CONNECTING), threading.RLock

    def ask(self, request: Request) -> Any:
        """The answer to a request, within the timeout; else StoreError."""
        errors = self._address.errors
        began = time.monotonic()
        try:
            connection = self._idle_connection()
            if connection is not None:
                try:
                    return self._exchange(connection, request.short)
                except (errors.NoScriptError, errors.AskError):
                    pass  # it did not act, and said so at once: the next attempt brings it
            return self._connect_and_ask(request, began + self._timeout)
        except (errors.RedisError, OSError, RuntimeError) as error:
            raise self._address.failed(error) from error

    def close(self) -> None:
        """Close what is idle. The next request connects anew."""
        while self._idle:
            self._idle.pop().disconnect()

    def forked(self) -> None:
        """In the child: the sockets are the parent's. redis-py closes our copies without a farewell to the server."""
        inherited = self._idle
        self._start_afresh()
        for connection in inherited:
            connection.disconnect()

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            try:
                # Readable before anything was asked: the server has closed it, perhaps long ago.
                if not _readable(connection):
                    return connection
            except (self._address.errors.RedisError, OSError):
                pass  # broken: the next one
            connection.disconnect()
        return None

    def _exchange(self, connection: Connection, data: bytes) -> Any:
        try:
            connection.send_packed_command([data], check_health=False)
            answer = connection.read_response()
        except self._address.errors.ResponseError as error:
            if self._address.still_good(error):
                self._put_back(connection)
            else:
                connection.disconnect()
            raise
        except BaseException:
            connection.disconnect()
            raise
        self._put_back(connection)
        return answer

    def _put_back(self, connection: Connection) -> None:
        if len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.disconnect()

    def _connect_and_ask(self, request: Request, deadline: float) -> Any:
        """Connect, then ask: looking up names, TLS and logging in take several waits, which one thread bounds."""
        attempt = _Attempt()
        if self._kind is not threading.RLock:
            self._start_afresh()  # gevent has turned threads into greenlets since, which need locks of their own
        if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise self._address.late(self._timeout)
        work = partial(self._run, request)
        thread = threading.Thread(target=attempt.run, args=(work, self._free), name="otel-tokens-redis", daemon=True)
        try:
            thread.start()
        except BaseException:
            self._free.release()
            raise
        try:
            answer, error = attempt.outcome.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            attempt.abandoned = True
            raise self._address.late(self._timeout) from None
        if error is not None:
            raise error
        return answer

    def _run(self, request: Request, attempt: _Attempt) -> Any:
        errors = self._address.errors
        data, moves = request.short, 0
        while True:
            connection = self._idle_connection()
            if connection is None:
                connection = self._address.connection(self._address.find())
                connection.connect()
            if attempt.abandoned:
                self._put_back(connection)  # for the next one who asks
                return None
            try:
                return self._exchange(connection, data)
            except errors.NoScriptError:
                data = request.full()
            except errors.AskError as error:
                if moves:
                    raise
                moves += 1
                self._address.follow(error)
                self.close()
