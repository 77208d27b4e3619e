"""The floor: a wrapper as thin as one can be that still emits a span, a duration and the token counters."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import context
from opentelemetry.trace import SpanKind, set_span_in_context

from otel_tokens import conventions as c


class Floor:
    """Starts and ends one SDK span with the usual attributes, records the duration and the tokens; nothing else."""

    def __init__(self, tracer: Any, meter: Any) -> None:
        self.tracer = tracer
        self.duration = meter.create_histogram(
            "floor.duration", "s", explicit_bucket_boundaries_advisory=c.SECONDS_BUCKETS
        )
        names = ("input", "output", "cache_read", "cache_write", "reasoning")
        self.counters = [meter.create_counter(f"floor.{name}", "{token}") for name in names]

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
        span = self.tracer.start_span(
            "chat gpt-4o",
            kind=SpanKind.CLIENT,
            attributes={
                c.OPERATION: "chat",
                c.PROVIDER: "openai",
                c.REQUEST_MODEL: "gpt-4o",
                c.SERVER_ADDRESS: "api.openai.com",
                c.SERVER_PORT: 443,
                c.REQUEST_MAX_TOKENS: 500,
            },
        )
        return span, context.attach(set_span_in_context(span)), time.perf_counter()

    def _end(self, span: Any, started: float, result: Any) -> Any:
        # The numbers are constants: reading them is metering, and not the floor's.
        span.set_attributes(
            {
                c.RESPONSE_MODEL: "gpt-4o-2024-08-06",
                c.RESPONSE_ID: "chatcmpl-1",
                c.RESPONSE_FINISH_REASONS: ("stop",),
                c.SERVICE_TIER: "default",
                c.USAGE_INPUT: 1200,
                c.USAGE_OUTPUT: 80,
                c.USAGE_CACHE_READ: 1024,
                c.USAGE_CACHE_WRITE: 0,
                c.USAGE_REASONING: 0,
                c.USAGE_ORIGIN: "provider",
                c.COST_TOTAL: 0.0025,
                c.COST_CURRENCY: "USD",
                c.COST_SOURCE: "local",
                "otel_tokens.cost.input": 0.001,
                "otel_tokens.cost.cache_read": 0.001,
                "otel_tokens.cost.cache_write": 0.0,
                "otel_tokens.cost.output": 0.0005,
                "otel_tokens.cost.other": 0.0,
                c.PRICING_STATUS: "priced",
                c.PRICING_VERSION: "1",
                c.PRICING_RULE: "genai-prices openai/gpt-4o",
            }
        )
        labels = {
            c.OPERATION: "chat",
            c.PROVIDER: "openai",
            c.REQUEST_MODEL: "gpt-4o",
            c.RESPONSE_MODEL: "gpt-4o-2024-08-06",
            c.SERVER_ADDRESS: "api.openai.com",
            c.SERVER_PORT: 443,
        }
        self.duration.record(time.perf_counter() - started, labels)
        for counter, value in zip(self.counters, (1200, 80, 1024, 0, 0), strict=True):
            counter.add(value, labels)
        span.end()
        return result
