"""A meter around the real SDKs in this process, and an engine without rooms for parts that are tried alone."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_tokens
from otel_tokens.demo.server import ModelServer
from otel_tokens.instrument import flush
from otel_tokens.ledger.query import rows
from otel_tokens.lifecycle import ActiveCall, Engine
from otel_tokens.providers.registry import endpoint_named
from otel_tokens.values import UNPRICED, Call, Record

HOSTS = (
    {"match": "127.0.0.1", "path": "/v1", "provider": "openai"},
    {"match": "127.0.0.1", "provider": "anthropic"},
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what concerns an SDK's own spans where the SDK has none."""
    if hasattr(anthropic._base_client, "start_api_call_span"):
        return
    beside = [item for item in items if item.get_closest_marker("native_spans")]
    config.hook.pytest_deselected(items=beside)
    items[:] = [item for item in items if item not in beside]


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Faults of ours fail the test."""
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "1")
    return monkeypatch


@dataclass
class Meter:
    """What the calls of one test came to, by every way out."""

    ledger_path: Path
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    tracers: TracerProvider = field(default_factory=TracerProvider)
    seen: list[Record] = field(default_factory=list)
    meters: MeterProvider = field(init=False)

    def __post_init__(self) -> None:
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

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
        flush()
        return list(rows(str(self.ledger_path)))

    def total(self, name: str) -> float:
        """The sum of a counter over all its attributes."""
        data = self.reader.get_metrics_data()
        return sum(
            point.value
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        )

    def instrument(self, **settings: Any) -> None:
        """Meter this process, with every way out; other settings by name."""
        given: dict[str, Any] = {
            "tracer_provider": self.tracers,
            "meter_provider": self.meters,
            "hosts": HOSTS,
            "ledger": self.ledger_path,
            "on_record": self.seen.append,
        }
        otel_tokens.instrument(config=False, **{**given, **settings})


@pytest.fixture
def idle_meter(tmp_path: Path) -> Iterator[Meter]:
    """A meter that the test instruments itself, as it likes; taken off again afterwards."""
    held = Meter(tmp_path / "ledger.db")
    held.tracers.add_span_processor(SimpleSpanProcessor(held.exporter))
    try:
        yield held
    finally:
        otel_tokens.uninstrument()
        held.meters.shutdown()
        held.tracers.shutdown()


@pytest.fixture
def meter(idle_meter: Meter) -> Meter:
    """Instrumented; the loopback server bills as OpenAI (below /v1) and Anthropic."""
    idle_meter.instrument()
    return idle_meter


class Clients:
    """SDK clients at a server, closed at the end of the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def openai(self, server: ModelServer, **options: Any) -> openai.OpenAI:
        """A synchronous OpenAI client without retries."""
        made = openai.OpenAI(**{"api_key": "k", "base_url": f"{server.url}/v1", "max_retries": 0, **options})
        return self._stack.enter_context(made)

    def anthropic(self, server: ModelServer, **options: Any) -> anthropic.Anthropic:
        """A synchronous Anthropic client without retries."""
        made = anthropic.Anthropic(**{"api_key": "k", "base_url": server.url, "max_retries": 0, **options})
        return self._stack.enter_context(made)


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Makes clients."""
    with ExitStack() as stack:
        yield Clients(stack)


def http_of(sdk: ModuleType) -> Any:
    """The HTTP client's module that an SDK is built on: httpx2, or httpx in older releases."""
    base = next(kind for kind in sdk.DefaultHttpxClient.__mro__ if kind.__name__ == "Client")
    return sys.modules[base.__module__.partition(".")[0]]


@pytest.fixture
def http() -> Callable[[ModuleType], Any]:
    """`http(openai).MockTransport`."""
    return http_of


class NoSpans:
    """A room that makes no spans."""

    def ids(self, span: object) -> tuple[None, None]:
        """No ids."""
        return None, None

    def start(self, call: Call) -> None:
        """No span."""

    def late(self, call: Call, beside: object = None) -> None:
        """No span."""


@pytest.fixture
def alone() -> Callable[..., ActiveCall]:
    """Makes a call without an SDK: `alone("openai.chat", hide_usage=True)`; its records are in `.engine.sinks`."""

    def make(endpoint: str, **values: Any) -> ActiveCall:
        found = endpoint_named(endpoint)
        assert found is not None
        records: list[Record] = []
        engine = Engine(
            price=lambda *_, **__: UNPRICED,
            spans=NoSpans(),  # type: ignore[arg-type]
            sinks=(("records", records.append),),
        )
        call = Call(id="c", provider="openai", endpoint=endpoint, operation="chat", model="m", started=0.0)
        active = ActiveCall(engine, call, found, {})
        for name, value in values.items():
            setattr(active, name, value)
        made.append(active)
        return active

    made: list[ActiveCall] = []
    yield make
    for active in made:
        active.ended = True


@pytest.fixture
def contained(strict: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Faults of ours are contained, as for users; what was logged."""
    from otel_tokens import safely

    strict.setenv("OTEL_TOKENS_STRICT", "0")
    strict.setattr(safely, "_told", set())
    caplog.set_level(logging.DEBUG, logger="otel_tokens")
    return caplog
