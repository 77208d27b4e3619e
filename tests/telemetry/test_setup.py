"""Providers as the environment asks for them, and the bounded flush."""

from __future__ import annotations

import logging
import socket
import time

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

from otel_tokens.telemetry.exporters import PrometheusZeroFirstReader
from otel_tokens.telemetry.flush import flush_providers
from otel_tokens.telemetry.metrics import Metrics
from otel_tokens.telemetry.setup import Exports, make_providers
from otel_tokens.telemetry.spans import Spans


@pytest.fixture
def make():
    """make_providers, with what it made shut down at the end."""
    made = []

    def make(wanted=None, **environ):
        made.append(make_providers(wanted, environ=environ))
        return made[-1]

    yield make
    for providers in made:
        providers.shutdown(2)


@pytest.fixture
def environment(monkeypatch):
    """Sets variables for exporters as well, which read the real environment."""

    def set_all(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return variables

    return set_all


def readers(providers):
    """The metric readers, in their order."""
    return list(providers.meter_provider._measurement_consumer._reader_storages)


def exporters(providers):
    """The kinds of exporters made, by signal."""
    spans = metrics = []
    if providers.tracer_provider is not None:
        spans = [type(p.span_exporter) for p in providers.tracer_provider._active_span_processor._span_processors]
    if providers.meter_provider is not None:
        metrics = [type(getattr(reader, "_exporter", reader)) for reader in readers(providers)]
    return [kind.__module__ for kind in spans], [kind.__module__ for kind in metrics]


HTTP_TRACES = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
HTTP_METRICS = "opentelemetry.exporter.otlp.proto.http.metric_exporter"
GRPC_TRACES = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
GRPC_METRICS = "opentelemetry.exporter.otlp.proto.grpc.metric_exporter"
PROMETHEUS = "otel_tokens.telemetry.exporters"


def test_nothing_asked_nothing_made(make):
    providers = make()
    assert providers.all() == []
    assert providers.flush(0.1)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, ([HTTP_TRACES], [HTTP_METRICS])),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, ([GRPC_TRACES], [GRPC_METRICS])),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            ([GRPC_TRACES], [GRPC_METRICS]),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"},
            ([HTTP_TRACES], [GRPC_METRICS]),
        ),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1/v1/metrics"}, ([], [HTTP_METRICS])),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_METRICS_EXPORTER": "none"},
            ([HTTP_TRACES], []),
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ([HTTP_TRACES], [])),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, ([], [PROMETHEUS])),
        ({"OTEL_METRICS_EXPORTER": "otel_tokens_prometheus, prometheus,otlp"}, ([], [PROMETHEUS, HTTP_METRICS])),
        ({"OTEL_METRICS_EXPORTER": "otlp_proto_http", "OTEL_SDK_DISABLED": "true"}, ([], [])),
    ],
)
def test_what_is_asked_is_made(make, environment, variables, expected):
    assert exporters(make(Exports(prometheus_port=0), **environment(**variables))) == expected


@pytest.mark.parametrize(
    ("prometheus", "variables", "served"),
    [
        (None, {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
        (None, {"OTEL_METRICS_EXPORTER": "none"}, False),
        (True, {"OTEL_METRICS_EXPORTER": "none"}, True),
        (True, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        (False, {}, False),
    ],
)
def test_when_prometheus_is_served(make, environment, prometheus, variables, served):
    providers = make(Exports(prometheus=prometheus, prometheus_port=0), **environment(**variables))
    assert (providers.prometheus is not None) is served


def test_only_what_the_application_lacks(environment, receiver):
    environ = environment(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    wanted = Exports(prometheus=True, prometheus_port=0)
    providers = make_providers(wanted, environ=environ, signals=("traces",))
    assert providers.prometheus is providers.meter_provider is None
    assert providers.tracer_provider is not None
    providers.shutdown()
    providers = make_providers(wanted, environ=environ, signals=("metrics",))
    assert providers.tracer_provider is None
    assert providers.prometheus is not None
    providers.shutdown()


def test_console(make, environment):
    providers = make(**environment(OTEL_METRICS_EXPORTER="console", OTEL_TRACES_EXPORTER="console"))
    (reader,) = readers(providers)
    assert isinstance(reader, PeriodicExportingMetricReader)
    assert isinstance(reader._exporter, ConsoleMetricExporter)
    assert providers.tracer_provider is not None


def test_otlp_carries_everything(make, receiver, make_record):
    providers = make(Exports(otlp_endpoint=receiver.endpoint + "/"))
    meter = Metrics(providers.meter_provider.get_meter("otel_tokens"), version="1")
    spans = Spans(providers.tracer_provider.get_tracer("otel_tokens"))
    record = make_record()
    span = spans.start(record.call)
    meter(record)
    spans.finish(span, record)
    assert providers.flush(10)
    assert [name for _, name in receiver.spans] == ["chat gpt-4o"]
    # A push path shows the value at once.
    assert receiver.first[next(key for key in receiver.first if key[1] == "otel_tokens.calls")] == 1
    assert receiver.total("otel_tokens.cost") == pytest.approx(0.00105)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_METRICS_EXPORTER": "nonsense"}, ["OTEL_METRICS_EXPORTER", "nonsense"]),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"},
            ["carrier-pigeon", "grpc", "http/protobuf"],
        ),
    ],
)
def test_a_mistake_is_a_message_and_the_rest_goes_on(make, environment, caplog, variables, words):
    with caplog.at_level(logging.ERROR):
        providers = make(Exports(prometheus=True, prometheus_port=0), **environment(**variables))
    assert providers.prometheus is not None
    assert len(caplog.records) == 1
    for word in words:
        assert word in caplog.text


def test_a_port_in_use_leaves_otlp_unharmed(make, receiver, free_port, caplog, make_record):
    with socket.create_server(("127.0.0.1", free_port)):
        providers = make(Exports(prometheus=True, prometheus_port=free_port, otlp_endpoint=receiver.endpoint))
    assert str(free_port) in caplog.text
    assert providers.prometheus.server is None
    Metrics(providers.meter_provider.get_meter("otel_tokens"), version="1")(make_record())
    assert providers.flush(10)
    assert receiver.total("otel_tokens.calls") == 1


def test_grpc_without_its_extra_names_the_extra(run_python):
    out = run_python(
        """
        import logging, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        sys.modules["opentelemetry.exporter.otlp.proto.grpc"] = None
        from otel_tokens.telemetry.setup import make_providers
        assert make_providers().all() == []
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
    )
    assert out.count("otel-tokens[grpc]") == 1  # once for both signals
    assert "http/protobuf" in out


def test_making_providers_does_not_make_them_global(make):
    make(Exports(prometheus=True, prometheus_port=0))
    assert "Proxy" in type(metrics.get_meter_provider()).__name__
    assert "Proxy" in type(trace.get_tracer_provider()).__name__


# ---- the flush --------------------------------------------------------------------------------------------------


@pytest.fixture
def black_hole():
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


FLUSH = """
import time
from otel_tokens.telemetry.metrics import Metrics
from otel_tokens.telemetry.spans import Spans
from otel_tokens.telemetry.setup import make_providers
made = make_providers()
metrics = Metrics(made.meter_provider.get_meter("otel_tokens"), version="1")
spans = Spans(made.tracer_provider.get_tracer("otel_tokens"))
spans.finish(spans.start(record.call), record)
metrics(record)
"""


@pytest.mark.parametrize("kind", ["black hole", "nobody there", "grpc, nobody there"])
def test_a_flush_is_bounded(run_python, black_hole, free_port, kind):
    endpoint = black_hole if kind == "black hole" else f"http://127.0.0.1:{free_port}"
    out = run_python(
        FLUSH
        + """
import logging; logging.disable(logging.CRITICAL)
before = time.monotonic()
done = made.shutdown(1.0)
print(done, time.monotonic() - before, time.time())
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc" if "grpc" in kind else "http/protobuf",
        OTEL_EXPORTER_OTLP_TIMEOUT="200",  # seconds: what an export without a bound takes
    )
    done, took, ended = out.split()
    assert float(took) < 60
    if kind == "black hole":
        assert done == "False"
    assert time.time() - float(ended) < 60  # nor does the end of the process wait


def test_a_flush_at_exit_arrives(run_python, receiver):
    """From `atexit`, where newer Pythons start no threads."""
    run_python(
        FLUSH + "import atexit; atexit.register(made.shutdown, 5.0)", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint
    )
    assert receiver.total("otel_tokens.calls") == 1
    assert len(receiver.spans) == 1


def test_flush_of_other_peoples_providers(memory, tracing, run_python, black_hole):
    provider, _ = tracing
    assert flush_providers([memory.provider, provider, object()], 5)
    out = run_python(
        FLUSH
        + """
from otel_tokens.telemetry.flush import flush_providers
before = time.monotonic()
print(flush_providers([made.tracer_provider, made.meter_provider], 0.3), time.monotonic() - before)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=black_hole,
        OTEL_EXPORTER_OTLP_TIMEOUT="200",
    )
    done, took = out.split()
    assert done == "False"
    assert float(took) < 60


def test_shutdown_frees_the_port(make, free_port):
    providers = make(Exports(prometheus=True, prometheus_port=free_port))
    assert isinstance(providers.prometheus, PrometheusZeroFirstReader)
    assert providers.shutdown()
    assert providers.shutdown()  # harmless
    with socket.create_server(("127.0.0.1", free_port)):
        pass
