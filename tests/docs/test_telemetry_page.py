"""docs/telemetry.md against reality: what comes out of real calls is described there, under the names it comes by."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import openai
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_tokens
from otel_tokens import Budget, BudgetExceededError
from otel_tokens.conventions import COST_ALIASES, COST_ALIASES_EXCLUSIVE, TAG_PREFIX
from otel_tokens.demo.server import ModelServer
from otel_tokens.telemetry.exporters import PrometheusZeroFirstReader

MESSAGES: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def seen() -> Iterator[tuple[list[ReadableSpan], list[Any]]]:
    """Spans, and Prometheus families, of calls of all kinds with everything switched on."""
    exporter, reader = InMemorySpanExporter(), PrometheusZeroFirstReader(serve=False)
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with ModelServer() as server:
        host = server.url.removeprefix("http://")
        otel_tokens.instrument(
            tracers,
            meters,
            config=False,
            store="memory",
            semconv="both",
            token_histograms=True,
            cost_histogram=True,
            chunk_histogram=True,
            cost_aliases=[name for name in COST_ALIASES if name != COST_ALIASES_EXCLUSIVE[0]],
            metric_attributes=["tenant", "team"],
            prices=[{"model": "error-500", "input": 1, "output": 1}],
            hosts=[{"match": host, "path": "/v1", "provider": "openai"}],
            budgets=[Budget("calls", calls=8), Budget("money", usd=9, per="tenant"), Budget("tokens", tokens="1M")],
        )
        try:
            with tracers.get_tracer("app").start_as_current_span("work"):
                _calls(server)
            yield list(exporter.get_finished_spans()), list(reader.families())
        finally:
            otel_tokens.uninstrument()
            meters.shutdown()
            tracers.shutdown()


def _calls(server: ModelServer) -> None:
    with (
        openai.OpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0) as client,
        otel_tokens.tags(session="s", task="t", tenant="acme", user="u", agent="a", feature="f", team="blue"),
    ):
        chat = client.chat.completions.create
        chat(
            model="gpt-5.4", messages=MESSAGES, max_completion_tokens=50, temperature=1, top_p=1, seed=1, n=1,
            stop=["x"], frequency_penalty=0, presence_penalty=0, reasoning_effort="low",
        )  # fmt: skip
        list(chat(model="gpt-5.4", messages=MESSAGES, max_completion_tokens=50, stream=True))
        with chat(model="gpt-5.4", messages=MESSAGES, max_completion_tokens=50, stream=True) as stream:
            next(stream)
        client.responses.create(model="gpt-5.4", input="Hello", max_output_tokens=50)
        client.embeddings.create(model="text-embedding-3-small", input="Hello", dimensions=256, encoding_format="float")
        with pytest.raises(openai.APIStatusError):
            chat(model="error-500", messages=MESSAGES, max_completion_tokens=5)
        with pytest.raises(BudgetExceededError):
            chat(model="never-priced", messages=MESSAGES, max_completion_tokens=5)


def _known(name: str, described: dict[str, str]) -> bool:
    return name in described or (name.startswith(TAG_PREFIX) and f"{TAG_PREFIX}NAME" in described)


def test_spans(seen: Any, generator: ModuleType) -> None:
    spans = [span for span in seen[0] if span.name != "work"]
    assert {span.name for span in spans} >= {"chat gpt-5.4", "embeddings text-embedding-3-small"}
    found = {name for span in spans for name in span.attributes}
    assert len(found) > 50
    assert {name for name in found if not _known(name, generator.ON_SPANS)} == set()


def test_events(seen: Any, generator: ModuleType) -> None:
    (work,) = (span for span in seen[0] if span.name == "work")
    assert "otel_tokens.budget.exceeded" in {event.name for event in work.events}
    found = {name for event in work.events for name in event.attributes}
    assert {name for name in found if not _known(name, generator.ON_EVENTS)} == set()


def test_metrics(seen: Any, generator: ModuleType) -> None:
    described = {generator.prometheus_name(metric): metric for metric in generator.metrics()}
    ours = [family for family in seen[1] if family.name != "target_info" and family.name != "target"]
    labels = {name.replace(".", "_") for name in generator.ON_METRICS}
    prefix = TAG_PREFIX.replace(".", "_")
    shown: set[str] = set()
    for family in ours:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name in described
        shown.add(name)
        for sample in family.samples:
            others = {key for key in sample.labels if not key.startswith(("otel_scope_", "le", prefix))}
            assert others <= labels, (name, others - labels)
    missing = {metric.name for name, metric in described.items() if name not in shown}
    # Only what this application did not meet: no fault, no lost row.
    assert missing <= {"otel_tokens.faults", "otel_tokens.ledger.errors", "otel_tokens.pricing.misses"}
