"""Records as spans, with the real SDK."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode

from otel_tokens import conventions as names
from otel_tokens.errors import BudgetExceededError
from otel_tokens.telemetry.spans import Spans, usage_attributes
from otel_tokens.values import Component, Cost, Usage


def finished(tracing, record, **options):
    provider, exporter = tracing
    spans = Spans(provider.get_tracer("otel_tokens"), **options)
    spans.finish(spans.start(record.call), record)
    (span,) = exporter.get_finished_spans()
    exporter.clear()
    return span


def test_a_priced_call(tracing, make_record):
    span = finished(tracing, make_record(service_tier="flex", tags={"session": "s1", "colour": "blue"}))
    assert span.name == "chat gpt-4o"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "server.address": "api.openai.com",
        "server.port": 443,
        "gen_ai.request.max_tokens": 100,
        "otel_tokens.session": "s1",
        "otel_tokens.tag.colour": "blue",
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 50,
        "gen_ai.usage.cache_read.input_tokens": 800,
        "gen_ai.usage.reasoning.output_tokens": 20,
        "otel_tokens.usage.origin": "provider",
        "otel_tokens.pricing.status": "priced",
        "otel_tokens.pricing.version": "2026-11-01",
        "otel_tokens.pricing.rule": "openai/gpt-4o",
        "otel_tokens.cost.total": 0.00105,
        "otel_tokens.cost.currency": "USD",
        "otel_tokens.cost.source": "local",
        "otel_tokens.cost.input": 0.0002,
        "otel_tokens.cost.cache_read": 0.0004,
        "otel_tokens.cost.cache_write": 0.0,
        "otel_tokens.cost.output": 0.00045,
        "otel_tokens.cost.other": 0.0,
        "otel_tokens.outcome": "ok",
        "otel_tokens.call.id": "c1",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "openai.response.service_tier": "flex",
    }


def test_a_sampler_sees_what_it_may_decide_by(make_record):
    seen = {}

    class Curious(Sampler):
        def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, **_):
            seen.update(attributes, name=name)
            return SamplingResult(Decision.DROP)

        def get_description(self):
            return "curious"

    spans = Spans(TracerProvider(Curious(), shutdown_on_exit=False).get_tracer("otel_tokens"))
    record = make_record(tags={"tenant": "acme"})
    span = spans.start(record.call)
    assert seen == {
        "name": "chat gpt-4o",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "server.address": "api.openai.com",
        "server.port": 443,
        "gen_ai.request.max_tokens": 100,
        "otel_tokens.tenant": "acme",
    }
    spans.finish(span, record)  # an unsampled span takes it all and keeps nothing


def test_zero_is_kept_when_said_and_absent_when_not(make_record):
    said = Usage(
        input=5, output=0, origin="provider", reported=frozenset({"input", "output", "cache_read", "cache_write"})
    )
    found = usage_attributes(make_record(usage=said))
    assert found[names.USAGE_OUTPUT] == 0
    assert found[names.USAGE_CACHE_READ] == 0
    assert found[names.USAGE_CACHE_WRITE] == 0
    assert names.USAGE_REASONING not in found
    assert names.USAGE_OUTPUT not in usage_attributes(
        make_record(usage=Usage(input=5, origin="provider", reported=frozenset({"input"})))
    )


def test_cache_writes_by_time_to_live_and_modalities(make_record):
    fields = {"cache_write": 200, "cache_write_5m": 50, "cache_write_1h": 150, "input_audio": 30, "output_audio": 4}
    usage = Usage(input=1100, output=50, origin="provider", reported=frozenset({"input", "output", *fields}), **fields)
    found = usage_attributes(make_record(usage=usage))
    assert found["otel_tokens.usage.cache_write_5m.input_tokens"] == 50
    assert found["otel_tokens.usage.cache_write_1h.input_tokens"] == 150
    assert "otel_tokens.usage.cache_write_30m.input_tokens" not in found
    assert found["gen_ai.usage.audio.input_tokens"] == 30
    assert found["gen_ai.usage.audio.output_tokens"] == 4
    assert names.USAGE_CACHE_CREATION_141 not in found
    for mode in ("1.41", "both"):
        old = usage_attributes(make_record(usage=usage), semconv=mode)
        assert old[names.USAGE_CACHE_CREATION_141] == old[names.USAGE_CACHE_WRITE] == 200


def test_an_estimate_never_stands_in_the_providers_names(estimated, partial, failed):
    found = usage_attributes(estimated)
    assert not [name for name in found if name.startswith("gen_ai.usage.")]
    assert found[names.USAGE_ORIGIN] == "estimated"
    assert found[names.USAGE_ESTIMATED_INPUT] == 30
    assert found[names.USAGE_ESTIMATED_OUTPUT] == 7
    assert found[names.USAGE_MISSING_REASON] == "stream_no_usage"

    found = usage_attributes(partial)
    assert found[names.USAGE_INPUT] == 1000
    assert found[names.USAGE_CACHE_READ] == 800
    assert names.USAGE_OUTPUT not in found
    assert found[names.USAGE_ESTIMATED_OUTPUT] == 9

    assert usage_attributes(failed) == {names.USAGE_ORIGIN: "missing", names.USAGE_MISSING_REASON: "error"}


def test_components_are_part_of_the_tokens_as_in_the_metrics_and_stated_apart(make_record):
    extra = Component("compaction", None, Usage(input=180_000, output=3500, cache_read=900, origin="provider"))
    found = usage_attributes(make_record(usage=Usage(input=1100, output=50, origin="provider", components=(extra,))))
    assert found[names.USAGE_INPUT] == 181_100
    assert found[names.USAGE_OUTPUT] == 3550
    assert found[names.USAGE_CACHE_READ] == 900
    assert found[names.USAGE_COMPONENTS_INPUT] == 180_000
    assert found[names.USAGE_COMPONENTS_OUTPUT] == 3500


def test_an_unknown_price_is_not_zero(tracing, make_record):
    span = finished(tracing, make_record(cost=Cost()), cost_aliases=("gen_ai.usage.cost",))
    assert span.attributes[names.PRICING_STATUS] == "unpriced"
    assert not [name for name in span.attributes if ".cost" in name]


@pytest.mark.parametrize(
    ("alias", "more"),
    [
        ("gen_ai.usage.cost", {}),
        ("operation.cost", {}),
        ("llm.cost.total", {}),
        (
            "gen_ai.usage.cost.amount",
            {"gen_ai.usage.cost.currency": "USD", "gen_ai.usage.cost.source": "local"},
        ),
    ],
)
def test_cost_aliases(tracing, make_record, alias, more):
    plain = finished(tracing, make_record())
    aliased = finished(tracing, make_record(), cost_aliases=(alias,))
    assert dict(aliased.attributes).items() - dict(plain.attributes).items() == {alias: 0.00105, **more}.items()


def test_what_the_provider_charges_wins_and_ours_is_kept(tracing, make_record):
    cost = Cost(total=Decimal("0.01"), status="priced", source="provider", local_total=Decimal("0.02"))
    span = finished(tracing, make_record(cost=cost))
    assert span.attributes[names.COST_TOTAL] == 0.01
    assert span.attributes[names.COST_SOURCE] == "provider"
    assert span.attributes[names.COST_LOCAL] == 0.02


def test_an_error_is_its_class_and_no_message(tracing, failed):
    provider, exporter = tracing
    spans = Spans(provider.get_tracer("otel_tokens"))
    span = spans.start(failed.call)
    spans.finish(span, failed, error=RuntimeError("prompt: my secret is 42"))
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "openai.RateLimitError"
    assert span.attributes[names.ERROR_TYPE] == "openai.RateLimitError"
    assert "secret" not in span.to_json()
    assert span.events == ()


def test_an_error_that_the_record_does_not_name(tracing, make_record):
    provider, exporter = tracing
    spans = Spans(provider.get_tracer("otel_tokens"))
    record = make_record(outcome="error")
    spans.finish(spans.start(record.call), record, error=ValueError("secret"))
    (span,) = exporter.get_finished_spans()
    assert span.attributes[names.ERROR_TYPE] == "ValueError"
    assert "secret" not in span.to_json()


def test_finish_without_end(tracing, make_record):
    provider, exporter = tracing
    spans = Spans(provider.get_tracer("otel_tokens"))
    record = make_record()
    span = spans.start(record.call)
    spans.finish(span, record, end=False)
    assert span.is_recording()
    assert not exporter.get_finished_spans()
    span.end()


def test_end_attributes_are_set_at_once(tracing, make_record):
    provider, _ = tracing
    spans = Spans(provider.get_tracer("otel_tokens"))
    record = make_record()
    span = spans.start(record.call)
    calls = []
    span.set_attributes = lambda found: calls.append(found)
    span.set_attribute = lambda *one: calls.append(one)
    spans.finish(span, record)
    assert len(calls) == 1


def test_an_unsampled_span_is_left_alone(make_record):
    spans = Spans(TracerProvider(ALWAYS_OFF, shutdown_on_exit=False).get_tracer("otel_tokens"))
    record = make_record()
    span = spans.start(record.call)
    span.set_attributes = None  # would fail if it were called
    spans.finish(span, record)
    spans.annotate(span, record)


def test_annotate_fills_the_gaps_of_a_foreign_span(tracing, make_record):
    provider, exporter = tracing
    spans = Spans(provider.get_tracer("otel_tokens"))
    record = make_record(tags={"session": "s1"})
    foreign = provider.get_tracer("somebody.else").start_span(
        "chat gpt-4o", attributes={"gen_ai.usage.input_tokens": 999, "gen_ai.response.id": "theirs"}
    )
    spans.annotate(foreign, record)
    assert foreign.is_recording()
    foreign.end()
    spans.annotate(foreign, record)  # too late: no warning, nothing
    (span,) = exporter.get_finished_spans()
    assert span.attributes["gen_ai.usage.input_tokens"] == 999
    assert span.attributes["gen_ai.response.id"] == "theirs"
    assert span.attributes["gen_ai.usage.output_tokens"] == 50
    assert span.attributes["otel_tokens.cost.total"] == 0.00105
    assert span.attributes["otel_tokens.session"] == "s1"


def test_attach_makes_children_nest_and_ids_are_hex(tracing, make_record):
    provider, exporter = tracing
    spans = Spans(provider.get_tracer("otel_tokens"))
    record = make_record()
    span = spans.start(record.call)
    before = spans.context()
    spans.attach(span)
    provider.get_tracer("http").start_span("POST").end()
    spans.restore(before)
    assert trace.get_current_span() is trace.INVALID_SPAN
    spans.finish(span, record)
    child, parent = exporter.get_finished_spans()
    assert child.parent.span_id == parent.context.span_id
    assert spans.ids(span) == (f"{parent.context.trace_id:032x}", f"{parent.context.span_id:016x}")
    assert spans.ids(trace.INVALID_SPAN) == (None, None)


def test_a_refusal_is_an_event_on_the_current_span(tracing, make_record):
    provider, exporter = tracing
    spans = Spans(provider.get_tracer("otel_tokens"))
    error = BudgetExceededError("no", budget="daily", scope="tenant=a", limit=Decimal(10), used=Decimal(12))
    spans.refused(error, make_record().call)  # no current span: nothing happens
    with provider.get_tracer("app").start_as_current_span("request"):
        spans.refused(error, make_record().call)
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert event.name == "otel_tokens.budget.exceeded"
    assert dict(event.attributes) == {
        "otel_tokens.budget.name": "daily",
        "otel_tokens.budget.scope": "tenant=a",
        "otel_tokens.budget.decision": "deny",
        "otel_tokens.budget.usage_ratio": 1.2,
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
    }


def test_streams_retries_and_decisions(tracing, make_record):
    record = make_record(stream=True, first_chunk=0.1, chunks=12, attempts=3, decision="warn", speed="fast", geo="us")
    span = finished(tracing, record)
    assert span.attributes["gen_ai.request.stream"] is True
    assert span.attributes["gen_ai.response.time_to_first_chunk"] == 0.1
    assert span.attributes["otel_tokens.response.chunks"] == 12
    assert span.attributes["otel_tokens.attempts"] == 3
    assert span.attributes["http.request.resend_count"] == 2
    assert span.attributes["otel_tokens.budget.decision"] == "warn"
    assert span.attributes["otel_tokens.response.speed"] == "fast"
    assert span.attributes["otel_tokens.response.geo"] == "us"


def test_a_tier_has_openais_name_at_openai_only(tracing, make_record):
    span = finished(tracing, make_record(provider="anthropic", service_tier="priority"))
    assert span.attributes["otel_tokens.response.service_tier"] == "priority"
    assert "openai.response.service_tier" not in span.attributes


def test_a_call_without_a_model(tracing, make_record):
    record = make_record(response_model=None)
    span = finished(tracing, replace(record, call=replace(record.call, model="", server_address=None)))
    assert span.name == "chat"
    assert "gen_ai.request.model" not in span.attributes
    assert "server.port" not in span.attributes
