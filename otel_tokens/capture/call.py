"""The drivers: one billed call around an SDK's request function, sync and async, from one story."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from otel_tokens.capture.foreign import AdoptedSpan, foreign_span
from otel_tokens.capture.request import Options, Requests, ask_for_usage, rejects_usage_option
from otel_tokens.capture.stream import ametered, attach, metered
from otel_tokens.lifecycle import ActiveCall, Engine, current
from otel_tokens.providers.spec import Provider
from otel_tokens.safely import report_fault, safely
from otel_tokens.usage.read import get
from otel_tokens.values import Lease

Wrapped = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]


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
            result = wrapped(*args, **keywords)
        except BaseException as error:
            if not exchange.again(error):
                active.fail(error)
                raise
            try:
                result = wrapped(*args, **keywords)
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
            result = await wrapped(*args, **keywords)
        except BaseException as error:
            if not exchange.again(error):
                active.fail(error)
                raise
            try:
                result = await wrapped(*args, **keywords)
            except BaseException as second:
                active.fail(second)
                raise
        finally:
            active.leave()
        exchange.returned(result)
        return result

    def _open(self, client: Any, args: Arguments, keywords: Keywords) -> Exchange | None:
        options: Options = keywords["options"] if "options" in keywords else args[1]
        endpoint = self.requests.endpoint(self.provider, options)
        if endpoint is None:
            return None
        call, body = self.requests.call(self.provider, endpoint, client, options)
        active = ActiveCall(self.engine, call, endpoint, body)
        exchange = Exchange(active, options, streamed=bool(keywords.get("stream")))
        exchange.client = client
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
        options: Options = keywords["options"] if "options" in keywords else args[1]
        active = parked_at(options.url, self.provider, self.engine.parked)
        if active is not None:
            safely("poll", self._polled, active, result, streamed=bool(keywords.get("stream")))
        return result

    def _polled(self, active: ActiveCall, result: Any, *, streamed: bool) -> None:
        response = _response_of(result)
        if response is None:
            active.polled(result)
        elif streamed or not response.is_closed:
            active.unpark()
            attach(response, active)
        else:
            active.polled(_json(response))

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


class Exchange:
    """One call's request as it goes out and its result as it comes back."""

    __slots__ = ("_undo", "active", "client", "native", "options", "streamed")

    def __init__(self, active: ActiveCall, options: Options, *, streamed: bool) -> None:
        self.active = active
        self.options = options
        self.streamed = streamed
        self.client: Any = None
        self.native = False
        self._undo: Callable[[], None] | None = None

    def ask_for_usage(self, body: Mapping[str, Any]) -> None:
        """Ask for usage on a stream, unless this host is known to refuse the option."""
        active = self.active
        call = active.call
        if (call.server_address, call.server_port) not in active.engine.no_usage_option:
            self._undo = ask_for_usage(self.options, body)
            active.hide_usage = self._undo is not None

    def enter(self) -> None:
        """Make the call current, with the span it will have."""
        found = safely("foreign span", foreign_span, self.active.engine.foreign == "own")
        self.active.enter(found, native=self.native)

    def apply(self) -> None:
        """Put what the guard decided (another model, a smaller bound, a time cap) into the request."""
        lease = self.active.lease
        if lease is not None and (lease.model or lease.max_output or lease.timeout):
            safely("apply lease", self._apply, lease)

    def _apply(self, lease: Lease) -> None:
        active, options = self.active, self.options
        changed: dict[str, Any] = {}
        if lease.model:
            changed["model"] = lease.model
        if lease.max_output:
            names = active.endpoint.max_output
            body = active.body or {}
            changed[next((name for name in names if name in body), names[0])] = lease.max_output
        if changed:
            place = "extra_json" if options.extra_json and set(changed) & set(options.extra_json) else "json_data"
            setattr(options, place, {**getattr(options, place), **changed})
        if lease.timeout is not None:
            given = _seconds(getattr(options, "timeout", None))
            if given is None:
                given = _seconds(getattr(self.client, "timeout", None))
            if given is None or given > lease.timeout:
                options.timeout = lease.timeout

    def again(self, error: BaseException) -> bool:
        """Whether to send once more because the host refused the option we had added; remembers the host."""
        if self._undo is None or not safely("rejection", rejects_usage_option, error):
            return False
        active, call = self.active, self.active.call
        self._undo()
        self._undo = None
        active.hide_usage = False
        active.attempts += 1
        active.engine.no_usage_option.add((call.server_address, call.server_port))
        return True

    def returned(self, result: Any) -> None:
        """The SDK has answered: take a whole response now, or follow the body until it ends."""
        try:
            self._returned(result)
        except Exception as error:  # the wall: a strange result still ends the call
            self.active.end("ok")
            report_fault("returned", error)

    def _returned(self, result: Any) -> None:
        active = self.active
        if active.ended:
            return
        response = _response_of(result)
        if response is None:
            self._whole(result)
        elif not response.is_closed or self.streamed:
            # A closed response of a stream holds its events in memory: they are still to be parsed.
            active.engine.worker.ensure()
            attach(response, active)
        else:
            self._whole(_json(response))

    def _whole(self, payload: Any) -> None:
        active = self.active
        active.see(payload)
        background = active.endpoint.background
        if background is None or not (active.body or {}).get(background) or not active.park():
            active.end("ok")


def _seconds(timeout: Any) -> float | None:
    """A timeout in seconds: a number, or an HTTP client's Timeout, whose read timeout counts; None if it is neither."""
    if isinstance(timeout, (int, float)):
        return float(timeout)
    read = getattr(timeout, "read", None)
    return float(read) if isinstance(read, (int, float)) else None


def parked_at(url: str, provider: Provider, parked: Mapping[str, ActiveCall]) -> ActiveCall | None:
    """The parked call that a request to `url` asks about ("/responses/resp_1", with or without "/cancel")."""
    path = url.partition("?")[0]
    for endpoint in provider.endpoints:
        if endpoint.poll is not None and endpoint.poll in path:
            return parked.get(path.rpartition(endpoint.poll)[2].partition("/")[0])
    return None


def _response_of(result: Any) -> Any:
    """The HTTP response behind a raw response, a stream or a binary result; None for a parsed model.

    Read from the objects' own dicts: asking a pydantic model for what it lacks takes microseconds.
    """
    if get(result, "extensions") is not None and get(result, "_request") is not None:
        return result
    found = get(result, "http_response")
    if found is None:
        found = get(result, "response")
    return found if get(found, "extensions") is not None and hasattr(found, "is_closed") else None


def _json(response: Any) -> Any:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None
