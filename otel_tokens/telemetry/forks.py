"""Repairs OpenTelemetry in a forked child: it starts from zero and can export.

The SDK gives a forked child a new `service.instance.id` and a new export thread. Three things remain that make sums
wrong or exports hang: what the parent's histograms have counted, locks that a thread of the parent held, and open
connections that are shared with the parent. There is no public way to any of them, so this module uses private names,
each only if it exists. `otel-tokens doctor` reports names that the installed SDK lacks (`lost_names`).
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from otel_tokens.conventions import SERVICE_INSTANCE


def lost_names() -> list[str]:
    """The private names that are used here and that the installed SDK no longer has."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(SpanExporter()))
    histogram: Any = meters.get_meter("otel_tokens").create_histogram("check")
    histogram.record(1)
    consumer = getattr(histogram, "_measurement_consumer", None)
    storage = _entries(consumer, "_reader_storages").get(reader)
    matches = _entries(storage, "_instrument_view_instrument_matches").get(histogram, [None])
    tracer: Any = tracers.get_tracer("otel_tokens")
    found = {
        "Histogram._measurement_consumer": consumer is not None,
        "MeasurementConsumer._reader_storages": storage is not None,
        "MetricReaderStorage._instrument_view_instrument_matches": matches[0] is not None,
        "_ViewInstrumentMatch._attributes_aggregation": bool(_entries(matches[0], "_attributes_aggregation")),
        "Tracer.span_processor._span_processors": bool(getattr(tracer.span_processor, "_span_processors", ())),
        "MeterProvider resource": _resource_holder(meters) is not None,
        "TracerProvider resource": _resource_holder(tracers) is not None,
    }
    return [name for name, there in found.items() if not there]


_LOCKS = ("_lock", "_export_lock", "_instrument_registration_lock")


def _fresh_locks(thing: Any) -> None:
    """Replace the locks of `thing` by unlocked ones of the same kind."""
    for name in _LOCKS:
        lock = getattr(thing, name, None)
        if lock is not None and hasattr(lock, "acquire"):
            with contextlib.suppress(AttributeError, TypeError):
                setattr(thing, name, threading.RLock() if "RLock" in type(lock).__name__ else threading.Lock())


def repair_metrics(instruments: Iterable[Any]) -> None:
    """Forget what the parent recorded in our `instruments`, and make their readers usable again."""
    real = [getattr(item, "_real_instrument", None) or item for item in instruments]
    consumers = {id(c): c for item in real if (c := getattr(item, "_measurement_consumer", None)) is not None}
    for consumer in consumers.values():
        _fresh_locks(consumer)
        for reader, storage in _entries(consumer, "_reader_storages").items():
            _fresh_locks(reader)
            _fresh_locks(storage)
            _forget(storage, real)
            repair_exporter(getattr(reader, "_exporter", None))


def _entries(thing: Any, name: str) -> dict[Any, Any]:
    """A copy of the dictionary `thing.name`, empty if there is none."""
    found: Any = getattr(thing, name, None)
    return dict(found) if isinstance(found, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _forget(storage: Any, instruments: list[Any]) -> None:
    matches = _entries(storage, "_instrument_view_instrument_matches")
    for instrument in instruments:
        if matches.pop(instrument, None) is not None:
            del storage._instrument_view_instrument_matches[instrument]
    for found in matches.values():
        for match in found:
            _fresh_locks(match)
            for aggregation in _entries(match, "_attributes_aggregation").values():
                _fresh_locks(aggregation)


def repair_tracer(tracer: Any) -> None:
    """Give the exporters of a tracer's span processors connections of their own."""
    processor = getattr(getattr(tracer, "_tracer", None) or tracer, "span_processor", None)
    for item in getattr(processor, "_span_processors", ()):
        repair_exporter(getattr(item, "span_exporter", None))


def repair_exporter(exporter: Any) -> None:
    """Drop the connections that `exporter` shares with the parent; the next export opens new ones."""
    if exporter is None:
        return
    connect = getattr(exporter, "_initialize_channel_and_stub", None)
    if connect is not None:  # gRPC
        connect()
        return
    for thing in _parts(exporter, depth=3):
        if type(thing).__module__.startswith(("requests.", "urllib3.")):
            for name in ("close", "clear"):
                # Closes this process's copies of the sockets only, and leaves the session usable.
                drop = getattr(thing, name, None)
                if drop is not None:
                    drop()
                    break


def _parts(thing: Any, depth: int) -> Iterable[Any]:
    for value in list(getattr(thing, "__dict__", {}).values()):
        if type(value).__module__.startswith(("requests.", "urllib3.")):
            yield value
        elif depth > 1 and type(value).__module__.startswith("opentelemetry."):
            yield from _parts(value, depth - 1)


def instance_id(provider: Any) -> str | None:
    """The `service.instance.id` of a tracer or meter provider's resource."""
    found = _resource_holder(provider)
    value = None if found is None else getattr(*found).attributes.get(SERVICE_INSTANCE)
    return value if isinstance(value, str) else None


def renew_instance(provider: Any, parents: str | None) -> None:
    """Give a child's provider an instance id of its own, unless the SDK has done so."""
    found = _resource_holder(provider)
    if found is None or parents is None or instance_id(provider) != parents:
        return
    update = getattr(provider, "_update_resource", None)
    from opentelemetry.sdk.resources import Resource  # the SDK is only there if a provider of it is

    new = Resource({SERVICE_INSTANCE: str(uuid.uuid4())})
    if update is not None:
        update(new)
    else:
        where, name = found
        setattr(where, name, getattr(where, name).merge(new))


def _resource_holder(provider: Any) -> tuple[Any, str] | None:
    """Where a provider keeps its resource: an object and its attribute."""
    for where, name in ((getattr(provider, "_sdk_config", None), "resource"), (provider, "_resource")):
        if getattr(where, name, None) is not None:
            return where, name
    return None
