"""Builds the rooms from settings and joins them: the only module, with `instrument`, that knows everybody."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import metrics as otel_metrics
from opentelemetry import trace as otel_trace

from otel_tokens import context
from otel_tokens.assemble_guard import examined_budgets, guard_option, make_guard
from otel_tokens.background import Worker
from otel_tokens.capture.patch import Patcher
from otel_tokens.capture.takeoff import foreign_instrumentors, take_off
from otel_tokens.conventions import SCOPE
from otel_tokens.errors import ConfigError
from otel_tokens.lifecycle.engine import Engine, Sink
from otel_tokens.providers.hosts import resolve
from otel_tokens.providers.registry import providers, sdk_names
from otel_tokens.providers.spec import Provider
from otel_tokens.safely import on_fault
from otel_tokens.settings import Settings, refuse
from otel_tokens.settings.given import nearest, shown
from otel_tokens.settings.yaml import parse_file
from otel_tokens.values import UNPRICED, Cost, Record

if TYPE_CHECKING:
    from otel_tokens.guard.guard import Guard
    from otel_tokens.ledger.ledger import Ledger
    from otel_tokens.pricing.price import Pricer
    from otel_tokens.pricing.rules import PriceRule
    from otel_tokens.telemetry.metrics import Metrics
    from otel_tokens.telemetry.setup import Providers

logger = logging.getLogger("otel_tokens")


@dataclass(frozen=True, slots=True)
class Given:
    """What `instrument()` was given beside the settings."""

    tracer_provider: Any = None
    meter_provider: Any = None
    budgets: tuple[Any, ...] = ()
    on_record: Callable[[Record], object] | None = None


@dataclass(slots=True, eq=False, repr=False)
class Runtime:
    """All that one `instrument()` made: for doctor, for the guard, and to be undone."""

    settings: Settings
    patcher: Patcher
    engine: Engine
    metrics: Metrics
    ledger: Ledger | None
    guard: Guard | None
    pricer: Pricer
    providers: Providers | None
    given: Given


def build(settings: Settings, given: Given, patcher: Patcher, worker: Worker) -> Runtime:
    """All rooms, joined and patched in. Raises ConfigError before anything is patched."""
    # Rooms that load third-party libraries are imported here, so that importing otel_tokens stays cheap.
    from otel_tokens.telemetry.board import meter_of
    from otel_tokens.telemetry.metrics import Metrics
    from otel_tokens.telemetry.spans import Spans

    rules, mistaken = examined_prices(settings)
    budgets, problems = examined_budgets(settings, given.budgets)
    refuse([*examined_sdks(settings), *mistaken, *problems], settings.on_config_error)
    pricer = _pricer_with(rules)
    tracers, meters, own = find_providers(settings, given)
    spans = Spans(tracers.get_tracer(SCOPE), semconv=settings.semconv, cost_aliases=settings.cost_aliases)
    metrics = Metrics(
        meter_of(meters),
        semconv=settings.semconv,
        metric_attributes=settings.metric_attributes,
        token_histograms=settings.token_histograms,
        cost_histogram=settings.cost_histogram,
        chunk_histogram=settings.chunk_histogram,
        label_limit=settings.label_limit,
    )
    ledger = open_ledger(settings, metrics)
    sinks: list[tuple[str, Sink]] = []
    if ledger is not None:
        sinks.append(("ledger", ledger.write))
    sinks.append(("metrics", metrics))
    if given.on_record is not None:
        sinks.append(("on_record", given.on_record))
    engine = Engine(price=pricer, spans=spans, sinks=tuple(sinks), worker=worker, foreign=settings.foreign)
    if isinstance(pricer, LazyPricer):
        pricer.then = partial(setattr, engine, "price")  # one hop less for every further call
    guard: Guard | None = None
    if budgets:
        guard = engine.guard = make_guard(settings, budgets, pricer, spans, metrics)
        engine.cut_cleanly = guard_option(settings, "on_cut") == "finish"
    context.configure(settings.propagate_tags)
    on_fault(metrics.fault)
    _patch(settings, engine, patcher)
    metrics.beside_foreign(bool(foreign_instrumentors()) and settings.foreign != "own")
    return Runtime(settings, patcher, engine, metrics, ledger, guard, pricer, own, given)


def examined_sdks(settings: Settings) -> list[ConfigError]:
    """Every name in `disabled_sdks` that is no SDK's: it would go on being metered."""
    if not settings.disabled_sdks:
        return []
    known = sdk_names()
    place = settings.sources.get("disabled_sdks")
    return [
        ConfigError(
            f"{shown(name)} is not one of {', '.join(known)}{nearest(name, known)}", where=place, key="disabled_sdks"
        )
        for name in settings.disabled_sdks
        if name not in known
    ]


def _patch(settings: Settings, engine: Engine, patcher: Patcher) -> None:
    if settings.foreign == "own":
        for name in take_off():
            logger.info("took %s off: spans are ours to make (foreign: own)", name)
    pricer = engine.price

    def install(provider: Provider) -> None:
        @cache
        def wrappers() -> Callable[[str], Callable[..., Any]]:
            """What wraps the targets of the SDK: imported with the SDK, not before."""
            from otel_tokens.capture.call import Drivers
            from otel_tokens.capture.request import Requests

            if isinstance(pricer, LazyPricer):
                pricer.start()
            resolved = partial(_resolve, settings)
            return Drivers(engine, Requests(resolved, context.current_tags, settings.include_usage), provider).wrapper

        def wrapper(kind: str) -> Callable[..., Any]:
            return wrappers()(kind)

        patcher.install(provider, wrapper)

    for provider in providers():
        if provider.sdk not in settings.disabled_sdks:
            install(provider)


def _resolve(settings: Settings, url: Any, sdk: str) -> Any:
    return resolve(url, sdk=sdk, user_hosts=settings.hosts)


def make_pricer(settings: Settings) -> Pricer:
    """The pricer of these settings. Raises ConfigError with every mistake in the user's prices."""
    rules, problems = examined_prices(settings)
    refuse(problems, settings.on_config_error)
    return _pricer_with(rules)


def examined_prices(settings: Settings) -> tuple[list[PriceRule], list[ConfigError]]:
    """The user's rules of prices without a mistake, and every mistake in `prices:` and in the `prices_file`."""
    if not settings.prices and settings.prices_file is None:
        return [], []
    from otel_tokens.pricing.rules import examined_rules

    rules, problems = examined_rules(settings.prices, settings.config or "prices")
    if settings.prices_file is None:
        return list(rules), problems
    try:
        held, wrong = parse_file(settings.prices_file)
    except ConfigError as error:
        return list(rules), [*problems, *(error.problems or (error,))]
    more, mistaken = examined_rules(held, settings.prices_file)
    return [*rules, *more], [*problems, *wrong, *mistaken]


def _pricer_with(rules: Sequence[PriceRule]) -> Pricer:
    """Without rules of the user's a pricer is made later, and in the background."""
    return _pricer(rules) if rules else cast("Pricer", LazyPricer())


def _pricer(rules: Sequence[PriceRule] = ()) -> Pricer:
    from otel_tokens.pricing.catalog import Catalog
    from otel_tokens.pricing.price import Pricer

    catalog = Catalog(rules)
    catalog.warm()
    return Pricer(catalog)


class LazyPricer:
    """Stands for a `Pricer` that is made in the background, once there is an SDK; a call that comes earlier waits."""

    def __init__(self) -> None:
        from otel_tokens.pricing.loading import Background

        self._made: Pricer | None = None
        self._making = Background(_pricer)
        self.start = self._making.start
        self.then: Callable[[Any], object] | None = None

    def __call__(self, *args: Any, **keywords: Any) -> Cost:
        """Price, as `Pricer` does; unpriced while that cannot be had (`loading.PATIENCE`)."""
        if self._made is None:
            self._made = self._making.get()
            if self._made is None:
                return UNPRICED
            if self.then is not None:
                self.then(self._made)
        return self._made(*args, **keywords)

    def __getattr__(self, name: str) -> Any:
        """What else the pricer has."""
        return getattr(self._making.get(), name)


def open_ledger(settings: Settings, metrics: Metrics) -> Ledger | None:
    """The ledger of these settings, or None."""
    if not settings.ledger:
        return None
    from otel_tokens.ledger.ledger import Ledger

    return Ledger(
        settings.ledger,
        max_age_days=settings.ledger_max_age_days,
        max_bytes=settings.ledger_max_bytes,
        on_lost=metrics.ledger_error,
    )


# ---- OpenTelemetry's providers -------------------------------------------------------------------------------
def find_providers(settings: Settings, given: Given) -> tuple[Any, Any, Providers | None]:
    """The providers to use, and those we made (None when the application has its own, or nobody asks for any).

    What stays unset is the API's proxy: providers that the application sets later are found then.
    """
    tracers, meters = _current(given)
    needs_traces = isinstance(tracers, otel_trace.ProxyTracerProvider)
    needs_metrics = not hasattr(meters, "force_flush")  # the SDK's has it, the API's proxy not
    asked = (
        settings.prometheus
        or settings.otlp_endpoint
        or any(
            name.startswith(("OTEL_EXPORTER_OTLP_", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"))
            for name in os.environ
        )
    )
    if not (asked and (needs_traces or needs_metrics)):
        return tracers, meters, None
    from otel_tokens.telemetry.setup import make_providers

    wanted = (("traces",) if needs_traces else ()) + (("metrics",) if needs_metrics else ())
    made = make_providers(settings, signals=wanted)
    if needs_traces and made.tracer_provider is not None:
        tracers = made.tracer_provider
    if needs_metrics and made.meter_provider is not None:
        meters = made.meter_provider
    return tracers, meters, made


def _current(given: Given) -> tuple[Any, Any]:
    """The application's tracer and meter provider as of now: given ones, else the global ones."""
    return (
        given.tracer_provider or otel_trace.get_tracer_provider(),
        given.meter_provider or otel_metrics.get_meter_provider(),
    )


def flush_telemetry(held: Runtime, timeout: float, *, theirs: bool) -> None:
    """Flush the providers that we made, and the application's if asked to, in at most `timeout` seconds altogether."""
    end = time.monotonic() + timeout
    if held.providers is not None:
        held.providers.flush(timeout)
    if theirs:
        from otel_tokens.telemetry.flush import flush_providers

        flush_providers(_current(held.given), max(0.0, end - time.monotonic()))
