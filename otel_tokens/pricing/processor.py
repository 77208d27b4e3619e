"""A span processor that prices the LLM spans of other instrumentations: the OpenTelemetry SDK's side of pricing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_tokens import conventions as names
from otel_tokens.pricing.catalog import Catalog, canonical
from otel_tokens.pricing.price import NO_USAGE, Pricer
from otel_tokens.safely import report_fault, safely
from otel_tokens.values import COST_PARTS, TOKEN_FIELDS, Call, Cost, Record, Usage

_MAX_PARENTS = 10_000

# Instrumentations name these as the provider. The provider is then the maker of the model.
_FRAMEWORKS = frozenset(
    {
        "langchain",
        "langgraph",
        "llamaindex",
        "llama_index",
        "litellm",
        "openai_agents",
        "crewai",
        "haystack",
        "pydantic_ai",
        "autogen",
        "agno",
        "dspy",
        "_other",
        "unknown",
    }
)

Attributes = Mapping[str, Any]


class PricingProcessor(SpanProcessor):
    """Adds `otel_tokens.cost.*` to spans of LLM calls that other instrumentations made.

    Add it to the application's tracer provider, before its exporters. It prices inference and embedding spans that
    state a model and tokens, in OpenTelemetry's names of all versions, OpenLLMetry's, OpenLIT's or OpenInference's,
    and leaves alone what has a cost already, agent and tool spans, and a span around one that was priced, whose
    tokens it repeats. `pricer` defaults to one with the shipped catalogue. `on_record` receives a `Record` of each
    priced span (its `call.id` is the span's), so that its cost can be counted as well: give it only what does not
    see the same calls already.

    The SDK has no public way to change a span that ends; this uses its `_on_ending` (from 1.40 on) or `on_end`,
    and puts a merged copy of the attributes in place.
    """

    def __init__(self, pricer: Pricer | None = None, *, on_record: Callable[[Record], object] | None = None) -> None:
        self._pricer = pricer or Pricer(Catalog())
        self._on_record = on_record
        # (trace, span) ids of spans around a priced one. Reentrant: a span may be ended by a finaliser.
        self._around: dict[tuple[int, int], None] = {}
        self._lock = threading.RLock()
        self._ending_called = False
        self._pricer.catalog.warm()

    def _on_ending(self, span: Any) -> None:
        self._ending_called = True
        safely("pricing a span", self._ending, span)

    def on_end(self, span: ReadableSpan) -> None:
        """Price a span on an SDK without `_on_ending`."""
        if not self._ending_called:
            safely("pricing a span", self._ending, span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Return True: the processor holds no spans."""
        return True

    def _ending(self, span: Any) -> None:
        attributes: Attributes = span.attributes or {}
        context, parent = span.context, span.parent
        if context is None:
            return
        key = (context.trace_id, context.span_id)
        with self._lock:
            encloses = key in self._around
            self._around.pop(key, None)
        record = None
        if names.PRICING_STATUS not in attributes and not encloses:
            record = self._record(span, attributes)
        if record is not None:
            _put(span, attributes, cost_attributes(record.cost))
        counted = names.COST_TOTAL in attributes or (record is not None and record.cost.total is not None)
        if (counted or encloses) and parent is not None and not parent.is_remote:
            self._mark((parent.trace_id, parent.span_id))
        if record is not None and self._on_record is not None:
            self._on_record(record)

    def _mark(self, key: tuple[int, int]) -> None:
        """Note that this span encloses a priced one. Spans that never end are forgotten, oldest first."""
        with self._lock:
            self._around[key] = None
            if len(self._around) > _MAX_PARENTS:
                del self._around[next(iter(self._around))]

    def _record(self, span: Any, attributes: Attributes) -> Record | None:
        """The span as a call, priced; None when it is none, or states no tokens."""
        facts = read_call(attributes)
        if facts is None:
            return None
        usage = read_usage(attributes, facts["provider"], _scope(span))
        if usage is None:
            return None
        started = (span.start_time or 0) / 1e9
        address = attributes.get(names.SERVER_ADDRESS)
        cost = self._pricer(
            facts["provider"] or None,
            facts["model"],
            usage,
            response_model=facts["response_model"] or None,
            tier=facts["tier"] or None,
            speed=facts["speed"] or None,
            geo=facts["geo"] or None,
            address=address if isinstance(address, str) else None,
            at=started,
        )
        if cost.rule == NO_USAGE:
            return None
        return _as_record(span, facts, usage, cost, started)


def cost_attributes(cost: Cost) -> dict[str, Any]:
    """The attributes of a cost, amounts as floats in USD. Without a price only the status: unknown is not 0."""
    found: dict[str, Any] = {names.PRICING_STATUS: cost.status, names.PRICING_VERSION: cost.version}
    if cost.total is None:
        return found
    found[names.COST_TOTAL] = float(cost.total)
    found[names.COST_CURRENCY] = cost.currency
    found[names.COST_SOURCE] = cost.source
    found[names.PRICING_RULE] = cost.rule
    for part in COST_PARTS:
        value = getattr(cost, part)
        if value is not None:
            found[names.COST_PART_PREFIX + part] = float(value)
    return found


def read_call(attributes: Attributes) -> dict[str, str] | None:
    """provider, operation, model, response_model, tier, speed and geo of an LLM call's span; None for other spans."""
    facts = {
        name: _text(attributes, name)
        for name in ("provider", "operation", "model", "response_model", "tier", "speed", "geo")
    }
    operation = names.FOREIGN_OPERATIONS.get(facts["operation"].lower())
    facts["model"] = facts["model"] or facts["response_model"]
    if operation is None or not facts["model"]:
        return None
    facts["operation"] = operation
    provider = canonical(facts["provider"])
    facts["provider"] = "" if provider in _FRAMEWORKS else provider
    return facts


_READ = tuple(name for name in TOKEN_FIELDS if name in names.FOREIGN_NAMES)


def read_usage(attributes: Attributes, provider: str, scope: str) -> Usage | None:
    """The tokens that a span states, in our convention (input and output are totals); None when it states none.

    Anthropic's own input count leaves cached tokens out, and so did some instrumentations, against the conventions:
    OpenLIT always, others visibly, where the parts exceed the total.
    """
    values: dict[str, Any] = {name: count for name in _READ if (count := _count(attributes, name)) is not None}
    if "input" not in values and "output" not in values:
        return None
    cached = values.get("cache_read", 0) + values.get("cache_write", 0)
    if cached > values.get("input", 0) or (cached and provider == "anthropic" and scope.startswith("openlit")):
        values["input"] = values.get("input", 0) + cached
    origin = attributes.get(names.USAGE_ORIGIN)
    known = origin if origin in ("provider", "partial", "estimated") else "provider"
    return Usage(**values, origin=known, reported=frozenset(values))


def _text(attributes: Attributes, what: str) -> str:
    for name in names.FOREIGN_NAMES[what]:
        value = attributes.get(name)
        if isinstance(value, str) and value:
            return value
    return ""


def _count(attributes: Attributes, what: str) -> int | None:
    for name in names.FOREIGN_NAMES[what]:
        value = attributes.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10**12:
            return int(value)
    return None


def _scope(span: Any) -> str:
    scope = span.instrumentation_scope
    return str(scope.name) if scope is not None else ""


def _put(span: Any, attributes: Attributes, added: dict[str, Any]) -> None:
    """Set attributes on a span that is ending or has ended."""
    if getattr(span, "is_recording", bool)():
        span.set_attributes(added)
        return
    old: Any = getattr(span, "_attributes", None)
    if not isinstance(old, BoundedAttributes):
        report_fault("pricing a span", TypeError("this version of the OpenTelemetry SDK keeps attributes elsewhere"))
        return
    # A copy, not a change in place: the attributes of an ended span are immutable.
    merged = BoundedAttributes(attributes={**attributes, **added}, immutable=True)
    merged.dropped = old.dropped
    span._attributes = merged


def _as_record(span: Any, facts: Mapping[str, str], usage: Usage, cost: Cost, started: float) -> Record:
    trace_id, span_id = f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"
    call = Call(
        id=f"span-{trace_id}-{span_id}",
        provider=facts["provider"],
        endpoint="foreign",
        operation=facts["operation"],
        model=facts["model"],
        started=started,
    )
    status = getattr(span.status, "status_code", None)
    return Record(
        call=call,
        usage=usage,
        cost=cost,
        outcome="error" if getattr(status, "name", "") == "ERROR" else "ok",
        duration=max((span.end_time or span.start_time or 0) - (span.start_time or 0), 0) / 1e9,
        response_model=facts["response_model"] or None,
        service_tier=facts["tier"] or None,
        speed=facts["speed"] or None,
        geo=facts["geo"] or None,
        trace_id=trace_id,
        span_id=span_id,
    )
