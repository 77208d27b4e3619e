"""Records as spans: what is known before the call at the start, everything else in one go at the end.

No message content and no exception message is written, only the class of an exception.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from otel_tokens import conventions as names
from otel_tokens.errors import BudgetExceededError
from otel_tokens.safely import report_fault
from otel_tokens.telemetry.forks import repair_tracer
from otel_tokens.telemetry.writing import set_attributes
from otel_tokens.values import COST_PARTS, TOKEN_FIELDS, Call, Record, Reservation, Usage

Attributes = dict[str, Any]

_ZERO_MATTERS = (
    ("cache_read", names.USAGE_CACHE_READ),
    ("cache_write", names.USAGE_CACHE_WRITE),
    ("reasoning", names.USAGE_REASONING),
)
_IN_PARTIAL = frozenset({"reasoning"} | {name for name in names.USAGE_MODALITY if name.startswith("output_")})
"""Parts of an output that the provider never finished counting."""
_AMOUNT = names.COST_ALIASES_EXCLUSIVE[1]
"""The alias that has its currency and source beside it."""
_COST_NAMES = tuple((part, names.COST_PART_PREFIX + part) for part in COST_PARTS)


def usage_attributes(record: Record, *, semconv: str = "latest") -> Attributes:
    """The usage part of a span: `gen_ai.usage.*` as the provider reported it, and ours beside it.

    What the provider did not say is absent, not 0. Estimates have names of their own and never stand in
    `gen_ai.usage.*`, which backends add up.
    """
    usage = record.usage
    origin = usage.origin
    found: Attributes = {names.USAGE_ORIGIN: origin}
    if origin == "missing":
        if record.missing_reason:
            found[names.USAGE_MISSING_REASON] = record.missing_reason
        return found
    if origin == "estimated":
        found[names.USAGE_ESTIMATED_INPUT] = usage.input
        found[names.USAGE_ESTIMATED_OUTPUT] = usage.output
    else:
        _reported(usage, found)
        if origin == "partial":
            found[names.USAGE_ESTIMATED_OUTPUT] = usage.output
        if semconv != "latest" and names.USAGE_CACHE_WRITE in found:
            found[names.USAGE_CACHE_CREATION_141] = found[names.USAGE_CACHE_WRITE]
    if record.missing_reason:
        found[names.USAGE_MISSING_REASON] = record.missing_reason
    if usage.flags:
        found[names.USAGE_FLAGS] = usage.flags
    return found


def _whole(usage: Usage) -> Usage:
    """The call's tokens and those of its components, as the metrics count them."""
    parts = (usage, *(part.usage for part in usage.components))
    return replace(usage, **{name: sum(getattr(part, name) for part in parts) for name in TOKEN_FIELDS})


def _reported(usage: Usage, found: Attributes) -> None:
    if usage.components:
        found[names.USAGE_COMPONENTS_INPUT] = sum(part.usage.input for part in usage.components)
        found[names.USAGE_COMPONENTS_OUTPUT] = sum(part.usage.output for part in usage.components)
        usage = _whole(usage)
    said = usage.reported
    partial = usage.origin == "partial"
    if "input" in said or usage.input:
        found[names.USAGE_INPUT] = usage.input
    if not partial and ("output" in said or usage.output):
        found[names.USAGE_OUTPUT] = usage.output
    for field, name in _ZERO_MATTERS:
        value: int = getattr(usage, field)
        if (value or field in said) and not (partial and field in _IN_PARTIAL):
            found[name] = value
    if usage.cache_write:
        for field, name in names.USAGE_TTL.items():
            value = getattr(usage, field)
            if value or field in said:
                found[name] = value
    for field in said & names.USAGE_MODALITY.keys():
        if not (partial and field in _IN_PARTIAL):
            found[names.USAGE_MODALITY[field]] = getattr(usage, field)
    if usage.web_searches:
        found[names.USAGE_WEB_SEARCHES] = usage.web_searches
    if usage.web_fetches:
        found[names.USAGE_WEB_FETCHES] = usage.web_fetches


def cost_attributes(record: Record, aliases: tuple[str, ...] = ()) -> Attributes:
    """The money part of a span. Without a known price only the status: an unknown cost is not 0."""
    cost = record.cost
    found: Attributes = {names.PRICING_STATUS: cost.status}
    if cost.version:
        found[names.PRICING_VERSION] = cost.version
    if cost.total is None:
        return found
    total = float(cost.total)
    found[names.COST_TOTAL] = total
    found[names.COST_CURRENCY] = cost.currency
    found[names.COST_SOURCE] = cost.source
    if cost.rule:
        found[names.PRICING_RULE] = cost.rule
    for part, name in _COST_NAMES:
        value = getattr(cost, part)
        if value is not None:
            found[name] = float(value)
    if cost.local_total is not None and cost.source == "provider":
        found[names.COST_LOCAL] = float(cost.local_total)
    for alias in aliases:
        found[alias] = total
        if alias == _AMOUNT:
            found[names.COST_ALIAS_CURRENCY] = cost.currency
            found[names.COST_ALIAS_SOURCE] = cost.source
    return found


class Spans:
    """Spans of calls. `cost_aliases` are further attribute names for the cost (`conventions.COST_ALIASES`)."""

    def __init__(self, tracer: Tracer, *, semconv: str = "latest", cost_aliases: tuple[str, ...] = ()) -> None:
        self._tracer = tracer
        _tracers.add(tracer)
        self._semconv = semconv
        self._aliases = tuple(cost_aliases)

    def start(self, call: Call, context: Context | None = None, *, started: float | None = None) -> Span:
        """A CLIENT span `{operation} {model}`, started now or at `started` (unix seconds); what samplers may want is
        on it from the start."""
        attributes: Attributes = {names.OPERATION: call.operation, names.PROVIDER: call.provider}
        name = call.operation
        if call.model:
            attributes[names.REQUEST_MODEL] = call.model
            name = f"{name} {call.model}"
        if call.server_address:
            attributes[names.SERVER_ADDRESS] = call.server_address
            if call.server_port:
                attributes[names.SERVER_PORT] = call.server_port
        if call.stream:
            attributes[names.REQUEST_STREAM] = True
        if call.max_output:
            attributes[names.REQUEST_MAX_TOKENS] = call.max_output
        if call.attributes:
            attributes.update(call.attributes)
        for tag, value in call.tags.items():
            attributes[names.tag_attribute(tag)] = value
        # Errors are written by finish(), without the exception's message.
        return self._tracer.start_span(
            name,
            context,
            SpanKind.CLIENT,
            attributes,
            start_time=None if started is None else int(started * 1e9),
            record_exception=False,
            set_status_on_exception=False,
        )

    def late(self, call: Call, beside: Span | None = None) -> Span:
        """A span from the start of a call that ends now and has none to write on: that of others (`beside`, which
        becomes its parent) has ended, or never came."""
        context = None if beside is None else trace.set_span_in_context(beside)
        return self.start(call, context, started=call.started)

    def finish(
        self,
        span: Span,
        record: Record,
        *,
        end: bool = True,
        error: BaseException | None = None,
        lease: Reservation | None = None,
    ) -> None:
        """Write what `record` says on `span`; end it unless told not to. A span that nobody records costs nothing."""
        if span.is_recording():
            found = self._facts(record, lease)
            failed = record.error_type
            if failed is None and error is not None:
                failed = type(error).__qualname__
            if failed is not None:
                found[names.ERROR_TYPE] = failed
            set_attributes(span, found)
            if failed is not None:
                # The class only: an exception's message may quote the conversation.
                span.set_status(Status(StatusCode.ERROR, failed))
        if end:
            span.end()

    def annotate(self, span: Span, record: Record, *, lease: Reservation | None = None) -> None:
        """Add ours to another instrumentation's open span, and the `gen_ai.usage.*` that it lacks."""
        if not span.is_recording():
            return
        there: Mapping[str, Any] = getattr(span, "attributes", None) or {}
        found = {name: value for name, value in self._facts(record, lease).items() if name not in there}
        for tag, value in record.tags.items():
            found[names.tag_attribute(tag)] = value
        set_attributes(span, found)

    def _facts(self, record: Record, lease: Reservation | None) -> Attributes:
        found = usage_attributes(record, semconv=self._semconv)
        found.update(cost_attributes(record, self._aliases))
        found[names.OUTCOME] = record.outcome
        found[names.CALL_ID] = record.call.id
        if record.response_model:
            found[names.RESPONSE_MODEL] = record.response_model
        if record.response_id:
            found[names.RESPONSE_ID] = record.response_id
        if record.finish_reasons:
            found[names.RESPONSE_FINISH_REASONS] = record.finish_reasons
        if record.service_tier:
            openai = record.call.provider in names.OPENAI_TIERS
            found[names.SERVICE_TIER if openai else names.RESPONSE_TIER] = record.service_tier
        if record.speed:
            found[names.RESPONSE_SPEED] = record.speed
        if record.geo:
            found[names.RESPONSE_GEO] = record.geo
        if record.first_chunk is not None:
            found[names.RESPONSE_FIRST_CHUNK] = record.first_chunk
            found[names.RESPONSE_CHUNKS] = record.chunks
        if record.attempts > 1:
            found[names.RESEND_COUNT] = record.attempts - 1
            found[names.ATTEMPTS] = record.attempts
        if record.decision:
            found[names.BUDGET_DECISION] = record.decision
        fullest = None if lease is None else lease.fullest()
        if fullest is not None:
            found[names.BUDGET_NAME], found[names.BUDGET_RATIO] = fullest
        return found

    def context(self) -> Context:
        """The current context."""
        return context_api.get_current()

    def attach(self, span: Span) -> None:
        """Make `span` current. `restore` what `context()` was before, in the same context of Python's."""
        context_api.attach(trace.set_span_in_context(span))

    def restore(self, context: Context) -> None:
        """Make `context` current again.

        Without a token: an exception of a signal handler may lose it between `attach` and its assignment.
        """
        context_api.attach(context)

    def ids(self, span: Span) -> tuple[str | None, str | None]:
        """Trace id and span id in hex, (None, None) without a valid span."""
        found = span.get_span_context()
        if not found.is_valid:
            return None, None
        return f"{found.trace_id:032x}", f"{found.span_id:016x}"

    def refused(self, error: BudgetExceededError, call: Call) -> None:
        """Note on the current span that a call was refused. It has no span of its own: nothing was sent."""
        attributes: Attributes = {
            names.BUDGET_NAME: error.budget,
            names.BUDGET_SCOPE: error.scope,
            names.BUDGET_DECISION: "deny",
            names.PROVIDER: call.provider,
            names.REQUEST_MODEL: call.model,
        }
        if error.limit and error.used is not None:
            attributes[names.BUDGET_RATIO] = float(error.used / error.limit)
        self.event(names.BUDGET_EXCEEDED_EVENT, attributes)

    def event(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Add an event to the current span, if somebody records it."""
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(name, attributes)


_tracers: weakref.WeakSet[Tracer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for tracer in list(_tracers):
        try:
            repair_tracer(tracer)
        except Exception as fault:  # private names of the SDK have changed: the child runs on without the repair
            report_fault("spans after fork", fault)


os.register_at_fork(after_in_child=_after_fork_in_child)
