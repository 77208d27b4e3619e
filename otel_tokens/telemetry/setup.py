"""OpenTelemetry providers for an application that has none: what the environment and the settings ask for.

Without a word from either there is no exporter, no connection and no provider. A mistake in the environment is
one error message; the application and whatever else was asked for go on.
"""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

from otel_tokens.conventions import SERVICE_INSTANCE
from otel_tokens.safely import logger
from otel_tokens.telemetry.exporters import DEFAULT_HOST, DEFAULT_PORT, PrometheusZeroFirstReader
from otel_tokens.telemetry.flush import Flusher, flush
from otel_tokens.telemetry.forks import instance_id, renew_instance

SIGNALS = ("traces", "metrics")
PROMETHEUS = frozenset({"prometheus", "otel_tokens_prometheus"})
GRPC, HTTP = "grpc", "http/protobuf"
GRPC_PORT = 4317
NO_GRPC = (
    "OTLP over grpc needs a package that is not installed: pip install 'otel-tokens[grpc]', or set "
    "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
)
_GRPC_PACKAGE = "opentelemetry.exporter.otlp.proto.grpc"
_PROTOCOLS = {"otlp_proto_grpc": GRPC, "otlp_proto_http": HTTP}
_MODULES = {
    ("traces", HTTP): ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "OTLPSpanExporter"),
    ("metrics", HTTP): ("opentelemetry.exporter.otlp.proto.http.metric_exporter", "OTLPMetricExporter"),
    ("traces", GRPC): ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "OTLPSpanExporter"),
    ("metrics", GRPC): ("opentelemetry.exporter.otlp.proto.grpc.metric_exporter", "OTLPMetricExporter"),
}


class Wanted(Protocol):
    """What is asked of the settings, whose names these are."""

    @property
    def prometheus(self) -> bool | None:
        """Whether to serve /metrics; None: if nothing else takes the metrics."""
        ...

    @property
    def prometheus_host(self) -> str:
        """Where to serve."""
        ...

    @property
    def prometheus_port(self) -> int:
        """Where to serve."""
        ...

    @property
    def otlp_endpoint(self) -> str | None:
        """Base address of an OTLP collector; None: what the variables say."""
        ...


@dataclass(frozen=True, slots=True)
class Exports:
    """A plain `Wanted`."""

    prometheus: bool | None = False
    prometheus_host: str = DEFAULT_HOST
    prometheus_port: int = DEFAULT_PORT
    otlp_endpoint: str | None = None


@dataclass(slots=True)
class Providers:
    """The providers made, None for a signal that nobody wants. They end by `shutdown`, not by themselves."""

    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    prometheus: PrometheusZeroFirstReader | None = None
    flushers: list[Flusher] = field(default_factory=list[Flusher])

    def all(self) -> list[Any]:
        """The providers there are."""
        return [made for made in (self.tracer_provider, self.meter_provider) if made is not None]

    def flush(self, timeout: float = 2.0) -> bool:
        """Hand over what is pending, within `timeout` seconds. False if that was not possible."""
        return flush(self.flushers, timeout)

    def shutdown(self, timeout: float = 2.0) -> bool:
        """Flush, then stop serving and exporting, within about `timeout` seconds."""
        done = self.flush(timeout)
        if self.prometheus is not None:
            self.prometheus.shutdown()
        while self.flushers:
            self.flushers.pop().stop()
        return done


def make_providers(
    wanted: Wanted | None = None,
    *,
    resource: Resource | None = None,
    environ: Mapping[str, str] | None = None,
    signals: Collection[str] = SIGNALS,
) -> Providers:
    """The providers that `wanted` and the `OTEL_*` variables ask for. Does not make them the global ones.

    `signals` are those the application has no provider for: "traces", "metrics".
    """
    env = os.environ if environ is None else environ
    wanted = wanted or Exports()
    made = Providers()
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return made
    resource = resource or Resource.create({})
    if SERVICE_INSTANCE not in resource.attributes:
        # Without it the counters of several processes are one series that jumps. SDKs before 1.43 leave it out.
        resource = resource.merge(Resource({SERVICE_INSTANCE: str(uuid.uuid4())}))
    plan = _Plan(wanted, env)
    processors = [p for name in plan.names("traces", signals) if (p := plan.span_processor(name)) is not None]
    if processors:
        made.tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for processor in processors:
            made.tracer_provider.add_span_processor(processor)
    readers: list[MetricReader] = []
    for name in plan.names("metrics", signals):
        reader = plan.reader(name)
        if reader is not None:
            readers.append(reader)
        if isinstance(reader, PrometheusZeroFirstReader):
            made.prometheus = reader
    if readers:
        made.meter_provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    for provider in made.all():
        made.flushers.append(Flusher(provider))
        _instances[provider] = instance_id(provider)
    return made


def lacks_grpc(wanted: Wanted) -> bool:
    """Whether a signal is to be sent over gRPC, and the package for that is not installed."""
    plan = _Plan(wanted, os.environ)
    return any(plan.over_grpc(signal) for signal in SIGNALS) and find_spec(_GRPC_PACKAGE) is None


_instances: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def _after_fork_in_child() -> None:
    for provider, parents in list(_instances.items()):
        renew_instance(provider, parents)
        _instances[provider] = instance_id(provider)


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Plan:
    """The exporters by name, from the variables of the OpenTelemetry specification."""

    def __init__(self, wanted: Wanted, env: Mapping[str, str]) -> None:
        self._wanted = wanted
        self._env = env
        self._told = False

    def names(self, signal: str, signals: Collection[str]) -> list[str]:
        """The exporters of a signal. Unlike the specification's default, none is assumed without an endpoint."""
        if signal not in signals:
            return []
        asked = self._env.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip()
        if asked:
            found = [name.strip() for name in asked.split(",") if name.strip() and name.strip() != "none"]
        else:
            found = ["otlp"] if self._endpoint(signal) else []
        serve = self._wanted.prometheus
        if signal == "metrics" and (serve or (serve is None and not asked and not found)):
            found.append("prometheus")
        # Both names are the same endpoint here.
        return list(dict.fromkeys("prometheus" if name in PROMETHEUS else name for name in found))

    def over_grpc(self, signal: str) -> bool:
        """Whether this signal goes to a collector over gRPC."""
        endpoint = self._endpoint(signal)
        return endpoint is not None and self._protocol(signal, endpoint) == GRPC

    def _endpoint(self, signal: str) -> str | None:
        return (
            self._env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
            or self._wanted.otlp_endpoint
            or self._env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
            or None
        )

    def span_processor(self, name: str) -> SpanProcessor | None:
        """The span processor of one exporter."""
        if name == "console":
            return SimpleSpanProcessor(ConsoleSpanExporter())
        exporter = self._exporter("traces", name)
        return None if exporter is None else BatchSpanProcessor(exporter)

    def reader(self, name: str) -> MetricReader | None:
        """The metric reader of one exporter."""
        if name in PROMETHEUS:
            return PrometheusZeroFirstReader(self._wanted.prometheus_host, self._wanted.prometheus_port)
        exporter = ConsoleMetricExporter() if name == "console" else self._exporter("metrics", name)
        if exporter is None or isinstance(exporter, MetricReader):
            return exporter
        return PeriodicExportingMetricReader(exporter)

    def _exporter(self, signal: str, name: str) -> Any:
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        try:
            if name == "otlp" or name in _PROTOCOLS:
                return self._otlp(signal, name)
            from importlib.metadata import entry_points  # reads the disk: only for exporters of other packages

            for found in entry_points(group=f"opentelemetry_{signal}_exporter", name=name):
                return found.load()()
            logger.error("%s: there is no exporter %r; the application goes on without it", variable, name)
        except Exception as error:  # an exporter may reject anything in its environment
            logger.error("%s: exporter %r cannot be made (%s: %s)", variable, name, type(error).__name__, error)
        return None

    def _otlp(self, signal: str, name: str) -> Any:
        endpoint = self._endpoint(signal)
        protocol = _PROTOCOLS.get(name) or self._protocol(signal, endpoint)
        if (signal, protocol) not in _MODULES:
            logger.error("OTLP protocol %r is not known; use %s or %s", protocol, GRPC, HTTP)
            return None
        module, cls = _MODULES[signal, protocol]
        from importlib import import_module  # exporters load a lot, gRPC most of all

        try:
            kind: Callable[..., Any] = getattr(import_module(module), cls)
        except ImportError:
            if not self._told:  # both signals would say the same
                logger.error(NO_GRPC)
            self._told = True
            return None
        own = self._wanted.otlp_endpoint
        if own is None or endpoint != own:
            return kind()  # it reads its variables itself
        return kind(endpoint=own if protocol == GRPC else f"{own.rstrip('/')}/v1/{signal}")

    def _protocol(self, signal: str, endpoint: str | None) -> str:
        given = self._env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL") or self._env.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL"
        )
        if given:
            return given.strip()
        # The port that is registered for OTLP over gRPC says as much.
        try:
            port = urlsplit(endpoint or "").port
        except ValueError:
            port = None
        return GRPC if port == GRPC_PORT else HTTP
