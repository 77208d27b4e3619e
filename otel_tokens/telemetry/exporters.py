"""The Prometheus reader: all metrics of a MeterProvider, served with each new series beginning at 0.

Imports the OpenTelemetry SDK, so it is loaded only where an SDK provider is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import MetricReader, MetricsData

from otel_tokens.safely import logger
from otel_tokens.telemetry.exposition import PrometheusServer, ZeroFirst, listen

if TYPE_CHECKING:
    from prometheus_client import Metric

HOST_VARIABLE, PORT_VARIABLE = "OTEL_EXPORTER_PROMETHEUS_HOST", "OTEL_EXPORTER_PROMETHEUS_PORT"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 9464


class PrometheusZeroFirstReader(MetricReader):
    """Serves all metrics of a MeterProvider for Prometheus, each new series beginning at 0 (`exposition`).

    Without arguments, as for `OTEL_METRICS_EXPORTER=otel_tokens_prometheus`, it listens where
    OTEL_EXPORTER_PROMETHEUS_HOST and _PORT say, by default on 127.0.0.1:9464. A port that cannot be had is one
    error message, not an exception: the provider works on without it. `server` is None then.
    """

    def __init__(self, host: str | None = None, port: int | None = None, *, serve: bool = True) -> None:
        super().__init__()  # cumulative for every kind of instrument
        self._taken: list[MetricsData] = []
        self._translator: Any = None
        self.zero_first = ZeroFirst(self.families)
        self.server: PrometheusServer | None = None
        if serve:
            self.serve(host or os.environ.get(HOST_VARIABLE) or DEFAULT_HOST, _port() if port is None else port)

    def serve(self, host: str, port: int) -> PrometheusServer | None:
        """Start serving; None, after an error message, if the address cannot be had."""
        listener = listen(host, port)
        if listener is not None:
            self.server = PrometheusServer(self.zero_first, listener)
        return self.server

    def families(self) -> Iterable[Metric]:
        """Collect, and translate for Prometheus. For one caller at a time, as `zero_first` sees to."""
        if self._translator is None:
            # Loads prometheus_client: tens of milliseconds that only a scrape has to pay.
            from opentelemetry.exporter.prometheus import _CustomCollector  # pyright: ignore[reportPrivateUsage]

            self._translator = _CustomCollector()
        self._taken.clear()
        self.collect()
        for data in self._taken:
            self._translator.add_metrics_data(data)
        return self._translator.collect()

    # The base class's parameters, which it passes by name.
    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 0, **kwargs: Any) -> None:
        self._taken.append(metrics_data)

    def force_flush(self, timeout_millis: float = 0) -> bool:
        """Nothing to do: values wait for the scraper, and a flush must not count as a scrape."""
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        """Stop serving and free the port."""
        if self.server is not None:
            self.server.close()


def _port() -> int:
    given = os.environ.get(PORT_VARIABLE) or str(DEFAULT_PORT)
    try:
        return int(given)
    except ValueError:
        logger.error("%s is not a number: %r; using %s", PORT_VARIABLE, given, DEFAULT_PORT)
        return DEFAULT_PORT
