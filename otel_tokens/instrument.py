"""The composition root: settings in, rooms built, SDKs patched. The only module that knows everybody."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import wrapt
from opentelemetry import metrics as otel_metrics
from opentelemetry import trace as otel_trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # pyright: ignore[reportMissingTypeStubs]

from otel_tokens import context
from otel_tokens.background import Worker
from otel_tokens.capture import foreign
from otel_tokens.capture.call import Drivers
from otel_tokens.capture.patch import Patcher
from otel_tokens.capture.request import Requests
from otel_tokens.conventions import SCOPE
from otel_tokens.errors import ConfigError
from otel_tokens.lifecycle import Engine, Sink
from otel_tokens.providers.hosts import resolve
from otel_tokens.providers.registry import providers
from otel_tokens.safely import safely
from otel_tokens.settings import Settings, load_settings
from otel_tokens.usage.normalise import endpoint_of, normalise_block
from otel_tokens.values import Cost, Record, Usage

logger = logging.getLogger("otel_tokens")


@dataclass(slots=True)
class Runtime:
    """All that one `instrument()` made, for doctor, for the guard, and to be undone."""

    settings: Settings
    patcher: Patcher
    engine: Engine
    metrics: Any = None
    ledger: Any = None
    guard: Any = None
    pricer: Any = None
    providers: Any = None
    pid: int = field(default_factory=os.getpid)


_runtime: Runtime | None = None
_lock = threading.RLock()
_patcher = Patcher()
_worker = Worker()


def runtime() -> Runtime | None:
    """What `instrument()` built, or None."""
    return _runtime


def instrument(
    tracer_provider: Any = None,
    meter_provider: Any = None,
    *,
    config: str | Path | None = None,
    ledger: str | Path | bool | None = None,
    budgets: Sequence[Any] = (),
    on_record: Callable[[Record], object] | None = None,
    **settings: Any,
) -> None:
    """Meter every LLM call of this process. Calling it again while it is on does nothing.

    `tracer_provider` and `meter_provider` default to the application's global ones; when it has none, what the
    `OTEL_*` variables and the settings ask for is set up. `config` is the settings file, `ledger` a path, True for
    the default place or False for none, `budgets` a sequence of `Budget`, `on_record` takes each `Record`. Further
    keywords are settings by name (docs/settings.md). Raises ConfigError for a wrong setting, before anything is
    patched.
    """
    global _runtime
    with _lock:
        if _runtime is not None:
            return
        loaded = load_settings(config, ledger=str(ledger) if isinstance(ledger, Path) else ledger, **settings)
        if not loaded.enabled:
            return
        _runtime = _build(loaded, tracer_provider, meter_provider, tuple(budgets), on_record)
        _hook_exit()


def uninstrument() -> None:
    """Restore every patched function, stop what `instrument()` started, and forget it. Harmless when it is off."""
    global _runtime
    with _lock:
        held, _runtime = _runtime, None
        if held is None:
            return
        held.patcher.uninstall()
        flush()
        _close(held)


def _build(
    settings: Settings,
    tracer_provider: Any,
    meter_provider: Any,
    budgets: tuple[Any, ...],
    on_record: Callable[[Record], object] | None,
) -> Runtime:
    # Rooms that load third-party libraries are imported here, so that importing otel_tokens stays cheap.
    from otel_tokens.telemetry.metrics import Metrics
    from otel_tokens.telemetry.spans import Spans

    pricer = _make_pricer(settings)
    tracers, meters, own = _providers(settings, tracer_provider, meter_provider)
    spans = Spans(tracers.get_tracer(SCOPE), semconv=settings.semconv, cost_aliases=settings.cost_aliases)
    metrics = Metrics(
        meters.get_meter(SCOPE),
        semconv=settings.semconv,
        metric_attributes=settings.metric_attributes,
        token_histograms=settings.token_histograms,
        cost_histogram=settings.cost_histogram,
        chunk_histogram=settings.chunk_histogram,
        label_limit=settings.label_limit,
    )
    ledger = _open_ledger(settings, metrics)
    sinks: list[tuple[str, Sink]] = []
    if ledger is not None:
        sinks.append(("ledger", ledger.write))
    sinks.append(("metrics", metrics))
    if on_record is not None:
        sinks.append(("on_record", on_record))
    engine = Engine(price=pricer, spans=spans, sinks=tuple(sinks), worker=_worker, foreign=settings.foreign)
    guard = _make_guard(settings, budgets, engine, pricer, metrics)
    engine.guard = guard
    context.configure(settings.propagate_tags)
    _patch(settings, engine)
    return Runtime(settings, _patcher, engine, metrics, ledger, guard, pricer, own)


def _patch(settings: Settings, engine: Engine) -> None:
    if settings.foreign == "own":
        for name in foreign.take_off():
            logger.info("took %s off: foreign spans are ours to make (foreign: own)", name)
    requests = Requests(
        lambda url, sdk: resolve(url, sdk=sdk, user_hosts=settings.hosts),
        context.current_tags,
        settings.include_usage,
    )
    for provider in providers():
        if provider.sdk not in settings.disabled_sdks:
            _patcher.install(provider, Drivers(engine, requests, provider).wrapper)


def _make_pricer(settings: Settings) -> Any:
    from otel_tokens.pricing.catalog import Catalog
    from otel_tokens.pricing.price import Pricer

    catalog = Catalog(_price_rules(settings))
    catalog.warm()
    return Pricer(catalog)


def _price_rules(settings: Settings) -> tuple[Any, ...]:
    return ()


def _open_ledger(settings: Settings, metrics: Any) -> Any:
    if not settings.ledger:
        return None
    from otel_tokens.ledger.ledger import Ledger

    return Ledger(
        settings.ledger,
        max_age_days=settings.ledger_max_age_days,
        max_bytes=settings.ledger_max_bytes,
        on_error=lambda _: metrics.ledger_error(),
    )


def _make_guard(settings: Settings, budgets: tuple[Any, ...], engine: Engine, pricer: Any, metrics: Any) -> Any:
    return None


def _providers(settings: Settings, tracer_provider: Any, meter_provider: Any) -> tuple[Any, Any, Any]:
    """The providers to use, and those we made (None when the application has its own, or nobody asks for any).

    What stays unset is the API's proxy: providers that the application sets later are found then.
    """
    tracers = tracer_provider or otel_trace.get_tracer_provider()
    meters = meter_provider or otel_metrics.get_meter_provider()
    needs_traces = isinstance(tracers, otel_trace.ProxyTracerProvider)
    needs_metrics = not hasattr(meters, "force_flush")  # the SDK's has it, the API's proxy not
    asked = settings.prometheus or settings.otlp_endpoint or any(
        name.startswith(("OTEL_EXPORTER_OTLP_", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER")) for name in os.environ
    )
    if not (asked and (needs_traces or needs_metrics)):
        return tracers, meters, None
    from otel_tokens.telemetry.setup import make_providers

    made = make_providers(settings)
    if needs_traces and made.tracer_provider is not None:
        tracers = made.tracer_provider
    if needs_metrics and made.meter_provider is not None:
        meters = made.meter_provider
    return tracers, meters, made


def flush(timeout: float | None = None) -> None:
    """Finish what is queued and hand telemetry over, in at most `timeout` seconds (default: setting flush_timeout)."""
    held = _runtime
    limit = timeout if timeout is not None else held.settings.flush_timeout if held is not None else 2.0
    _worker.flush(limit)
    if held is None:
        return
    if held.guard is not None:
        safely("guard.flush", held.guard.flush, limit)
    if held.ledger is not None:
        safely("ledger.flush", held.ledger.flush)
    if held.providers is not None:
        safely("telemetry.flush", held.providers.flush, limit)


def _close(held: Runtime) -> None:
    if held.guard is not None:
        safely("guard.close", held.guard.close)
    if held.ledger is not None:
        safely("ledger.close", held.ledger.close)
    if held.metrics is not None:
        safely("metrics.shutdown", held.metrics.shutdown)
    if held.providers is not None:
        safely("telemetry.shutdown", held.providers.shutdown, held.settings.flush_timeout)
    context.configure(())


_exit_hooked = False


def _hook_exit() -> None:
    """Flush when the process ends: `atexit`, and multiprocessing's own end, which leaves by os._exit."""
    global _exit_hooked
    if not _exit_hooked:
        _exit_hooked = True
        atexit.register(safely, "flush at exit", flush)
        wrapt.register_post_import_hook(_hook_multiprocessing, "multiprocessing.util")


def _hook_multiprocessing(util: Any) -> None:
    # A forked child forgets its parent's finalizers; what is registered after the fork is kept.
    util.register_after_fork(_worker, lambda _: util.Finalize(None, safely, ("flush at exit", flush), exitpriority=0))


class OtelTokensInstrumentor(BaseInstrumentor):
    """The entry point `otel_tokens` of `opentelemetry-instrument`; keywords are those of `instrument()`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing: an SDK is patched when, and if, it is imported."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        kwargs.pop("skip_dep_check", None)
        instrument(**kwargs)

    def _uninstrument(self, **kwargs: Any) -> None:
        uninstrument()


def normalise(provider: str, raw_usage: Any, *, endpoint: str | None = None) -> Usage:
    """The `Usage` of a provider's raw usage block (dict or SDK object), in our one convention.

    `endpoint` names the operation ("openai.chat", "openai.responses", "anthropic.messages" …); without it, it is
    found by the provider and the block's own fields. Never raises for odd numbers: they are flagged.
    """
    return normalise_block(raw_usage, endpoint_of(provider, raw_usage, endpoint))


def price(
    model: str, usage: Usage, *, provider: str | None = None, tier: str | None = None, at: datetime | None = None
) -> Cost:
    """The cost of `usage` by the catalogue at `at` (default: now). Unknown prices give status "unpriced"."""
    raise NotImplementedError


def report(ledger: str | Path | None = None, *, by: str = "model", since: Any = None) -> Any:
    """A `Report` of the ledger's calls (default: this process's ledger, else the default place)."""
    raise NotImplementedError


def guard() -> Any:
    """The process's `Guard`."""
    raise NotImplementedError


_ = (ConfigError, sys)
