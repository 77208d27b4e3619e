"""Whole programs in processes of their own: a collector for OTLP, a model server, and what all of them came to."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_tokens import conventions as c
from otel_tokens.demo import anthropic_wire, openai_wire
from otel_tokens.demo.server import ModelServer, Reply, Request
from otel_tokens.ledger.query import rows
from otel_tokens.values import Record, Usage

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WAIT = 300.0  # seconds: only a hang takes as long
CLI = [sys.executable, "-m", "otel_tokens.cli"]
INPUT, OUTPUT = 1000, 50  # tokens of every call

# What the programs begin with: `chat(n)` makes n calls, `client()` a client. Nothing of ours.
PREAMBLE = """
import os, sys

def client():
    import openai
    return openai.OpenAI(base_url=os.environ["MODEL_URL"] + "/v1", api_key="k", max_retries=0)

def chat(times=1, model="gpt-4o"):
    with client() as c:
        for _ in range(times):
            answer = c.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello."}])
            assert answer.usage.prompt_tokens == 1000
"""


def value_of(value: Any) -> Any:
    """An OTLP AnyValue in Python."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(value_of(item) for item in value.array_value.values)
    return getattr(value, kind) if kind else None


def attributes_of(holder: Any) -> dict[str, Any]:
    return {item.key: value_of(item.value) for item in holder.attributes}


class Span:
    """A span as it arrived."""

    def __init__(self, resource: dict[str, Any], scope: str, span: Any) -> None:
        self.resource, self.scope, self.raw = resource, scope, span
        self.name = span.name
        self.attributes = attributes_of(span)
        self.id, self.parent, self.trace = span.span_id, span.parent_span_id, span.trace_id


class Collector:
    """An OTLP collector (http/protobuf) on a free loopback port, which keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.instances: set[str] = set()
        self.delay = 0.0  # seconds before it answers
        self._points: dict[tuple[Any, ...], float] = {}
        self._changed = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                time.sleep(outer.delay)
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.take(self.path, body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, path: str, body: bytes) -> None:
        with self._changed:
            if path == "/v1/traces":
                for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                    resource = attributes_of(part.resource)
                    for scope in part.scope_spans:
                        self.spans += [Span(resource, scope.scope.name, span) for span in scope.spans]
            elif path == "/v1/metrics":
                for part in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    self._metrics(attributes_of(part.resource), part)
            self._changed.notify_all()

    def _metrics(self, resource: dict[str, Any], part: Any) -> None:
        self.resources.append(resource)
        instance = str(resource.get("service.instance.id"))
        self.instances.add(instance)
        for scope in part.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    labels = tuple(sorted(attributes_of(point).items()))
                    value = point.count if kind == "histogram" else point.as_double or point.as_int
                    # Cumulative: the last value of a series of a process is its total.
                    self._points[instance, metric.name, labels, point.start_time_unix_nano] = value

    def total(self, name: str, **labels: Any) -> float:
        """The sum of a metric over all processes and series (a histogram's count)."""
        with self._changed:
            return sum(
                value
                for (_, metric, attributes, _), value in self._points.items()
                if metric == name and all(dict(attributes).get(key) == wanted for key, wanted in labels.items())
            )

    def by_process(self, name: str) -> dict[str, float]:
        """The sum of a metric in each process."""
        found: dict[str, float] = defaultdict(float)
        with self._changed:
            for (instance, metric, _, _), value in self._points.items():
                if metric == name:
                    found[instance] += value
        return dict(found)

    def ours(self) -> list[Span]:
        """Spans that are about a call."""
        with self._changed:
            return [span for span in self.spans if c.CALL_ID in span.attributes]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A running collector."""
    made = Collector()
    yield made
    made.close()


def answer(asked: Request) -> Reply:
    """The same usage for every call: whoever adds up knows the truth by counting calls."""
    usage = Usage(input=INPUT, output=OUTPUT, cache_read=800, origin="provider")
    model = str(asked["model"])
    if asked.path.endswith("/messages"):
        message = anthropic_wire.message(model, usage, "The sea is blue.")
        return Reply(events=anthropic_wire.message_events(message)) if asked["stream"] else Reply(body=message)
    whole = openai_wire.chat_completion(model, usage, "The sea is blue.")
    wants = (asked["stream_options"] or {}).get("include_usage", False)
    return Reply(events=openai_wire.chat_events(whole, include_usage=wants)) if asked["stream"] else Reply(body=whole)


class Workshop:
    """A folder with a program, the servers it talks to, and everything it left behind."""

    def __init__(self, folder: Path, server: ModelServer, collector: Collector) -> None:
        self.folder, self.server, self.collector = folder, server, collector
        self.ledger = folder / "ledger.db"
        host = server.url.removeprefix("http://")
        (folder / "otel-tokens.yaml").write_text(
            f"hosts:\n  - {{match: '{host}', path: /v1, provider: openai}}\n"
            f"  - {{match: '{host}', provider: anthropic}}\n"
        )
        dropped = ("OTEL_", "OPENAI_", "ANTHROPIC_", "PYTHON", "COV_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)} | {
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "MODEL_URL": server.url,
            "OTEL_TOKENS_CONFIG": str(folder / "otel-tokens.yaml"),
            "OTEL_TOKENS_LEDGER": str(self.ledger),
            "OTEL_TOKENS_STRICT": "1",
            "OTEL_TOKENS_FLUSH_TIMEOUT": "120",  # the machine may be busy
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_SERVICE_NAME": "shop",
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "NO_PROXY": "127.0.0.1",
        }
        self.said = ""  # on standard error, by the last program: the reason, when something is missing
        self._running: list[subprocess.Popen[str]] = []

    def program(self, code: str, name: str = "app.py", preamble: str = PREAMBLE) -> str:
        """Write a program; returns its name."""
        (self.folder / name).write_text(preamble + textwrap.dedent(code))
        return name

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """A process in the folder, with pipes. It leads a session, so that its children end with it."""
        env = self.env | options.pop("env", {})
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        given = {"start_new_session": True, **pipes, **options}
        process = subprocess.Popen(command, cwd=self.folder, env=env, text=True, **given)
        self._running.append(process)
        return process

    def run(self, *command: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """A process, run to its end, which is to end with `code`."""
        process = self.start(*command, **options)
        out, err = process.communicate(timeout=WAIT)
        self.said = err
        assert process.returncode == code, err
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    @property
    def calls(self) -> int:
        """How many calls reached the server."""
        return len(self.server.requests)

    @property
    def records(self) -> list[Record]:
        """What the ledger holds."""
        return list(rows(str(self.ledger))) if self.ledger.exists() else []

    def check_ledger(self, calls: int) -> None:
        """The ledger is the truth: so many calls, each once, with their tokens and price."""
        found = self.records
        assert self.calls == calls
        assert len(found) == calls, self.said
        assert len({record.id for record in found}) == calls
        assert {(r.usage.input, r.usage.output, r.usage.origin) for r in found} == {(INPUT, OUTPUT, "provider")}
        assert {record.cost.status for record in found} == {"priced"}

    def check(self, calls: int) -> None:
        """Ledger, OTLP metrics over all processes, and spans: each the truth."""
        self.check_ledger(calls)
        got = self.collector
        assert got.total(c.CALLS.name) == calls, got.by_process(c.CALLS.name)
        assert got.total(c.TOKENS_INPUT.name) == calls * INPUT
        assert got.total(c.TOKENS_OUTPUT.name) == calls * OUTPUT
        assert got.total(c.TOKENS_CACHE_READ.name) == calls * 800
        assert got.total(c.DURATION.name) == calls
        money = float(sum(record.cost.total or 0 for record in self.records))
        assert got.total(c.COST.name) == pytest.approx(money, rel=1e-9)
        spans = got.ours()
        assert len(spans) == calls
        assert {span.attributes[c.CALL_ID] for span in spans} == {record.id for record in self.records}

    @staticmethod
    def wait_until(condition: Callable[[], Any], what: str, timeout: float = WAIT) -> None:
        """Wait for something in another process, which has no way to tell."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.02)

    def close(self) -> None:
        """Leave no process behind, nor a child of one: a pool's workers outlive a parent that is killed."""
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=WAIT)


@pytest.fixture
def workshop(tmp_path: Path, make_server: Callable[..., ModelServer], collector: Collector) -> Iterator[Workshop]:
    """A place to run programs in."""
    made = Workshop(tmp_path, make_server(answer), collector)
    yield made
    made.close()


@pytest.fixture
def otel_instrument() -> list[str]:
    """The command of opentelemetry-distro, with this package's entry points."""
    from importlib.metadata import entry_points

    command = BIN / "opentelemetry-instrument"
    if not command.exists() or not entry_points(group="opentelemetry_instrumentor", name="otel_tokens"):
        reason = "needs the package and opentelemetry-distro installed: pip install -e . opentelemetry-distro"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return [str(command)]
