"""Fixtures of the telemetry tests: records, SDK providers in memory, a real Prometheus, an OTLP receiver."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_tokens.telemetry.metrics import Metrics
from otel_tokens.values import UNPRICED, Call, Cost, Record, Usage

D = Decimal
ROOT = Path(__file__).resolve().parents[2]
REPORTED = frozenset({"input", "output", "cache_read", "reasoning"})
USAGE = Usage(input=1000, output=50, cache_read=800, reasoning=20, total=1050, origin="provider", reported=REPORTED)
COST = Cost(
    total=D("0.00105"),
    input=D("0.0002"),
    cache_read=D("0.0004"),
    cache_write=D(0),
    output=D("0.00045"),
    other=D(0),
    status="priced",
    version="2026-11-01",
    rule="openai/gpt-4o",
)


def _make_record(**changes: Any) -> Record:
    call: dict[str, Any] = {
        "id": "c1",
        "provider": "openai",
        "endpoint": "openai.chat",
        "operation": "chat",
        "model": "gpt-4o",
        "started": 1_700_000_000.0,
        "sdk": "openai",
        "server_address": "api.openai.com",
        "server_port": 443,
        "attributes": {"gen_ai.request.max_tokens": 100},
    }
    for name in list(changes):
        if name in Call.__dataclass_fields__ and name not in Record.__dataclass_fields__:  # else of the response
            call[name] = changes.pop(name)
    record: dict[str, Any] = {
        "usage": USAGE,
        "cost": COST,
        "outcome": "ok",
        "duration": 0.5,
        "response_model": "gpt-4o-2024-08-06",
        "response_id": "chatcmpl-1",
        "finish_reasons": ("stop",),
    }
    return Record(call=Call(**call), **(record | changes))


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A factory of records; keywords are fields of Call or of Record."""
    return _make_record


@pytest.fixture
def failed(make_record: Callable[..., Record]) -> Record:
    """A call that failed before any answer."""
    return make_record(
        usage=Usage(),
        cost=UNPRICED,
        outcome="error",
        error_type="openai.RateLimitError",
        missing_reason="error",
        response_model=None,
        response_id=None,
        finish_reasons=(),
    )


@pytest.fixture
def estimated(make_record: Callable[..., Record]) -> Record:
    """A stream whose usage was never reported."""
    return make_record(
        usage=Usage(input=30, output=7, origin="estimated"),
        cost=Cost(**{**_fields(COST), "status": "estimated"}),
        missing_reason="stream_no_usage",
    )


@pytest.fixture
def partial(make_record: Callable[..., Record]) -> Record:
    """A stream that was left early: the input is reported, the output estimated."""
    return make_record(
        usage=Usage(
            input=1000, output=9, cache_read=800, origin="partial", reported=frozenset({"input", "cache_read"})
        ),
        outcome="abandoned",
        missing_reason="aborted",
    )


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


# ---- in-memory SDK ----------------------------------------------------------------------------------------------


class Memory:
    """A MeterProvider with an in-memory reader, and a reading of it by metric name."""

    def __init__(self, **reader_options: Any) -> None:
        self.reader = InMemoryMetricReader(**reader_options)
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def metrics(self, **options: Any) -> Metrics:
        options.setdefault("version", "1.2.3")
        return Metrics(self.provider.get_meter("otel_tokens"), **options)

    def read(self) -> dict[str, list[Any]]:
        """Data points by metric name."""
        data = self.reader.get_metrics_data()
        found: dict[str, list[Any]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                assert scope.scope.name == "otel_tokens"
                for metric in scope.metrics:
                    assert metric.name not in found, f"{metric.name} twice"
                    found[metric.name] = list(metric.data.data_points)
        return found

    def sum(self, name: str, **where: str) -> float:
        """The sum over a metric's points; keywords are attributes with `__` for a dot, a value each must have."""
        wanted = {key.replace("__", "."): value for key, value in where.items()}
        return sum(
            point.value if hasattr(point, "value") else point.count
            for point in self.read().get(name, [])
            if wanted.items() <= dict(point.attributes).items()
        )


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Metrics in memory."""
    made = Memory()
    yield made
    made.provider.shutdown()


@pytest.fixture
def make_memory() -> type[Memory]:
    """A factory of `memory`, with options of the reader."""
    return Memory


@pytest.fixture
def tracing() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """A tracer provider and what it exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


# ---- an OTLP receiver -------------------------------------------------------------------------------------------


class Receiver:
    """A loopback OTLP/HTTP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []
        self.last: dict[tuple[Any, ...], float] = {}
        self.first: dict[tuple[Any, ...], float] = {}
        self.senders: dict[Any, set[str]] = {}
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept, as by a real collector

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(self.path, body, self.client_address)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def take(self, path: str, body: bytes, connection: Any) -> None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        with self._lock:
            if path == "/v1/traces":
                traces = ExportTraceServiceRequest.FromString(body)
                for resource in traces.resource_spans:
                    self.senders.setdefault(connection, set()).add(_instance(resource))
                    for scope in resource.scope_spans:
                        self.spans += [(_instance(resource), span.name) for span in scope.spans]
                return
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.senders.setdefault(connection, set()).add(_instance(resource))
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        self._points(_instance(resource), metric)

    def _points(self, instance: str, metric: Any) -> None:
        kind = metric.WhichOneof("data")
        for point in getattr(metric, kind).data_points:
            labels = tuple(sorted((a.key, a.value.string_value or a.value.int_value) for a in point.attributes))
            value = point.count if kind == "histogram" else point.as_int or point.as_double
            key = (instance, metric.name, labels)
            self.first.setdefault(key, value)
            self.last[key] = value

    def total(self, name: str) -> float:
        """The sum of a metric over all processes and labels, each cumulative series at its last value."""
        with self._lock:
            return sum(value for (_, metric, _), value in self.last.items() if metric == name)

    def instances(self, name: str) -> set[str]:
        """The processes that sent a metric."""
        with self._lock:
            return {instance for instance, metric, _ in self.last if metric == name}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _instance(resource: Any) -> str:
    return next(a.value.string_value for a in resource.resource.attributes if a.key == "service.instance.id")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A running OTLP/HTTP collector."""
    made = Receiver()
    yield made
    made.close()


# ---- real servers -----------------------------------------------------------------------------------------------


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        message = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture
def promtool() -> str:
    """The path of promtool."""
    return _tool("promtool", "prometheus")


class Prometheus:
    """A real Prometheus that scrapes one target every second."""

    def __init__(self, binary: str, folder: Path, port: int, target: str) -> None:
        self.port = port
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
            f"scrape_configs: [{{job_name: app, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        self._process = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def query(self, expression: str) -> list[float]:
        """The values of an instant query."""
        address = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(address, timeout=300) as answer:
            result = json.load(answer)["data"]["result"]
        return [float(row["value"][1]) for row in result]

    def wait(self, expression: str, enough: Callable[[list[float]], bool], seconds: float = 300) -> list[float]:
        """Ask until the answer is `enough`, and return it."""
        end, found = time.monotonic() + seconds, []
        while time.monotonic() < end:
            try:
                found = self.query(expression)
                if enough(found):
                    return found
            except urllib.error.HTTPError as starting:
                starting.close()
            except OSError:
                pass
            time.sleep(0.2)  # there is nothing to be told by: Prometheus is polled
        raise AssertionError(f"{expression} stayed at {found}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(300)


@pytest.fixture
def start_real_prometheus(tmp_path: Path, new_port: Callable[[], int]) -> Iterator[Callable[[str], Prometheus]]:
    """A factory of running Prometheus servers that scrape `host:port`."""
    binary = _tool("prometheus", "prometheus")
    running: list[Prometheus] = []

    def start(target: str) -> Prometheus:
        running.append(Prometheus(binary, tmp_path, new_port(), target))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of ours are raised; nothing of the environment leaks in."""
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "1")
    for name in list(os.environ):
        if name.startswith("OTEL_") and name != "OTEL_TOKENS_STRICT":
            monkeypatch.delenv(name)


PROLOGUE = """
import sys
from decimal import Decimal
from otel_tokens.values import Call, Cost, Record, Usage
call = Call(id="1", provider="openai", endpoint="openai.chat", operation="chat", model="gpt-4o", started=1.0)
usage = Usage(input=1000, output=50, cache_read=800, origin="provider", reported=frozenset({"input", "output"}))
zero = Decimal(0)
cost = Cost(Decimal("0.5"), Decimal("0.5"), zero, zero, zero, zero, status="priced")
record = Record(call=call, usage=usage, cost=cost, outcome="ok", duration=0.5)
"""


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs a script in a process of its own and returns what it printed; `record` is a record in it."""

    def run(script: str, timeout: float = 60, **variables: str) -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        done = subprocess.run(
            # Python 3.12 and later warn of every fork beside threads; these forks are the test.
            [
                sys.executable,
                "-W",
                "error",
                "-W",
                "ignore:This process:DeprecationWarning",
                "-c",
                PROLOGUE + textwrap.dedent(script),
            ],
            env={**env, "PYTHONPATH": str(ROOT), "OTEL_TOKENS_STRICT": "1", **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    return run
