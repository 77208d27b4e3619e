"""The floor: a wrapper as thin as one can be that still emits a span, a duration and the token counters."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from opentelemetry import context
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, set_span_in_context

from otel_tokens import conventions as c


class Model(NamedTuple):
    """What a span of this library looks like: its name, and its attributes at the start and those that come later."""

    name: str
    first: dict[str, Any]
    later: dict[str, Any]


class Watch(SpanProcessor):
    """Keeps what the last span was like."""

    seen: Model

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Take the first attributes."""
        self._first = dict(span.attributes)

    def on_end(self, span: Any) -> None:
        """Take the others."""
        later = {name: value for name, value in span.attributes.items() if name not in self._first}
        self.seen = Model(span.name, self._first, later)


LABELS = (c.OPERATION, c.PROVIDER, c.REQUEST_MODEL, c.RESPONSE_MODEL, c.SERVER_ADDRESS, c.SERVER_PORT)
TOKENS = (c.USAGE_INPUT, c.USAGE_OUTPUT, c.USAGE_CACHE_READ, c.USAGE_CACHE_WRITE, c.USAGE_REASONING)


class Floor:
    """Starts and ends one SDK span with the same attributes, records the duration and the tokens; nothing else.

    The numbers are constants, those of `model`: reading them is metering, and not the floor's.
    """

    def __init__(self, tracer: Any, meter: Any, model: Model) -> None:
        self.tracer = tracer
        self.duration = meter.create_histogram(
            "floor.duration", "s", explicit_bucket_boundaries_advisory=c.SECONDS_BUCKETS
        )
        self.name, self.first, self.later = model
        every = model.first | model.later
        self.labels = {name: every[name] for name in LABELS}
        self.counters = [(meter.create_counter(name, "{token}"), every.get(name, 0)) for name in TOKENS]

    def around(self, wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
        """Around the sync request function."""
        del instance
        span, token, started = self._begin()
        try:
            result = wrapped(*args, **keywords)
        finally:
            context.detach(token)
        return self._end(span, started, result)

    async def aaround(self, wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
        """Around the async request function."""
        del instance
        span, token, started = self._begin()
        try:
            result = await wrapped(*args, **keywords)
        finally:
            context.detach(token)
        return self._end(span, started, result)

    def _begin(self) -> tuple[Any, Any, float]:
        span = self.tracer.start_span(self.name, kind=SpanKind.CLIENT, attributes=dict(self.first))
        return span, context.attach(set_span_in_context(span)), time.perf_counter()

    def _end(self, span: Any, started: float, result: Any) -> Any:
        span.set_attributes(dict(self.later))
        labels = dict(self.labels)
        self.duration.record(time.perf_counter() - started, labels)
        for counter, value in self.counters:
            counter.add(value, labels)
        span.end()
        return result
