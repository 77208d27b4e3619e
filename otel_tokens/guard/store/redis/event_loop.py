"""The Redis connection of an event loop, shared by its tasks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from otel_tokens.guard.store.redis.address import Address, Connection
from otel_tokens.guard.store.redis.protocol import Request


class _Pipeline:
    """A connection on which requests follow one another without waiting; answers come in the order of requests.

    `heard` is when the server last answered, by the loop's clock.
    """

    def __init__(self, connection: Connection, address: Address) -> None:
        self.connection = connection
        self.heard = asyncio.get_running_loop().time()
        self._address = address
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._reader: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether answers are coming in, so that one more request needs no look at the connection."""
        return bool(self._asked) and self.connection.is_connected

    async def exchange(self, data: bytes) -> Any:
        """The answer to `data`. Whoever is cancelled leaves the answers of the others in order."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._asked.append(answer)
        try:
            # Written before its first wait, so in the order of `_asked`.
            await self.connection.send_packed_command([data], check_health=False)
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
        await self.connection.disconnect(nowait=True)

    async def _read(self) -> None:
        """Hand out answers for as long as one is expected. A task, for the cancelled must not take theirs along."""
        errors, clock = self._address.errors, asyncio.get_running_loop().time
        try:
            while self._asked:
                error: Exception | None = None
                answer: Any = None
                try:
                    answer = await self.connection.read_response()
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


class LoopConnection:
    """The connection of one event loop, closed when the loop is shut down; then `forget` is called."""

    def __init__(self, address: Address, timeout: float, forget: Callable[[], object]) -> None:
        self._forget = forget
        self._address = address
        self._timeout = timeout
        self._pipeline: _Pipeline | None = None
        self._connecting = asyncio.Lock()
        self._watch: AsyncGenerator[None, None] | None = None

    async def ask(self, request: Request) -> Any:
        """The answer to a request, within the timeout; else StoreError."""
        errors = self._address.errors
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout):
                if self._watch is None:
                    await self._close_with_the_loop()
                return await self._run(request)
        except TimeoutError as error:
            pipeline = self._pipeline
            if pipeline is not None and pipeline.heard < began:  # it is dead or stands still: another may fare better
                await self._drop(pipeline, error)
            raise self._address.late(self._timeout) from error
        except (errors.RedisError, OSError, RuntimeError) as error:
            raise self._address.failed(error) from error

    async def close(self) -> None:
        """Close the connection after the answers that are on their way. The next request connects anew."""
        if self._watch is not None:
            await self._watch.aclose()
        elif self._pipeline is not None:
            await self._close_gracefully(self._pipeline)

    async def _close_with_the_loop(self) -> None:
        """A loop ends its async generators before it closes (`asyncio.run` does so), and ours closes the link."""
        self._watch = self._until_the_loop_ends()
        await anext(self._watch)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._watch = None
            self._forget()
            if self._pipeline is not None:
                await self._close_gracefully(self._pipeline)

    async def _close_gracefully(self, pipeline: _Pipeline) -> None:
        self._pipeline = None
        with suppress(self._address.errors.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout):  # the farewell of TLS waits for an answer, too
                await pipeline.drain()
                await pipeline.connection.disconnect()

    async def _drop(self, pipeline: _Pipeline, reason: Exception) -> None:
        if self._pipeline is pipeline:
            self._pipeline = None
        await pipeline.close(reason)

    async def _run(self, request: Request) -> Any:
        errors = self._address.errors
        data, moves = request.short, 0
        while True:
            pipeline = self._pipeline
            if pipeline is None or not pipeline.running:
                pipeline = await self._ready()
            try:
                return await pipeline.exchange(data)
            except errors.NoScriptError:
                data = request.full()
            except errors.AskError as error:
                if moves:
                    raise
                moves += 1
                self._address.follow(error)
                await self._drop(pipeline, error)
            except errors.ResponseError as error:
                if not self._address.still_good(error):
                    await self._drop(pipeline, error)
                raise
            except (errors.RedisError, OSError) as error:
                await self._drop(pipeline, error)
                raise

    async def _ready(self) -> _Pipeline:
        """A connection that the server has not closed meanwhile. One task looks or connects, the others wait."""
        async with self._connecting:
            pipeline = self._pipeline
            if pipeline is not None and await self._usable(pipeline):
                return pipeline
            if pipeline is not None:
                await self._drop(pipeline, ConnectionError("closed by the server"))
            connection = self._address.aio_connection(await self._address.aio_find())
            try:
                await connection.connect()
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._pipeline = pipeline = _Pipeline(connection, self._address)
            return pipeline

    async def _usable(self, pipeline: _Pipeline) -> bool:
        try:
            return pipeline.running or (
                pipeline.connection.is_connected and not await self._address.can_read(pipeline.connection)
            )
        except (self._address.errors.RedisError, OSError):
            return False
