"""Spans of other instrumentations get a cost: the real SDK, its processors and exporters."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_tokens.pricing import processor as module
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import Pricer
from otel_tokens.pricing.processor import PricingProcessor
from otel_tokens.values import Record

COST = "otel_tokens.cost."
OTEL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 50,
}
STARTED = 1_795_176_000 * 10**9


class Sdk:
    """A tracer provider of the application's, our processor added to it before or after its exporter."""

    def __init__(self, *, last: bool = False, batched: bool = False) -> None:
        self.records: list[Record] = []
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        processors: list[SpanProcessor] = [
            PricingProcessor(on_record=self.records.append),
            (BatchSpanProcessor if batched else SimpleSpanProcessor)(self.exporter),
        ]
        for processor in reversed(processors) if last else processors:
            self.provider.add_span_processor(processor)

    def start(self, attributes: dict[str, Any], parent: trace.Span | None = None, scope: str = "theirs") -> trace.Span:
        context = trace.set_span_in_context(parent) if parent is not None else None
        tracer = self.provider.get_tracer(scope)
        return tracer.start_span("a span", context, attributes=attributes, start_time=STARTED)

    def ended(self, attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The attributes with which a span of these attributes is exported."""
        self.start(attributes, **more).end()
        return dict(self.exporter.get_finished_spans()[-1].attributes or {})


@pytest.fixture(params=[False, True], ids=["added first", "added last"])
def sdk(request: pytest.FixtureRequest) -> Iterator[Sdk]:
    sdk = Sdk(last=request.param)
    yield sdk
    sdk.provider.shutdown()


def test_the_server_address_gives_the_place(sdk: Sdk) -> None:
    span = {**OTEL, "gen_ai.request.model": "gpt-6-sol", "gen_ai.response.model": "gpt-6-sol"}
    plain = sdk.ended(span)[COST + "total"]
    assert sdk.ended({**span, "server.address": "eu.api.openai.com"})[COST + "total"] == pytest.approx(plain * 1.1)


def test_a_span_gets_its_cost(sdk: Sdk) -> None:
    found = sdk.ended(OTEL | {"gen_ai.usage.cache_read.input_tokens": 800})
    ours = {key: value for key, value in found.items() if key.startswith("otel_tokens.")}
    assert ours == {
        COST + "total": 0.002,
        COST + "input": 0.0005,
        COST + "cache_read": 0.001,
        COST + "cache_write": 0.0,
        COST + "output": 0.0005,
        COST + "other": 0.0,
        COST + "currency": "USD",
        COST + "source": "local",
        "otel_tokens.pricing.status": "priced",
        "otel_tokens.pricing.version": Catalog().version,
        "otel_tokens.pricing.rule": "genai-prices openai/gpt-4o",
    }
    assert {key: found[key] for key in OTEL} == OTEL


@pytest.mark.parametrize(
    ("attributes", "total"),
    [
        ({"gen_ai.operation.name": "chat", "gen_ai.system": "anthropic", "gen_ai.request.model": "claude-opus-4-1",
          "gen_ai.usage.input_tokens": 1100, "gen_ai.usage.output_tokens": 50,
          "gen_ai.usage.cache_read.input_tokens": 800, "gen_ai.usage.cache_creation.input_tokens": 200}, 0.0102),
        ({"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic",
          "gen_ai.request.model": "claude-opus-4-1",
          "gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 50,  # against the conventions: uncached only
          "gen_ai.usage.cache_read.input_tokens": 800, "gen_ai.usage.cache_write.input_tokens": 200}, 0.0102),
        ({"llm.request.type": "chat", "gen_ai.system": "Anthropic", "gen_ai.request.model": "claude-opus-4-1",
          "gen_ai.response.model": "claude-opus-4-1-20250805", "gen_ai.usage.prompt_tokens": 1100,
          "gen_ai.usage.completion_tokens": 50, "llm.usage.total_tokens": 1150,
          "gen_ai.usage.cache_read_input_tokens": 800, "gen_ai.usage.cache_creation_input_tokens": 200}, 0.0102),
        ({"openinference.span.kind": "LLM", "llm.provider": "anthropic", "llm.model_name": "claude-opus-4-1",
          "llm.token_count.prompt": 1100, "llm.token_count.completion": 50,
          "llm.token_count.prompt_details.cache_read": 800, "llm.token_count.prompt_details.cache_write": 200}, 0.0102),
        ({"openinference.span.kind": "LLM", "llm.model_name": "gpt-4o", "llm.token_count.prompt": 1000,
          "llm.token_count.completion": 50}, 0.003),
        ({"openinference.span.kind": "EMBEDDING", "embedding.model_name": "text-embedding-3-small",
          "llm.token_count.prompt": 1000}, 0.00002),
        ({"gen_ai.operation.name": "embeddings", "gen_ai.provider.name": "openai",
          "gen_ai.request.model": "text-embedding-3-large", "gen_ai.usage.input_tokens": 1000}, 0.00013),
        ({**OTEL, "gen_ai.request.model": "gpt-5", "gen_ai.response.model": "gpt-5-2025-08-07",
          "openai.response.service_tier": "flex"}, 0.000875),
        ({**OTEL, "gen_ai.provider.name": "langchain"}, 0.003),
        ({**OTEL, "gen_ai.provider.name": "azure.ai.openai", "gen_ai.request.model": "prod"}, 0.003),
        ({"gen_ai.operation.name": "generate_content", "gen_ai.system": "gemini", "gen_ai.usage.output_tokens": 100,
          "gen_ai.request.model": "gemini-2.5-flash", "gen_ai.usage.input_tokens": 1000}, 0.00055),
        ({"gen_ai.operation.name": "chat", "gen_ai.system": "aws.bedrock", "gen_ai.usage.input_tokens": 1000,
          "gen_ai.request.model": "us.amazon.nova-pro-v1:0", "gen_ai.usage.output_tokens": 100}, 0.00112),
    ],
)  # fmt: skip
def test_all_dialects(attributes: dict[str, Any], total: float) -> None:
    sdk = Sdk()
    assert sdk.ended(attributes)[COST + "total"] == pytest.approx(total, rel=1e-12)


def test_openlit_leaves_cached_tokens_out_of_anthropic_s_input() -> None:
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.system": "anthropic", "gen_ai.usage.input_tokens": 2000,
                  "gen_ai.request.model": "claude-opus-4-1", "gen_ai.usage.output_tokens": 0,
                  "gen_ai.usage.cache_read.input_tokens": 1000}  # fmt: skip
    assert Sdk().ended(attributes, scope="openlit.instrumentation.anthropic")[COST + "total"] == pytest.approx(0.0315)
    assert Sdk().ended(attributes, scope="opentelemetry.x")[COST + "total"] == pytest.approx(0.0165)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"http.request.method": "POST"},
        OTEL | {"gen_ai.operation.name": "invoke_agent"},
        OTEL | {"gen_ai.operation.name": "execute_tool"},
        OTEL | {"gen_ai.operation.name": "fetch_response"},
        {"openinference.span.kind": "AGENT", "llm.model_name": "gpt-4o", "llm.token_count.prompt": 10},
        {"openinference.span.kind": "CHAIN", "llm.token_count.prompt": 10},
        {key: value for key, value in OTEL.items() if not key.startswith("gen_ai.usage")},
        {key: value for key, value in OTEL.items() if not key.endswith(".model")},
        OTEL | {"gen_ai.usage.input_tokens": "many", "gen_ai.usage.output_tokens": -3},
    ],
)
def test_other_spans_are_left_alone(sdk: Sdk, attributes: dict[str, Any]) -> None:
    assert sdk.ended(attributes) == attributes
    assert sdk.records == []


def test_a_cost_that_is_there_stays(sdk: Sdk) -> None:
    done = OTEL | {COST + "total": 9.0, "otel_tokens.pricing.status": "priced"}
    assert sdk.ended(done) == done
    unpriced = OTEL | {"otel_tokens.pricing.status": "unpriced"}
    assert sdk.ended(unpriced) == unpriced


def test_an_unknown_price_is_said_and_is_not_zero(sdk: Sdk) -> None:
    found = sdk.ended(OTEL | {"gen_ai.request.model": "gpt-9", "gen_ai.response.model": "gpt-9"})
    assert found["otel_tokens.pricing.status"] == "unpriced"
    assert not [key for key in found if key.startswith(COST)]


def test_a_span_around_a_priced_one_repeats_its_tokens(sdk: Sdk) -> None:
    """A framework's chat span, a chain between, and the provider SDK's span: one cost."""
    framework = sdk.start(OTEL)
    chain = sdk.start({"openinference.span.kind": "CHAIN"}, parent=framework)
    for span in (sdk.start(OTEL, parent=chain), chain, framework):
        span.end()
    spans = sdk.exporter.get_finished_spans()
    assert [COST + "total" in (span.attributes or {}) for span in spans] == [True, False, False]
    assert len(sdk.records) == 1
    assert sdk.ended(OTEL)[COST + "total"] > 0  # the next call is its own


def test_an_unpriced_inner_span_leaves_the_outer_its_chance(sdk: Sdk) -> None:
    outer = sdk.start(OTEL)
    inner = sdk.start(OTEL | {"gen_ai.provider.name": "vllm"}, parent=outer)
    inner.end()
    outer.end()
    assert [COST + "total" in (s.attributes or {}) for s in sdk.exporter.get_finished_spans()] == [False, True]


def test_records_carry_the_call(sdk: Sdk) -> None:
    span = sdk.start(OTEL)
    span.set_status(trace.StatusCode.ERROR)
    span.end(STARTED + 2 * 10**9)
    (record,) = sdk.records
    assert (record.call.provider, record.call.model, record.response_model) == ("openai", "gpt-4o", "gpt-4o-2024-08-06")
    assert (record.started, record.duration, record.outcome) == (1_795_176_000.0, 2.0, "error")
    assert record.trace_id == f"{span.get_span_context().trace_id:032x}"
    assert str(record.cost.total.normalize()) == "0.003"
    assert record.usage.input == 1000


def test_dropped_counts_and_other_processors_survive() -> None:
    from opentelemetry.sdk.trace import SpanLimits

    exporter = InMemorySpanExporter()
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=len(OTEL)), shutdown_on_exit=False)
    batch = BatchSpanProcessor(exporter)
    for processor in (batch, PricingProcessor()):
        provider.add_span_processor(processor)
    provider.get_tracer("t").start_span("s", attributes={"early": 1, **OTEL}, start_time=STARTED).end()
    provider.force_flush()
    (span,) = exporter.get_finished_spans()
    assert span.dropped_attributes == 1
    assert (span.attributes or {})[COST + "total"] == 0.003
    provider.shutdown()


def test_an_sdk_that_does_not_tell_when_a_span_is_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before 1.40: only on_end, with the span already read-only."""
    monkeypatch.delattr(PricingProcessor, "_on_ending")
    sdk = Sdk()
    assert sdk.ended(OTEL)[COST + "total"] == 0.003
    assert len(sdk.records) == 1


def test_a_fault_of_ours_is_not_the_application_s(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OTEL_TOKENS_STRICT")
    monkeypatch.setattr(module, "read_usage", lambda *_: 1 / 0)
    assert Sdk().ended(OTEL) == OTEL
    assert "pricing a span" in caplog.text


def test_odd_attributes_of_a_foreign_span(sdk: Sdk) -> None:
    odd = OTEL | {"gen_ai.usage.input_tokens": 10.0, "gen_ai.usage.output_tokens": True, "gen_ai.response.model": ["x"]}
    assert sdk.ended(odd)[COST + "total"] == pytest.approx(0.000025)


def test_memory_stays_flat_when_parents_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_PARENTS", 10)
    processor = PricingProcessor()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("t")
    kept = []
    for _ in range(50):
        kept.append(parent := tracer.start_span("p"))
        tracer.start_span("c", trace.set_span_in_context(parent), attributes=OTEL, start_time=STARTED).end()
    assert len(processor._around) == 10


def test_spans_ended_by_many_threads_and_by_the_collector() -> None:
    # Batched: the simple processor sets a context variable as it exports, and in the collector that can break
    # CPython before 3.12, with or without us.
    sdk = Sdk(batched=True)
    go = threading.Barrier(8)

    class Abandoned:
        """A stream that nobody closed: its span ends when it is collected."""

        def __init__(self) -> None:
            self.span, self.cycle = sdk.start(OTEL), self

        def __del__(self) -> None:
            self.span.end()

    def work() -> None:
        go.wait()
        for _ in range(20):
            parent = sdk.start({})
            sdk.start(OTEL, parent=parent).end()
            Abandoned()
            parent.end()
        gc.collect()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    deadline = time.monotonic() + 300
    while len(sdk.records) < 8 * 40 and time.monotonic() < deadline:
        gc.collect()  # does nothing while another thread is at it
    sdk.provider.shutdown()
    assert len(sdk.records) == 8 * 40
    assert not any(isinstance(processor, PricingProcessor) and processor._around for processor in _processors(sdk))


def _processors(sdk: Sdk) -> tuple[SpanProcessor, ...]:
    return sdk.provider._active_span_processor._span_processors


def test_a_pricer_of_the_application_s_own() -> None:
    from otel_tokens.pricing.rules import parse_rules

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    catalog = Catalog(parse_rules([{"model": "house-model", "input": 2, "output": 4}], "f"))
    provider.add_span_processor(PricingProcessor(Pricer(catalog)))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    attributes = OTEL | {"gen_ai.request.model": "house-model", "gen_ai.response.model": "x"}
    provider.get_tracer("t").start_span("s", attributes=attributes).end()
    spans: tuple[ReadableSpan, ...] = exporter.get_finished_spans()
    assert (spans[0].attributes or {})[COST + "total"] == pytest.approx(0.0022)


def test_unsampled_spans_pass_by() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    made: list[Record] = []
    provider.add_span_processor(PricingProcessor(on_record=made.append))
    provider.get_tracer("t").start_span("s", attributes=OTEL).end()
    assert made == []
