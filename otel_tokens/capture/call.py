"""The drivers: one billed call around an SDK's request function, sync and async, from one story."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from otel_tokens.capture.exchange import Arguments, Exchange, Keywords, json_of, options_of, response_of
from otel_tokens.capture.foreign import AdoptedSpan
from otel_tokens.capture.request import Requests
from otel_tokens.capture.stream import ametered, attach, metered
from otel_tokens.lifecycle import ActiveCall, Engine, current
from otel_tokens.providers.spec import Provider
from otel_tokens.safely import safely

Wrapped = Callable[..., Any]


class Drivers:
    """The wrappers of one SDK's targets. `wrapper(kind)` gives what wrapt calls instead of the target."""

    def __init__(self, engine: Engine, requests: Requests, provider: Provider) -> None:
        self.engine = engine
        self.requests = requests
        self.provider = provider
        self.has_native = any(target.kind == "native_span" for target in provider.targets)

    def wrapper(self, kind: str) -> Callable[..., Any]:
        """The wrapper for a kind of target (`providers.spec.TargetKind`)."""
        return {
            "request": self.request,
            "arequest": self.arequest,
            "stream": self.stream,
            "astream": self.astream,
            "retry": self.retry,
            "native_span": self.native_span,
        }[kind]

    # ---- one exchange -----------------------------------------------------------------------------------------
    def request(self, wrapped: Wrapped, client: Any, args: Arguments, keywords: Keywords) -> Any:
        """Around `SyncAPIClient.request(cast_to, options, *, stream, stream_cls)`."""
        exchange = safely("open", self._open, client, args, keywords)
        if exchange is None:
            result = wrapped(*args, **keywords)
            return self._poll(result, args, keywords) if self.engine.parked else result
        active = exchange.active
        active.admit()
        exchange.apply()
        exchange.enter()
        try:
            result = wrapped(*exchange.args, **exchange.keywords)
        except BaseException as error:
            if not exchange.again(error):
                active.fail(error)
                raise
            try:
                result = wrapped(*exchange.args, **exchange.keywords)
            except BaseException as second:
                active.fail(second)
                raise
        finally:
            active.leave()
        exchange.returned(result)
        return result

    async def arequest(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Arguments, keywords: Keywords
    ) -> Any:
        """`request` for `AsyncAPIClient.request`."""
        exchange = safely("open", self._open, client, args, keywords)
        if exchange is None:
            result = await wrapped(*args, **keywords)
            return self._poll(result, args, keywords) if self.engine.parked else result
        active = exchange.active
        await active.aadmit()
        exchange.apply()
        exchange.enter()
        try:
            result = await wrapped(*exchange.args, **exchange.keywords)
        except BaseException as error:
            if not exchange.again(error):
                active.fail(error)
                raise
            try:
                result = await wrapped(*exchange.args, **exchange.keywords)
            except BaseException as second:
                active.fail(second)
                raise
        finally:
            active.leave()
        exchange.returned(result)
        return result

    def _open(self, client: Any, args: Arguments, keywords: Keywords) -> Exchange | None:
        options = options_of(args, keywords)
        endpoint = self.requests.endpoint(self.provider, options)
        if endpoint is None:
            return None
        call, body = self.requests.call(self.provider, endpoint, client, options)
        active = ActiveCall(self.engine, call, endpoint, body)
        exchange = Exchange(active, client, args, keywords)
        exchange.native = (
            self.has_native and self.engine.foreign != "own" and getattr(client, "_tracer", None) is not None
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
        return wrapped(*args, **keywords)

    def native_span(self, wrapped: Wrapped, client: Any, args: Arguments, keywords: Keywords) -> Any:
        """Around the function by which the SDK starts a span of its own for the call under way."""
        del client
        active = current.get()
        if active is None:
            return wrapped(*args, **keywords)
        if self.engine.foreign == "own":
            return None  # the SDK takes None for "no span"
        span = wrapped(*args, **keywords)
        if active.span is not None:
            return span  # a call inside the call, or others' span was there first
        if span is None or not span.is_recording():
            active.open_span()  # no span of theirs, or one that goes nowhere
            return span
        adopted = AdoptedSpan(span)
        active.adopt(adopted)
        return adopted


def parked_at(url: str, provider: Provider, parked: Mapping[str, ActiveCall]) -> ActiveCall | None:
    """The parked call that a request to `url` asks about ("/responses/resp_1", with or without "/cancel")."""
    path = url.partition("?")[0]
    for endpoint in provider.endpoints:
        if endpoint.poll is not None and endpoint.poll in path:
            return parked.get(path.rpartition(endpoint.poll)[2].partition("/")[0])
    return None
