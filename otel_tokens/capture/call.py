"""The wrappers that are put around an SDK's functions, sync and async: each billed request becomes a call."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import starmap
from typing import Any

from otel_tokens.capture.attempt import Attempt, has_middleware
from otel_tokens.capture.exchange import Arguments, Exchange, Keywords, json_of, options_of, response_of
from otel_tokens.capture.failure import may_be_billed
from otel_tokens.capture.foreign import AdoptedSpan
from otel_tokens.capture.request import Requests
from otel_tokens.capture.stream import ametered, attach, metered
from otel_tokens.lifecycle.active import ActiveCall, current
from otel_tokens.lifecycle.engine import Engine
from otel_tokens.providers.spec import Provider
from otel_tokens.safely import safely

Wrapped = Callable[..., Any]


class Drivers:
    """The wrappers of one SDK's targets. `wrapper(kind)` gives what wrapt calls instead of the target."""

    def __init__(self, engine: Engine, requests: Requests, provider: Provider) -> None:
        self.engine = engine
        self.requests = requests
        self.provider = provider
        kinds = {target.kind for target in provider.targets}
        self.has_native = "native_span" in kinds
        self.has_attempts = "attempt" in kinds

    def wrapper(self, kind: str) -> Callable[..., Any]:
        """The wrapper for a kind of target (`providers.spec.TargetKind`)."""
        return {
            "request": self.request,
            "arequest": self.arequest,
            "attempt": self.attempt,
            "aattempt": self.aattempt,
            "stream": self.stream,
            "astream": self.astream,
            "retry": self.retry,
            "native_span": self.native_span,
        }[kind]

    # ---- one exchange -----------------------------------------------------------------------------------------
    def request(self, wrapped: Wrapped, client: Any, args: Arguments, keywords: Keywords) -> Any:
        """Around `SyncAPIClient.request(cast_to, options, *, stream, stream_cls)`."""
        if self.has_attempts and has_middleware(client):
            return wrapped(*args, **keywords)  # each of its attempts is a call
        exchange = safely("open", self._open, Exchange, client, args, keywords)
        if exchange is None:
            result = wrapped(*args, **keywords)
            return self._poll(result, args, keywords) if self.engine.parked else result
        return self._run(exchange, wrapped)

    def attempt(self, wrapped: Wrapped, client: Any, args: Arguments, keywords: Keywords) -> Any:
        """Around `SyncAPIClient._attempt_request(options, *, stream, …)`, for clients with middleware."""
        exchange = safely("open", self._open, Attempt, client, args, keywords) if has_middleware(client) else None
        return wrapped(*args, **keywords) if exchange is None else self._run(exchange, wrapped)

    def _run(self, exchange: Exchange, wrapped: Wrapped) -> Any:
        try:
            exchange.active.admit()
            exchange.begin()
            self._send(exchange, wrapped)
            exchange.returned()
            return exchange.result
        except BaseException as error:
            try:
                exchange.failed(error)
            except BaseException as interrupt:
                exchange.failed(interrupt)
                raise
            raise

    def _send(self, exchange: Exchange, wrapped: Wrapped) -> None:
        try:
            # Unpacked: after a plain call a signal handler of the program could run before the assignment.
            (exchange.result,) = starmap(partial(wrapped, **exchange.keywords), (exchange.args,))
        except Exception as error:
            if not exchange.again(error):
                raise
            try:
                (exchange.result,) = starmap(partial(wrapped, **exchange.keywords), (exchange.args,))
            except Exception:
                if exchange.refusal == "named":
                    raise
                raise error from None

    async def arequest(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Arguments, keywords: Keywords
    ) -> Any:
        """`request` for `AsyncAPIClient.request`."""
        if self.has_attempts and has_middleware(client):
            return await wrapped(*args, **keywords)
        exchange = safely("open", self._open, Exchange, client, args, keywords)
        if exchange is None:
            result = await wrapped(*args, **keywords)
            return self._poll(result, args, keywords) if self.engine.parked else result
        return await self._arun(exchange, wrapped)

    async def aattempt(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Arguments, keywords: Keywords
    ) -> Any:
        """`attempt` for `AsyncAPIClient._attempt_request`."""
        exchange = safely("open", self._open, Attempt, client, args, keywords) if has_middleware(client) else None
        return await (wrapped(*args, **keywords) if exchange is None else self._arun(exchange, wrapped))

    async def _arun(self, exchange: Exchange, wrapped: Callable[..., Awaitable[Any]]) -> Any:
        try:
            await exchange.active.aadmit()
            exchange.begin()
            await self._asend(exchange, wrapped)
            exchange.returned()
            return exchange.result
        except BaseException as error:
            try:
                exchange.failed(error)
            except BaseException as interrupt:
                exchange.failed(interrupt)
                raise
            raise

    async def _asend(self, exchange: Exchange, wrapped: Callable[..., Awaitable[Any]]) -> None:
        try:
            exchange.result = await wrapped(*exchange.args, **exchange.keywords)
        except Exception as error:
            if not exchange.again(error):
                raise
            try:
                exchange.result = await wrapped(*exchange.args, **exchange.keywords)
            except Exception:
                if exchange.refusal == "named":
                    raise
                raise error from None

    def _open(self, kind: type[Exchange], client: Any, args: Arguments, keywords: Keywords) -> Exchange | None:
        options = options_of(args, keywords, kind.options_at)
        endpoint = self.requests.endpoint(self.provider, options)
        if endpoint is None:
            return None
        call, body = self.requests.call(self.provider, endpoint, client, options)
        active = ActiveCall(self.engine, call, endpoint, body)
        exchange = kind(active, client, args, keywords)
        exchange.native = (
            kind is Exchange
            and self.has_native
            and self.engine.foreign != "own"
            and getattr(client, "_tracer", None) is not None
        )
        if (
            call.stream
            and endpoint.asks_usage
            and self.requests.include_usage
            and self.requests.host(self.provider, client, options.url).include_usage is not False
        ):
            exchange.ask_for_usage(body)
        return exchange

    def _poll(self, result: Any, args: Arguments, keywords: Keywords) -> Any:
        """Look whether a request that is not billed has found the answer of a parked call."""
        options = options_of(args, keywords)
        active = parked_at(options.url, self.provider, self.engine.parked)
        if active is not None:
            safely("poll", self._polled, active, result, streamed=bool(keywords.get("stream")))
        return result

    def _polled(self, active: ActiveCall, result: Any, *, streamed: bool) -> None:
        response = response_of(result)
        if response is None:
            active.polled(result)
        elif streamed or not response.is_closed:
            active.unpark()
            attach(response, active)
        else:
            active.polled(json_of(response))

    # ---- streams, retries, the SDK's own spans ----------------------------------------------------------------
    def stream(self, wrapped: Wrapped, stream: Any, args: Arguments, keywords: Keywords) -> Any:
        """Around `Stream.__stream__`: the generator of parsed chunks."""
        return metered(stream, wrapped(*args, **keywords))

    def astream(self, wrapped: Wrapped, stream: Any, args: Arguments, keywords: Keywords) -> Any:
        """Around `AsyncStream.__stream__`."""
        return ametered(stream, wrapped(*args, **keywords))

    def retry(self, wrapped: Wrapped, client: Any, args: Arguments, keywords: Keywords) -> Any:
        """Around the wait before another attempt."""
        del client
        active = current.get()
        if active is not None:
            active.attempts += 1
            error = sys.exception()
            if error is not None and safely("retry", may_be_billed, error):
                active.risky = True
        return wrapped(*args, **keywords)

    def native_span(self, wrapped: Wrapped, client: Any, args: Arguments, keywords: Keywords) -> Any:
        """Around the function by which the SDK starts a span of its own for the call under way."""
        del client
        active = current.get()
        if self.engine.foreign == "own" and (active is not None or self._is_billed(args)):
            return None  # the SDK takes None for "no span"
        if active is None:
            return wrapped(*args, **keywords)
        span = wrapped(*args, **keywords)
        if active.span is not None:
            return span  # a call inside the call, or others' span was there first
        if span is None or not span.is_recording():
            active.open_span()  # no span of theirs, or one that goes nowhere
            return span
        adopted = AdoptedSpan(span)
        active.adopt(adopted)
        return adopted

    def _is_billed(self, args: Arguments) -> bool:
        """Whether a span is to be started for a billed request: (tracer, base URL, options, …) are the arguments."""
        return bool(safely("native span", lambda: self.requests.endpoint(self.provider, args[2]) is not None))


def parked_at(url: str, provider: Provider, parked: Mapping[str, ActiveCall]) -> ActiveCall | None:
    """The parked call that a request to `url` asks about ("/responses/resp_1", with or without "/cancel")."""
    path = url.partition("?")[0]
    for endpoint in provider.endpoints:
        if endpoint.poll is not None and endpoint.poll in path:
            return parked.get(path.rpartition(endpoint.poll)[2].partition("/")[0])
    return None
