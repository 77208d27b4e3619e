"""One Redis connection of an event loop: requests follow one another without waiting."""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from otel_tokens.guard.store.redis.answers import Answers
from otel_tokens.guard.store.redis.patience import TICKS

Fault = Callable[[], Exception]
"""Makes the error of one request: an exception belongs to one traceback."""


def _closed() -> Exception:
    return ConnectionError("connection closed by the server")


class Pipeline(asyncio.Protocol):
    """Sends requests and hands out answers, which come in the order of the requests.

    The server is lost (`late`) when it sends nothing for `timeout` seconds while an answer is due. Requests do not time
    out one by one: one that waits behind others, or whose answer has not been read yet because the loop was blocked,
    is not late. `errors` is redis-py's module of exceptions.
    """

    def __init__(self, errors: Any, timeout: float, late: Fault) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._answers = Answers(errors)
        self._due: deque[asyncio.Future[Any]] = deque()
        self._tick = timeout / TICKS
        self._late = late
        self._silent = 0
        self._ticking: asyncio.TimerHandle | None = None

    # ---- requests ------------------------------------------------------------------------------------------------
    @property
    def running(self) -> bool:
        """Whether answers are due, so that one more request needs no look at the connection."""
        return bool(self._due) and not self.closed

    def exchange(self, data: bytes) -> asyncio.Future[Any]:
        """Send `data`; the answer to it. A future that is cancelled leaves the answers of the others in order."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self.closed or self._transport is None:
            answer.set_exception(_closed())
            return answer
        if not self._due:
            self._silent = 0
        self._due.append(answer)
        self._transport.write(data)
        if self._ticking is None:
            self._ticking = self._loop.call_later(self._tick, self._count)
        return answer

    async def usable(self) -> bool:
        """Whether the server has not hung up. Lets the loop read what has arrived, if anything has."""
        for _ in range(3):
            if self.closed or not self._readable():
                break
            await asyncio.sleep(0)
        return not self.closed

    async def drain(self) -> None:
        """Wait for the answers that are due, and hang up."""
        if self._due:
            await asyncio.wait(list(self._due))
        if self._transport is not None:
            self._transport.close()
            await asyncio.wait((self._ended,))

    def drop(self, fault: Fault) -> None:
        """Hang up at once. Every request that waits gets the fault."""
        self.closed = True
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        while self._due:
            answer = self._due.popleft()
            if not answer.done():
                answer.set_exception(fault())
        if self._transport is not None:
            self._transport.abort()

    def _readable(self) -> bool:
        """Whether something has arrived that the loop has not read yet."""
        link = self._transport and self._transport.get_extra_info("socket")
        if link is None:
            return True
        if not hasattr(select, "poll"):  # Windows
            return bool(select.select([link], [], [], 0)[0])
        probe = select.poll()
        probe.register(link, select.POLLIN)
        return bool(probe.poll(0))

    def _count(self) -> None:
        """A tick is over. It counts as one however late it comes: a loop that was blocked has read nothing."""
        self._ticking = None
        if not self._due:
            return
        self._silent += 1
        if self._silent > TICKS:
            self.drop(self._late)
        else:
            self._ticking = self._loop.call_later(self._tick, self._count)

    # ---- called by the event loop --------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand out the answers that are complete."""
        self._silent = 0
        try:
            answers = self._answers.feed(data)
        except ValueError as error:
            text = str(error)
            self.drop(lambda: ConnectionError(text))
            return
        for answer in answers:
            asked = self._due.popleft() if self._due else None
            if asked is None or asked.done():
                continue
            if isinstance(answer, Exception):
                asked.set_exception(answer)
            else:
                asked.set_result(answer)

    def eof_received(self) -> bool:
        """The server hung up."""
        self.drop(_closed)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        reason = str(exc) if exc is not None else ""
        self.drop(lambda: ConnectionError(reason) if reason else _closed())
        if not self._ended.done():
            self._ended.set_result(None)
