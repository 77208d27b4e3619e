"""A meter around the real SDKs: what was recorded, as records, spans, metrics and ledger rows."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_tokens
from otel_tokens.instrument import flush
from otel_tokens.ledger.query import rows
from otel_tokens.values import Record

os.environ["OTEL_TOKENS_STRICT"] = "1"  # faults of ours fail the test


@dataclass
class Meter:
    """What one test's calls came to, by every way out."""

    ledger_path: Path
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    seen: list[Record] = field(default_factory=list)

    def records(self, *, collect: bool = False) -> list[Record]:
        """All records so far, after everything queued is done (and garbage is collected, if asked)."""
        if collect:
            gc.collect()
        flush()
        return list(self.seen)

    def one(self, *, collect: bool = False) -> Record:
        """The only record."""
        found = self.records(collect=collect)
        assert len(found) == 1, [(r.call.model, r.outcome, r.usage) for r in found]
        return found[0]

    def spans(self) -> list[ReadableSpan]:
        """All finished spans."""
        return list(self.exporter.get_finished_spans())

    def ledger(self) -> list[Record]:
        """The ledger's rows as records."""
        return list(rows(str(self.ledger_path)))

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str) -> float:
        """The sum of a counter over all its attributes."""
        return sum(point.value for point in self.points(name))


HOSTS = [
    {"match": "127.0.0.1", "path": "/v1", "provider": "openai"},
    {"match": "127.0.0.1", "provider": "anthropic"},
]


@pytest.fixture
def meter(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Meter]:
    """Instrumented, with all sinks on; taken off again afterwards.

    With the mark `priced` the loopback server bills as OpenAI (below /v1) and Anthropic; without, as nobody known.
    """
    held = Meter(tmp_path / "ledger.db")
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(held.exporter))
    meters = MeterProvider([held.reader])
    hosts = HOSTS if request.node.get_closest_marker("priced") else ()
    otel_tokens.instrument(
        tracers, meters, config=False, ledger=held.ledger_path, on_record=held.seen.append, hosts=hosts
    )
    try:
        yield held
    finally:
        otel_tokens.uninstrument()
        meters.shutdown()
        tracers.shutdown()
