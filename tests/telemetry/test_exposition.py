"""The Prometheus endpoint: zero first, robust, polite."""

from __future__ import annotations

import gzip
import http.client
import logging
import socket
import subprocess
import threading
import urllib.error
import urllib.request

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from otel_tokens.telemetry.exporters import PrometheusZeroFirstReader
from otel_tokens.telemetry.exposition import PrometheusServer, ZeroFirst, listen
from otel_tokens.telemetry.metrics import Metrics

INPUT = "gen_ai_client_inference_usage_input_tokens_total"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def get(server, path="/metrics", **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read(), dict(answer.headers)


def text(server):
    return get(server)[0].decode()


def value(exposition, name, **labels):
    return sum(
        sample.value
        for family in parse(exposition)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.fixture
def endpoint():
    """A provider served on a free port, beside an in-memory reader."""
    reader = PrometheusZeroFirstReader("127.0.0.1", 0)
    server = reader.server
    memory = InMemoryMetricReader()
    provider = MeterProvider([reader, memory], shutdown_on_exit=False)
    yield Metrics(provider.get_meter("otel_tokens"), version="1"), server, memory
    provider.shutdown()


def test_a_new_series_begins_at_zero(endpoint, make_record):
    metrics, server, _ = endpoint
    metrics(make_record())
    first = text(server)
    assert INPUT in first
    assert value(first, INPUT) == 0
    assert value(first, "gen_ai_client_inference_duration_seconds_count") == 0
    assert value(first, "gen_ai_client_inference_duration_seconds_bucket") == 0
    assert value(first, "otel_tokens_cost_USD_total") == 0
    assert value(first, "otel_tokens_build_info") == 1  # a gauge is what it is

    metrics(make_record(model="gpt-new"))
    second = text(server)
    assert value(second, INPUT, gen_ai_request_model="gpt-4o") == 1000
    assert value(second, INPUT, gen_ai_request_model="gpt-new") == 0
    assert value(second, "otel_tokens_cost_USD_total") == pytest.approx(0.00105)
    assert value(second, "gen_ai_client_inference_duration_seconds_count", gen_ai_request_model="gpt-4o") == 1
    assert value(text(server), INPUT, gen_ai_request_model="gpt-new") == 1000


def test_other_readers_are_not_delayed(endpoint, make_record):
    metrics, server, memory = endpoint
    metrics(make_record())
    assert value(text(server), INPUT) == 0
    (resource,) = memory.get_metrics_data().resource_metrics
    points = {m.name: m.data.data_points for m in resource.scope_metrics[0].metrics}
    assert points["gen_ai.client.inference.usage.input_tokens"][0].value == 1000


def test_a_label_that_another_series_brings_is_no_new_series(endpoint, make_record):
    metrics, server, _ = endpoint
    metrics(make_record())
    text(server)
    # From now on every series of the family has the label, most of them empty.
    metrics(make_record(service_tier="flex"))
    found = text(server)
    assert value(found, INPUT, openai_response_service_tier="flex") == 0
    assert value(found, INPUT) == 1000


def test_a_flush_is_no_scrape(make_record):
    reader = PrometheusZeroFirstReader("127.0.0.1", 0)
    server = reader.server
    provider = MeterProvider([reader], shutdown_on_exit=False)
    Metrics(provider.get_meter("otel_tokens"), version="1")(make_record())
    assert provider.force_flush()
    assert value(text(server), INPUT) == 0
    assert provider.force_flush()
    assert value(text(server), INPUT) == 1000
    provider.shutdown()


def test_a_scrape_that_never_arrived_does_not_count(endpoint, make_record):
    metrics, server, _ = endpoint
    metrics(make_record())
    families, _ = server._zero_first.scrape()
    assert families
    assert value(text(server), INPUT) == 0


def test_formats(endpoint, make_record):
    metrics, server, _ = endpoint
    metrics(make_record())
    text(server)
    body, headers = get(server, Accept=OPENMETRICS)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families["otel_tokens_cost_USD"].type == "counter"
    assert families["otel_tokens_cost_USD"].unit == "USD"
    body, headers = get(server, **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert value(gzip.decompress(body).decode(), INPUT) == 1000
    assert headers["Content-Length"] == str(len(body))
    assert get(server, "/?name[]=x")[0]
    with pytest.raises(urllib.error.HTTPError, match="404") as nothing:
        get(server, "/secret")
    nothing.value.close()


def test_a_name_that_two_scopes_use_is_one_family(promtool):
    reader = PrometheusZeroFirstReader("127.0.0.1", 0)
    server = reader.server
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("one").create_counter("requests", description="Requests.").add(1)
    provider.get_meter("two").create_counter("requests", description="Requests, too.").add(2)
    text(server)
    found = text(server)
    assert found.count("# TYPE requests_total") == 1
    assert value(found, "requests_total") == 3
    assert subprocess.run([promtool, "check", "metrics"], input=found, text=True, check=False).returncode == 0
    provider.shutdown()


def test_promtool_finds_nothing_wrong(endpoint, make_record, failed, promtool):
    metrics, server, _ = endpoint
    for record in (make_record(), failed, make_record(operation="embeddings")):
        metrics(record)
    metrics.totals.decided("daily", "deny", "openai", "gpt-4o")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text(server), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_many_scrapers_at_once_see_whole_expositions(endpoint, make_record):
    metrics, server, _ = endpoint
    metrics(make_record())
    text(server)
    found, start = [], threading.Barrier(8)

    def scrape():
        start.wait()
        found.extend([value(text(server), INPUT) for _ in range(5)])

    threads = [threading.Thread(target=scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1000] * 40


def test_a_collection_that_fails_is_a_target_that_is_down(caplog, monkeypatch):
    monkeypatch.delenv("OTEL_TOKENS_STRICT")
    caplog.set_level("DEBUG")  # as which a fault is told again

    def broken():
        raise RuntimeError("no ledger")

    server = PrometheusServer(ZeroFirst(broken), listen("127.0.0.1", 0))
    try:
        with pytest.raises(urllib.error.HTTPError, match="503") as down:
            text(server)
        down.value.close()
        assert "no ledger" in caplog.text
    finally:
        server.close()


def test_a_port_in_use_is_one_clear_message_and_no_exception(free_port, caplog, make_record, monkeypatch):
    with socket.create_server(("127.0.0.1", free_port)):
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(free_port))
        with caplog.at_level(logging.ERROR):
            reader = PrometheusZeroFirstReader()
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"127.0.0.1:{free_port}" in message
    assert "OTEL_EXPORTER_PROMETHEUS_PORT" in message
    assert reader.server is None
    memory = InMemoryMetricReader()
    provider = MeterProvider([reader, memory], shutdown_on_exit=False)
    Metrics(provider.get_meter("otel_tokens"), version="1")(make_record())
    assert memory.get_metrics_data() is not None
    assert provider.force_flush()
    provider.shutdown()


@pytest.mark.parametrize("host", ["no such host", "203.0.113.7"])
def test_an_impossible_address(host, caplog):
    assert PrometheusZeroFirstReader(host, 0).server is None
    assert "OTEL_EXPORTER_PROMETHEUS_HOST" in caplog.text


def test_a_port_that_is_no_number(caplog, monkeypatch, free_port):
    monkeypatch.setattr("otel_tokens.telemetry.exporters.DEFAULT_PORT", free_port)
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "http")
    reader = PrometheusZeroFirstReader()
    assert "OTEL_EXPORTER_PROMETHEUS_PORT" in caplog.text
    assert reader.server.port == free_port
    reader.shutdown()


def test_loopback_is_the_default_and_ipv6_works(monkeypatch, free_port):
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(free_port))
    reader = PrometheusZeroFirstReader()
    assert (reader.server.host, reader.server.port) == ("127.0.0.1", free_port)
    reader.shutdown()
    if socket.has_ipv6:
        reader = PrometheusZeroFirstReader("::1", 0)
        server = reader.server
        if server is not None:
            assert server.host == "::1"
            server.close()


def test_close_frees_the_port_at_once(free_port):
    for _ in range(5):
        server = PrometheusZeroFirstReader("127.0.0.1", free_port).server
        assert server is not None
        server.close()
        server.close()
    server = PrometheusZeroFirstReader("127.0.0.1", free_port).server
    assert value(text(server), "otel_tokens_calls_total") == 0
    server.close()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", free_port, timeout=5).request("GET", "/")


def test_by_the_name_of_its_entry_point(run_python, free_port):
    """As `opentelemetry-instrument` makes it: from the environment, without arguments."""
    run_python(
        f"""
        from importlib.metadata import EntryPoint
        import urllib.request
        kind = EntryPoint(
            "otel_tokens_prometheus", "otel_tokens.telemetry.exporters:PrometheusZeroFirstReader", "g"
        ).load()
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import MetricReader
        assert issubclass(kind, MetricReader)
        provider = MeterProvider([kind()])
        provider.get_meter("app").create_counter("requests").add(1)
        for expected in (b"requests_total", b"}} 1.0"):
            found = urllib.request.urlopen("http://127.0.0.1:{free_port}/metrics").read()
            assert expected in found, found
        """,
        OTEL_EXPORTER_PROMETHEUS_PORT=str(free_port),
    )


def test_baseline_shows_what_is_old_and_zeroes_what_is_new():
    registry = CollectorRegistry()
    counter = Counter("spent", "Money.", ["model"], registry=registry)
    gauge = Gauge("left", "Money.", registry=registry)
    histogram = Histogram("took", "Time.", registry=registry)
    counter.labels("old").inc(7)
    histogram.observe(1)
    gauge.set(3)
    zero_first = ZeroFirst(registry.collect, baseline=True)

    def scrape():
        families, arrived = zero_first.scrape()
        arrived()
        return {
            (sample.name, sample.labels.get("model")): sample.value
            for family in families
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    found = scrape()
    assert (found["spent_total", "old"], found["took_count", None], found["left", None]) == (7, 1, 3)
    counter.labels("new").inc(2)
    assert scrape()["spent_total", "new"] == 0
    assert scrape()["spent_total", "new"] == 2
