"""Redis connections for threads."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Sequence
from typing import Any

from otel_tokens.guard.store.base import StoreError
from otel_tokens.guard.store.redis.address import Address, Connection
from otel_tokens.guard.store.redis.patience import on_a_thread
from otel_tokens.guard.store.redis.protocol import Request

_IDLE_CONNECTIONS = 64  # per process, kept for threads
_MAX_CONNECTING = 64  # threads that connect at a time


class ThreadConnections:
    """Connections for threads: one request at a time each, taken from a stack, put back after the answer.

    The operating system measures the timeout, in each wait for the server: a thread that waits for the interpreter, or
    for its turn to connect, uses none of it.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._idle: list[Connection] = []
        self._free, self._kind = threading.BoundedSemaphore(_MAX_CONNECTING), threading.RLock
        self._order = itertools.count()
        self._failed: tuple[int, str] = (-1, "")

    def ask(self, request: Request) -> Any:
        """The answer to a request. Raises StoreError, also when one wait for the server takes the timeout."""
        errors = self._address.errors
        data, moves = request.short, 0
        try:
            while True:
                connection = self._idle_connection() or self._connect_in_turn()
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
        except (errors.RedisError, OSError, RuntimeError) as error:
            raise self._address.failed(error) from error

    def close(self) -> None:
        """Close what is idle. The next request connects anew."""
        while self._idle:
            self._idle.pop().disconnect()

    def forked(self) -> None:
        """In the child: the sockets are the parent's. redis-py closes our copies without a word to the server."""
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
                if not connection.can_read(0):
                    return connection
            except (self._address.errors.RedisError, OSError):
                pass  # broken: the next one
            connection.disconnect()
        return None

    def _exchange(self, connection: Connection, data: bytes) -> Any:
        try:
            connection.send_packed_command([data], check_health=False)
            answer = self._answer(connection)
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

    def _answer(self, connection: Connection) -> Any:
        while True:
            try:
                return connection.read_response(disconnect_on_error=False)
            except self._address.errors.TimeoutError:
                # A signal handler, or a loop of greenlets that was blocked, may have used the time up.
                if not connection.can_read(0):
                    raise

    def _put_back(self, connection: Connection) -> None:
        if len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.disconnect()

    def _connect_in_turn(self) -> Connection:
        """A new connection. A thread that waits for its turn gets the failure of an attempt made meanwhile."""
        if self._kind is not threading.RLock:
            self._start_afresh()  # gevent has turned threads into greenlets since, which need locks of their own
        errors = self._address.errors
        since = next(self._order)
        with self._free:
            connection = self._idle_connection()
            if connection is not None:
                return connection
            began, reason = self._failed
            if began > since:
                raise StoreError(reason)
            began = next(self._order)
            try:
                return self._connect()
            except (errors.RedisError, OSError, RuntimeError) as error:
                failure = self._address.failed(error)
                self._failed = (began, str(failure))
                raise failure from error

    def _connect(self) -> Connection:
        names = self._address.names()
        if names:
            self._look_up(names)
        connection = self._address.connection(self._address.find())
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _look_up(self, names: Sequence[str]) -> None:
        """Look names up, only to see that it takes no longer than the timeout: the system's call has none."""

        def work() -> None:
            for name in names:
                socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)

        try:
            on_a_thread(work, self._timeout)
        except TimeoutError:
            raise self._address.late(self._timeout) from None
