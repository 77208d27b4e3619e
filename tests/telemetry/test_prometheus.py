"""What a real Prometheus makes of the endpoint: `increase()` sees the first call of a model."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.metrics import MeterProvider

from otel_tokens.telemetry.exporters import PrometheusZeroFirstReader
from otel_tokens.telemetry.metrics import Metrics


@pytest.fixture
def metrics_and_server():
    reader = PrometheusZeroFirstReader("127.0.0.1", 0)
    server = reader.server
    provider = MeterProvider([reader], shutdown_on_exit=False)
    yield Metrics(provider.get_meter("otel_tokens"), version="1"), server
    provider.shutdown()


def test_increase_sees_the_first_call(start_real_prometheus, metrics_and_server, make_record):
    metrics, server = metrics_and_server
    prometheus = start_real_prometheus(f"127.0.0.1:{server.port}")
    prometheus.wait("up", lambda found: found == [1])
    metrics(make_record())
    name = "gen_ai_client_inference_usage_input_tokens_total"
    prometheus.wait(name, lambda found: found == [1000])

    def about(right: float):
        # Extrapolated to the window's edges it is more or less than the step itself, the nearer the more samples
        # there are: never nothing.
        return lambda found: found and found[0] == pytest.approx(right, rel=0.5)

    prometheus.wait(f"sum(increase({name}[1m]))", about(1000))
    prometheus.wait("sum(increase(otel_tokens_cost_USD_total[1m]))", about(0.00105))
    prometheus.wait("sum(increase(gen_ai_client_inference_duration_seconds_count[1m]))", about(1))
    assert (
        prometheus.query(
            "histogram_quantile(0.5, sum by (le) (increase(gen_ai_client_inference_duration_seconds_bucket[1m])))"
        )[0]
        <= 0.64
    )
