"""The Redis connection of an event loop, shared by its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from otel_tokens.guard.store.redis.address import Address
from otel_tokens.guard.store.redis.patience import patiently
from otel_tokens.guard.store.redis.pipeline import Pipeline
from otel_tokens.guard.store.redis.protocol import Request


def _gone() -> Exception:
    return ConnectionError("the connection was closed")


class LoopConnection:
    """The connection of one event loop, closed when the loop is shut down; then `forget` is called."""

    def __init__(self, address: Address, timeout: float, forget: Callable[[], object]) -> None:
        self._forget = forget
        self._address = address
        self._timeout = timeout
        self._pipeline: Pipeline | None = None
        self._connecting: asyncio.Task[Pipeline] | None = None
        self._watch: AsyncGenerator[None, None] | None = None

    async def ask(self, request: Request) -> Any:
        """The answer to a request. Raises StoreError, also when the server sends nothing for the timeout."""
        try:
            if self._watch is None:
                await self._close_with_the_loop()
            return await self._run(request)
        except TimeoutError as error:
            raise self._address.late(self._timeout) from error
        except (self._address.errors.RedisError, OSError, RuntimeError) as error:
            raise self._address.failed(error) from error

    async def close(self) -> None:
        """Close the connection after the answers that are due. The next request connects anew."""
        if self._watch is not None:
            await self._watch.aclose()
        else:
            await self._drain()

    async def _close_with_the_loop(self) -> None:
        """A loop ends its async generators before it closes (`asyncio.run` does so), and ours closes the connection."""
        self._watch = self._until_the_loop_ends()
        await anext(self._watch)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._watch = None
            self._forget()
            await self._drain()

    async def _drain(self) -> None:
        if self._connecting is not None:
            await asyncio.wait((self._connecting,))
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        try:
            await patiently(pipeline.drain(), self._timeout)  # TLS says goodbye and waits for an answer
        except TimeoutError:
            pipeline.drop(_gone)

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
                self._drop(pipeline)
            except errors.ResponseError as error:
                if not self._address.still_good(error):
                    self._drop(pipeline)
                raise
            except (errors.RedisError, OSError):
                self._drop(pipeline)
                raise

    def _drop(self, pipeline: Pipeline) -> None:
        if self._pipeline is pipeline:
            self._pipeline = None
        pipeline.drop(_gone)

    async def _ready(self) -> Pipeline:
        """A connection that the server has not closed. One task connects for all, and all get its failure."""
        pipeline = self._pipeline
        if pipeline is not None and await pipeline.usable():
            return pipeline
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    def _connected(self, task: asyncio.Task[Pipeline]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._pipeline = task.result()

    async def _connect(self) -> Pipeline:
        address, loop = self._address, asyncio.get_running_loop()
        place = await address.aio_find()
        target = address.target(place)
        pipeline = Pipeline(address.errors, self._timeout, lambda: address.late(self._timeout))
        try:
            opening: Coroutine[Any, Any, object]
            if target.path:
                opening = loop.create_unix_connection(lambda: pipeline, target.path)
            else:
                opening = loop.create_connection(lambda: pipeline, target.host, target.port, ssl=target.tls)
            await patiently(opening, self._timeout)
            await asyncio.gather(*map(pipeline.exchange, target.login))
        except BaseException:
            pipeline.drop(_gone)
            raise
        return pipeline
