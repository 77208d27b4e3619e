"""`otel-tokens run` in front of real servers: every request's call is in the ledger and reaches the collector once."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

REQUESTS = 9

WEB = """
c = client()
def call():
    c.chat.completions.create(model="gpt-5.4", messages=[{"role": "user", "content": "hello"}])
def app(environ, start_response):
    if environ["PATH_INFO"] == "/call":
        call()
    start_response("200 OK", [])
    return [b"done"]
async def asgi(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] == "/call":
            call()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
"""


def exported_calls(bodies: list[tuple[str, bytes]]) -> tuple[int, int]:
    """Spans, and calls by the last cumulative value of each instance."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans, calls = 0, defaultdict[str, int](int)
    for path, body in bodies:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans += sum(len(scope.spans) for scope in resource.scope_spans)
            continue
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            found = {item.key: item.value.string_value for item in resource.resource.attributes}
            metrics = [metric for scope in resource.scope_metrics for metric in scope.metrics]
            for metric in metrics:
                if metric.name == "otel_tokens.calls":
                    points = metric.sum.data_points
                    calls[found["service.instance.id"]] = sum(int(p.as_int or p.as_double) for p in points)
    return spans, sum(calls.values())


@pytest.mark.parametrize(
    ("module", "arguments", "code"),
    [
        ("gunicorn", ["-b", "127.0.0.1:{port}", "-w", "2", "web:app"], 0),
        ("gunicorn", ["-b", "127.0.0.1:{port}", "-w", "2", "--preload", "web:app"], 0),
        ("uvicorn", ["--port", "{port}", "--lifespan", "off", "web:asgi"], -15),
        ("uvicorn", ["--port", "{port}", "--lifespan", "off", "--workers", "2", "web:asgi"], 0),
    ],
)
def test_calls_of_all_workers_add_up(
    workshop: Any, collector: Any, free_port: int, module: str, arguments: list[str], code: int
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"pip install {module}")
    workshop.program(WEB, "web.py")
    command = [sys.executable, "-m", module, *(argument.format(port=free_port) for argument in arguments)]
    options = ["--ledger", str(workshop.ledger), "--otlp", collector.url, "--report-json", "r.json"]
    process = workshop.start("run", *options, *command)
    url = f"http://127.0.0.1:{free_port}"
    _wait_for(f"{url}/", process)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: urllib.request.urlopen(f"{url}/call", timeout=300).read(), range(REQUESTS)))
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert json.loads((workshop.folder / "r.json").read_text())["total"]["calls"] == REQUESTS
    assert exported_calls(collector.got) == (REQUESTS, REQUESTS)


def _wait_for(url: str, process: Any) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=300).close()
            return
        except OSError:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
    raise AssertionError("the server did not begin to listen")
