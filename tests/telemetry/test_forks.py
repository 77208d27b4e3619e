"""Forked processes: each reports its own calls, and together they report the truth."""

from __future__ import annotations

import pytest

from otel_tokens.telemetry import forks
from otel_tokens.telemetry.forks import lost_names

FORKS = """
import os, time
from otel_tokens.telemetry.metrics import Metrics
from otel_tokens.telemetry.spans import Spans
from otel_tokens.telemetry.setup import make_providers
from otel_tokens.telemetry.flush import flush_providers

made = make_providers()
metrics = Metrics(made.meter_provider.get_meter("otel_tokens"), version="1")
spans = Spans(made.tracer_provider.get_tracer("otel_tokens"))

def call(n):
    for _ in range(n):
        span = spans.start(record.call)
        metrics(record)
        spans.finish(span, record)

def children(n, calls):
    started = []
    for _ in range(n):
        pid = os.fork()
        if pid == 0:
            try:
                call(calls)
                ok = made.flush(20.0)
            finally:
                os._exit(0 if ok else 1)
        started.append(pid)
    for pid in started:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def test_the_sum_over_processes_is_the_truth(run_python, receiver):
    run_python(
        FORKS
        + """
call(5)
assert made.flush(20.0)    # the connection to the collector is open now, and would be shared
children(3, 10)
call(2)
assert made.shutdown(20.0)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_METRIC_EXPORT_INTERVAL="3600000",
    )
    assert len(receiver.instances("otel_tokens.calls")) == 4
    assert receiver.total("otel_tokens.calls") == 37
    assert receiver.total("gen_ai.client.inference.usage.input_tokens") == 37_000
    assert receiver.total("otel_tokens.cost") == pytest.approx(37 * 0.5)
    assert receiver.total("gen_ai.client.inference.duration") == 37
    assert len(receiver.spans) == 37
    assert len({instance for instance, _ in receiver.spans}) == 4
    # No connection is used by two processes, whose requests could be mixed up on it.
    assert all(len(processes) == 1 for processes in receiver.senders.values())


def test_delta_temporality_starts_anew_in_a_child(run_python, receiver):
    run_python(
        FORKS + "call(5)\nassert made.flush(20.0)\nchildren(2, 3)\nmade.shutdown(20.0)",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_METRIC_EXPORT_INTERVAL="3600000",
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
    )
    # Every process sent once: its first value is all it counted.
    firsts = [value for (_, name, _), value in receiver.first.items() if name == "otel_tokens.calls"]
    assert sorted(firsts) == [3, 3, 5]
    durations = [value for (_, name, _), value in receiver.first.items() if name.endswith("inference.duration")]
    assert sorted(durations) == [3, 3, 5]


def test_a_child_can_export_though_the_parent_was_exporting(run_python, receiver):
    """Locks that a thread of the parent holds at the fork are nobody's in the child."""
    run_python(
        FORKS
        + """
(reader,) = made.meter_provider._measurement_consumer._reader_storages
held = [reader._export_lock, made.meter_provider._measurement_consumer._lock]
for lock in held:
    lock.acquire()
children(1, 4)
for lock in held:
    lock.release()
made.shutdown(20.0)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_METRIC_EXPORT_INTERVAL="3600000",
    )
    assert receiver.total("otel_tokens.calls") == 4


def test_the_applications_own_provider_adds_up_as_well(run_python, receiver):
    run_python(
        """
        import os
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from otel_tokens.telemetry.metrics import Metrics

        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        provider = MeterProvider([reader], Resource.create({"service.instance.id": "x"}), shutdown_on_exit=False)
        metrics = Metrics(provider.get_meter("otel_tokens"), version="1")
        for _ in range(5):
            metrics(record)
        provider.force_flush()
        pid = os.fork()
        metrics(record)
        provider.force_flush()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_METRIC_EXPORT_INTERVAL="3600000",
    )
    assert receiver.total("otel_tokens.calls") == 7
    assert receiver.total("gen_ai.client.inference.duration") == 7


def test_a_spawned_process_counts_for_itself(run_python, receiver, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        """
import multiprocessing
from decimal import Decimal
from otel_tokens.values import Call, Cost, Record, Usage

def work(n):
    from otel_tokens.telemetry.metrics import Metrics
    from otel_tokens.telemetry.setup import make_providers
    made = make_providers()
    metrics = Metrics(made.meter_provider.get_meter("otel_tokens"), version="1")
    call = Call(id="1", provider="openai", endpoint="openai.chat", operation="chat", model="m", started=1.0)
    for _ in range(n):
        metrics(Record(call=call, usage=Usage(input=1, origin="provider"), cost=Cost(), outcome="ok", duration=0.1))
    assert made.shutdown(20.0)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=work, args=(3,)) for _ in range(2)]
    for child in children:
        child.start()
    work(4)
    for child in children:
        child.join()
        assert child.exitcode == 0
"""
    )
    run_python(
        f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_TRACES_EXPORTER="none",
    )
    assert receiver.total("otel_tokens.calls") == 10
    assert len(receiver.instances("otel_tokens.calls")) == 3


def test_a_child_gives_the_port_of_its_parent_back(run_python, free_port):
    run_python(
        f"""
        import os, signal, time
        from otel_tokens.telemetry.exporters import PrometheusZeroFirstReader
        reader = PrometheusZeroFirstReader("127.0.0.1", {free_port})
        server = reader.server
        ready, done = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(done, b"x")
            signal.pause()
        os.read(ready, 1)
        server.close()
        reader = PrometheusZeroFirstReader("127.0.0.1", {free_port})
        again = reader.server
        assert again is not None, "the child still holds the port"
        again.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        """
    )


def test_the_sdk_has_the_private_names_that_the_repair_uses(monkeypatch: pytest.MonkeyPatch):
    assert lost_names() == []
    monkeypatch.setattr(forks, "_resource_holder", lambda provider: None)
    assert lost_names() == ["MeterProvider resource", "TracerProvider resource"]
