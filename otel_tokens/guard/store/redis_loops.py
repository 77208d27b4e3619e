"""The connection of an event loop to Redis. Its tasks share one: a thousand requests at once cost no thousand waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from otel_tokens.guard.store.redis_address import Address
from otel_tokens.guard.store.redis_wire import Request

Link = Any
"""A connection of redis-py: `connect`, `send_packed_command`, `read_response`, `can_read`, `disconnect`."""


class _Pipe:
    """A connection on which requests follow one another without waiting; answers come in the order of requests.

    `heard` is when the server last answered, by the loop's clock.
    """

    def __init__(self, link: Link, address: Address) -> None:
        self.link = link
        self.heard = asyncio.get_running_loop().time()
        self._address = address
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._reader: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether answers are coming in, so that one more request needs no look at the connection."""
        return bool(self._asked) and self.link.is_connected

    async def exchange(self, data: bytes) -> Any:
        """The answer to `data`. Whoever is cancelled leaves the answers of the others in order."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._asked.append(answer)
        try:
            # Written before its first wait, so in the order of `_asked`.
            await self.link.send_packed_command([data], check_health=False)
        except BaseException:  # redis-py has hung up
            answer.cancel()
            raise
        if self._reader is None and self._asked:
            self._reader = loop.create_task(self._read())
        return await answer

    async def drain(self) -> None:
        """Wait for the answers that are on their way."""
        if self._reader is not None:
            await asyncio.wait((self._reader,))

    async def close(self, reason: Exception) -> None:
        """Hang up. Whoever still waits is told the reason."""
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(reason)
        await self.link.disconnect(nowait=True)

    async def _read(self) -> None:
        """Hand out answers for as long as one is expected. A task, for the cancelled must not take theirs along."""
        errors, clock = self._address.errors, asyncio.get_running_loop().time
        try:
            while self._asked:
                error: Exception | None = None
                answer: Any = None
                try:
                    answer = await self.link.read_response()
                except errors.ResponseError as refusal:
                    error = refusal
                self.heard = clock()
                asked = self._asked.popleft()
                if asked.done():
                    continue
                if error is None:
                    asked.set_result(answer)
                else:
                    asked.set_exception(error)
        except asyncio.CancelledError:
            await self.close(ConnectionError("the event loop ends"))
            raise
        except Exception as reason:
            await self.close(reason)
        finally:
            self._reader = None


class LoopLinks:
    """The connection of one event loop, closed when the loop is shut down; then `forget` is called."""

    def __init__(self, address: Address, timeout: float, forget: Callable[[], object]) -> None:
        self._forget = forget
        self._address = address
        self._timeout = timeout
        self._pipe: _Pipe | None = None
        self._door = asyncio.Lock()
        self._watch: AsyncGenerator[None, None] | None = None

    async def ask(self, request: Request) -> Any:
        """The answer to a request, within the timeout; else StoreError."""
        errors = self._address.errors
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout):
                if self._watch is None:
                    await self._begin_watch()
                return await self._run(request)
        except TimeoutError as error:
            pipe = self._pipe
            if pipe is not None and pipe.heard < began:  # it is dead or stands still: another may fare better
                await self._hang_up(pipe, error)
            raise self._address.late(self._timeout) from error
        except (errors.RedisError, OSError, RuntimeError) as error:
            raise self._address.failed(error) from error

    async def close(self) -> None:
        """Close the connection after the answers that are on their way. The next request connects anew."""
        if self._watch is not None:
            await self._watch.aclose()
        elif self._pipe is not None:
            await self._say_goodbye(self._pipe)

    async def _begin_watch(self) -> None:
        """A loop ends its async generators before it closes (`asyncio.run` does so), and ours closes the link."""
        self._watch = self._until_the_loop_ends()
        await anext(self._watch)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._watch = None
            self._forget()
            if self._pipe is not None:
                await self._say_goodbye(self._pipe)

    async def _say_goodbye(self, pipe: _Pipe) -> None:
        self._pipe = None
        with suppress(self._address.errors.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout):  # the farewell of TLS waits for an answer, too
                await pipe.drain()
                await pipe.link.disconnect()

    async def _hang_up(self, pipe: _Pipe, reason: Exception) -> None:
        if self._pipe is pipe:
            self._pipe = None
        await pipe.close(reason)

    async def _run(self, request: Request) -> Any:
        errors = self._address.errors
        data, moves = request.short, 0
        while True:
            pipe = self._pipe
            if pipe is None or not pipe.running:
                pipe = await self._ready()
            try:
                return await pipe.exchange(data)
            except errors.NoScriptError:
                data = request.full()
            except errors.AskError as error:
                if moves:
                    raise
                moves += 1
                self._address.follow(error)
                await self._hang_up(pipe, error)
            except errors.ResponseError as error:
                if not self._address.still_good(error):
                    await self._hang_up(pipe, error)
                raise
            except (errors.RedisError, OSError) as error:
                await self._hang_up(pipe, error)
                raise

    async def _ready(self) -> _Pipe:
        """A connection that the server has not closed meanwhile. One task looks or connects, the others wait."""
        async with self._door:
            pipe = self._pipe
            if pipe is not None and await self._usable(pipe):
                return pipe
            if pipe is not None:
                await self._hang_up(pipe, ConnectionError("closed by the server"))
            link = self._address.aio_link(await self._address.aio_find())
            try:
                await link.connect()
            except BaseException:
                await link.disconnect(nowait=True)
                raise
            self._pipe = pipe = _Pipe(link, self._address)
            return pipe

    async def _usable(self, pipe: _Pipe) -> bool:
        try:
            return pipe.running or (pipe.link.is_connected and not await self._address.can_read(pipe.link))
        except (self._address.errors.RedisError, OSError):
            return False
