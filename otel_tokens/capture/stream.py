"""Streams: reads each chunk, and the bytes of a body that the caller reads as bytes.

The caller keeps the SDK's own objects. Parsed chunks are seen in the SDK's generator; the end of a body (close by
anyone: caller, helper, context manager) is seen in the response's byte stream, which is also where bytes are read
when the SDK does not parse them.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache
from time import perf_counter
from typing import Any

from otel_tokens.capture.body import Body, body_for
from otel_tokens.lifecycle.active import ActiveCall
from otel_tokens.safely import safely
from otel_tokens.shapes import is_dict

KEY = "otel_tokens"
"""Where a response carries its call: `response.extensions[KEY]`."""


def call_of(stream: Any) -> ActiveCall | None:
    """The call that a Stream object's response belongs to, or None."""
    extensions = getattr(getattr(stream, "response", None), "extensions", None)
    found = extensions.get(KEY) if is_dict(extensions) else None
    return found if isinstance(found, ActiveCall) else None


def metered(stream: Any, inner: Iterator[Any]) -> Iterator[Any]:
    """The SDK's generator of chunks; each chunk is read as it passes. Ends the call when the stream ends."""
    active: ActiveCall | None = None
    try:
        active = call_of(stream)
        del stream  # or an abandoned stream would live as long as its generator
        if active is None or active.ended:
            yield from inner
            return
        active.parsed = True
        facts, look = active.facts, active.read_chunk
        for chunk in inner:
            if active.first is None:
                active.first = perf_counter()
            look(facts, chunk)
            if facts.complete:
                if active.hides(chunk):
                    continue
                active.seen_last(chunk)
            if active.cut_at is not None and (error := active.over()) is not None:
                active.end("cut", error)
                getattr(inner, "close", _nothing)()
                if active.engine.cut_cleanly:
                    yield cut_chunk(chunk)
                    return
                raise error
            active.idle = True
            yield chunk
            active.idle = False
        active.end("ok")
    except GeneratorExit:
        if active is not None and active.parsed:
            active.drop()
            getattr(inner, "close", _nothing)()
        raise
    except BaseException as error:
        if active is not None:
            active.fail(error)
        raise


async def ametered(stream: Any, inner: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """`metered` for async streams."""
    active: ActiveCall | None = None
    try:
        active = call_of(stream)
        del stream
        if active is None or active.ended:
            async for chunk in inner:
                yield chunk
            return
        active.parsed = True
        facts, look = active.facts, active.read_chunk
        async for chunk in inner:
            if active.first is None:
                active.first = perf_counter()
            look(facts, chunk)
            if facts.complete:
                if active.hides(chunk):
                    continue
                active.seen_last(chunk)
            if active.cut_at is not None and (error := active.over()) is not None:
                active.end("cut", error)
                await getattr(inner, "aclose", _anothing)()
                if active.engine.cut_cleanly:
                    yield cut_chunk(chunk)
                    return
                raise error
            active.idle = True
            yield chunk
            active.idle = False
        active.end("ok")
    except GeneratorExit:
        # The inner generator is closed by the loop's own hook: closing it here too would be one time too many.
        if active is not None:
            active.drop()
        raise
    except BaseException as error:
        if active is not None:
            active.fail(error)
        raise


def _nothing() -> None:
    return None


async def _anothing() -> None:
    return None


def cut_chunk(chunk: Any) -> Any:
    """The chunk at which a stream is cut cleanly, with finish reason "budget" where its form has one."""
    choices = getattr(chunk, "choices", None)
    if choices and hasattr(chunk, "model_copy"):
        ended = choices[0].model_copy(update={"finish_reason": "budget"})
        return chunk.model_copy(update={"choices": [ended, *choices[1:]]})
    return chunk


# ---- bodies read as bytes ------------------------------------------------------------------------------------
def attach(response: Any, active: ActiveCall) -> None:
    """Tie a response with an unread body to its call, and tap the body."""
    response.extensions[KEY] = active
    active.engine.streams.add(active)
    stream = response.stream
    for name, make in (("AsyncByteStream", _async_tap), ("SyncByteStream", _sync_tap)):
        base = next((kind for kind in type(stream).__mro__ if kind.__name__ == name), None)
        if base is not None:
            response.stream = make(base)(stream, active, response)
            return


def read_held(response: Any, active: ActiveCall) -> None:
    """Read a streamed body that is in memory already (an event hook has read it): nothing of it will pass the tap."""
    body = body_for({"content-type": response.headers.get("content-type", "")}, active, None)
    response._content = body.feed(response.content) + body.finish()
    active.end("ok")


class _Tap:
    """What both taps do. What else the wrapped stream has stays reachable, as it is when it is asked for: the HTTP
    client keeps the elapsed time there, an SDK its observer."""

    def __init__(self, inner: Any, active: ActiveCall, response: Any) -> None:
        self._otel_inner = inner
        self._otel_active = active
        self._otel_headers = response.headers
        self._otel_exhausted = False
        self._otel_error: BaseException | None = None
        self._otel_body: Body | None = None
        self._otel_blind = False
        # An SDK reads it for every chunk: as a plain attribute that takes a tenth of what `__getattr__` takes.
        self.stream_observer = getattr(inner, "stream_observer", None)
        # One document where a stream was asked for has no chunks to be parsed.
        self._otel_whole = "json" in response.headers.get("content-type", "")
        self._otel_decoders = sys.modules.get(type(response).__module__.partition(".")[0] + "._decoders")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_otel_"):
            raise AttributeError(name)
        return getattr(self._otel_inner, name)

    def _otel_see(self, data: bytes) -> bytes:
        """Read bytes that the SDK does not parse. Returns the bytes for the caller."""
        active, body = self._otel_active, self._otel_body
        if body is None:  # what has been begun goes on to the body's end: it may be holding something back
            if (active.parsed and not self._otel_whole) or active.ended or self._otel_blind:
                return data
            body = self._otel_body = safely("body", body_for, self._otel_headers, active, self._otel_decoders)
            if body is None:
                self._otel_blind = True
                return data
        kept = safely("read body", body.feed, data)
        return data if kept is None else kept

    def _otel_rest(self) -> bytes:
        """What the look has held back when the body ends."""
        self._otel_exhausted = True
        body = self._otel_body
        return b"" if body is None else safely("read body", body.finish) or b""

    def _otel_over(self) -> bool:
        """Whether the guard wants the body cut here; the call has then ended."""
        active = self._otel_active
        if active.cut_at is None or active.parsed or active.ended:
            return False
        self._otel_error = active.over()
        if self._otel_error is None:
            return False
        active.end("cut", self._otel_error)
        return True

    def _otel_cut(self) -> None:
        """Raise what a cut body ends with, unless it is to end like any other."""
        if self._otel_error is not None and not self._otel_active.engine.cut_cleanly:
            raise self._otel_error

    def _otel_closed(self) -> None:
        active = self._otel_active
        if active.ended or (active.parsed and not active.idle):
            return  # the generator that reads this body ends the call itself, knowing why
        if self._otel_error is not None:
            active.fail(self._otel_error)
        elif self._otel_exhausted and not active.parsed:
            active.end("ok")
        else:
            # Maybe by the collector, which may find the SDK's generator before ours.
            active.drop()


@lru_cache(maxsize=64)
def _sync_tap(base: type[Any]) -> Callable[[Any, ActiveCall, Any], Any]:
    class Tap(_Tap, base):  # the HTTP client checks for its own base class
        def __iter__(self) -> Iterator[bytes]:
            try:
                for data in self._otel_inner:
                    kept = self._otel_see(data)
                    if self._otel_over():
                        self.close()
                        self._otel_cut()
                        return
                    if kept:
                        yield kept
                rest = self._otel_rest()
                if rest:
                    yield rest
            except GeneratorExit:
                raise
            except BaseException as error:
                self._otel_error = error
                raise

        def close(self) -> None:
            self._otel_closed()
            self._otel_inner.close()

    return Tap


@lru_cache(maxsize=64)
def _async_tap(base: type[Any]) -> Callable[[Any, ActiveCall, Any], Any]:
    class AsyncTap(_Tap, base):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for data in self._otel_inner:
                    kept = self._otel_see(data)
                    if self._otel_over():
                        await self.aclose()
                        self._otel_cut()
                        return
                    if kept:
                        yield kept
                rest = self._otel_rest()
                if rest:
                    yield rest
            except GeneratorExit:
                raise
            except BaseException as error:
                self._otel_error = error
                raise

        async def aclose(self) -> None:
            self._otel_closed()
            await self._otel_inner.aclose()

    return AsyncTap
