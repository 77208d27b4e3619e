"""Builds the rooms from settings and joins them: the only module, with `instrument`, that knows everybody."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from opentelemetry import metrics as otel_metrics
from opentelemetry import trace as otel_trace

from otel_tokens import context
from otel_tokens.background import Worker
from otel_tokens.capture import foreign
from otel_tokens.capture.call import Drivers
from otel_tokens.capture.patch import Patcher
from otel_tokens.capture.request import Requests
from otel_tokens.conventions import BUDGET_NAME, BUDGET_SCOPE, BUDGET_THRESHOLD_EVENT, NAMESPACE, SCOPE
from otel_tokens.lifecycle import Engine, Sink
from otel_tokens.providers.hosts import resolve
from otel_tokens.providers.registry import providers
from otel_tokens.safely import on_fault
from otel_tokens.settings import Settings
from otel_tokens.shapes import is_dict
from otel_tokens.values import Cost, Record, Usage

logger = logging.getLogger("otel_tokens")


@dataclass(slots=True)
class Runtime:
    """All that one `instrument()` made: for doctor, for the guard, and to be undone."""

    settings: Settings
    patcher: Patcher
    engine: Engine
    metrics: Any = None
    ledger: Any = None
    guard: Any = None
    pricer: Any = None
    providers: Any = None
    pid: int = field(default_factory=os.getpid)


@dataclass(frozen=True, slots=True)
class Given:
    """What `instrument()` was given beside the settings."""

    tracer_provider: Any = None
    meter_provider: Any = None
    budgets: tuple[Any, ...] = ()
    on_record: Callable[[Record], object] | None = None


def build(settings: Settings, given: Given, patcher: Patcher, worker: Worker) -> Runtime:
    """All rooms, joined and patched in. Raises ConfigError before anything is patched."""
    # Rooms that load third-party libraries are imported here, so that importing otel_tokens stays cheap.
    from otel_tokens.telemetry.metrics import Metrics
    from otel_tokens.telemetry.spans import Spans

    pricer = make_pricer(settings)
    budgets = declared_budgets(settings, given.budgets)
    tracers, meters, own = find_providers(settings, given)
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
    ledger = open_ledger(settings, metrics)
    sinks: list[tuple[str, Sink]] = []
    if ledger is not None:
        sinks.append(("ledger", ledger.write))
    sinks.append(("metrics", metrics))
    if given.on_record is not None:
        sinks.append(("on_record", given.on_record))
    engine = Engine(price=pricer, spans=spans, sinks=tuple(sinks), worker=worker, foreign=settings.foreign)
    if isinstance(pricer, LatePricer):
        pricer.then = partial(setattr, engine, "price")  # one hop less for every further call
    if budgets:
        engine.guard = make_guard(settings, budgets, pricer, spans, metrics)
        engine.cut_cleanly = guard_option(settings, "on_cut") == "finish"
    context.configure(settings.propagate_tags)
    on_fault(metrics.fault)
    _patch(settings, engine, patcher)
    metrics.beside_foreign(bool(foreign.foreign_instrumentors()) and settings.foreign != "own")
    return Runtime(settings, patcher, engine, metrics, ledger, engine.guard, pricer, own)


def _patch(settings: Settings, engine: Engine, patcher: Patcher) -> None:
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
            patcher.install(provider, Drivers(engine, requests, provider).wrapper)


def make_pricer(settings: Settings) -> Any:
    """The pricer of these settings. Without rules of the user's it is made, and its data loaded, in the background."""
    if not settings.prices and settings.prices_file is None:
        return LatePricer()
    from otel_tokens.pricing.rules import parse_rules

    rules = parse_rules(settings.prices, settings.config or "prices")
    if settings.prices_file is not None:
        from otel_tokens.settings import read_yaml

        held = read_yaml(settings.prices_file)
        entries = held.child("prices") if is_dict(held.value) and "prices" in held.value else held
        rules += parse_rules(tuple(entries.children()), settings.prices_file)
    return _pricer(rules)


def _pricer(rules: Sequence[Any] = ()) -> Any:
    from otel_tokens.pricing.catalog import Catalog
    from otel_tokens.pricing.price import Pricer

    catalog = Catalog(rules)
    catalog.warm()
    return Pricer(catalog)


class LatePricer:
    """A pricer that is made in the background; a call that comes earlier waits for it."""

    def __init__(self) -> None:
        from otel_tokens.pricing.loading import Background

        self._made: Any = None
        self._making = Background(_pricer)
        self._making.start()
        self.then: Callable[[Any], object] | None = None

    def __call__(self, *args: Any, **keywords: Any) -> Cost:
        """Price, as `Pricer` does."""
        if self._made is None:
            self._made = self._making.get()
            if self.then is not None:
                self.then(self._made)
        return self._made(*args, **keywords)

    def __getattr__(self, name: str) -> Any:
        """What else the pricer has."""
        return getattr(self._making.get(), name)


def open_ledger(settings: Settings, metrics: Any = None) -> Any:
    """The ledger of these settings, or None."""
    if not settings.ledger:
        return None
    from otel_tokens.ledger.ledger import Ledger

    return Ledger(
        settings.ledger,
        max_age_days=settings.ledger_max_age_days,
        max_bytes=settings.ledger_max_bytes,
        on_lost=None if metrics is None else metrics.ledger_error,
    )


# ---- the guard -----------------------------------------------------------------------------------------------
GUARD_OPTIONS = ("lease_seconds", "min_output", "clamp_unbounded", "on_cut")
ON_CUT = ("error", "finish")


def declared_budgets(settings: Settings, given: Sequence[Any]) -> list[Any]:
    """The budgets of the keyword and of the file, checked. Raises ConfigError naming file, line and key."""
    check_guard_options(settings)
    if not given and not settings.budgets:
        return []
    from otel_tokens.guard.budget import Budget, budgets_from

    found: list[Any] = []
    for item in given:
        found += [item] if isinstance(item, Budget) else budgets_from(item)
    for entry in settings.budgets:
        found += [entry.value] if isinstance(entry.value, Budget) else budgets_from(entry.value, entry.error)
    return found


def guard_option(settings: Settings, name: str) -> Any:
    """An option of the file's `guard:` mapping, or None."""
    return None if settings.guard is None else settings.guard.value.get(name)


def store_url(settings: Settings) -> str:
    """Where budgets are kept: as set, else beside the ledger when there is one, else in memory."""
    if settings.store:
        return settings.store
    return f"sqlite:///{settings.ledger}.budgets" if settings.ledger else "memory"


def make_guard(settings: Settings, budgets: Sequence[Any], pricer: Any, spans: Any, metrics: Any) -> Any:
    """The guard over these budgets."""
    from otel_tokens.guard.guard import Guard
    from otel_tokens.guard.options import GuardOptions
    from otel_tokens.guard.store.open import open_store

    def priced(provider: str, model: str, usage: Usage, *, at: float, tier: str | None = None) -> Cost:
        return pricer(provider, model, usage, at=at, tier=tier)

    def told(event: Any) -> None:
        if event.kind in ("threshold", "downgrade", "clamp", "cut", "overdraft", "pause", "slow", "resume"):
            facts = {BUDGET_NAME: event.budget, BUDGET_SCOPE: event.scope, f"{NAMESPACE}.budget.event": event.kind}
            if event.ratio is not None:
                facts[f"{NAMESPACE}.budget.usage_ratio"] = event.ratio
            spans.event(BUDGET_THRESHOLD_EVENT, facts)

    from otel_tokens.pricing.bounds import Dearest, max_output

    found: list[Dearest] = []

    def dearest(provider: str, usage: Usage, at: float) -> Cost:
        if not found:  # the catalogue may still be loading when the guard is made
            found.append(Dearest(pricer, pricer.catalog))
        return found[0](provider, usage, at)

    extra = {name: value for name in GUARD_OPTIONS[:3] if (value := guard_option(settings, name)) is not None}
    options = GuardOptions(
        fail=settings.store_fail,  # pyright: ignore[reportArgumentType]  # checked by the settings
        estimate=settings.estimate,  # pyright: ignore[reportArgumentType]
        unpriced=settings.unpriced,  # pyright: ignore[reportArgumentType]
        thresholds=[{"at": f"{share:g}%"} for share in settings.thresholds],
        tags=context.current_tags,
        max_output=max_output,
        dearest=dearest,
        **extra,
    )
    store = open_store(store_url(settings), timeout=settings.store_timeout)
    guard = Guard(budgets, store, price=priced, options=options, emit=told)
    metrics.observe_budgets(lambda: _budget_rows(guard))
    metrics.observe_decisions(lambda: ((b, d, p, m, n) for b, d, p, m, _, n in guard.decisions()))
    return guard


def check_guard_options(settings: Settings) -> None:
    """Raise ConfigError, with file, line and key, for a mistake under `guard:`."""
    entry = settings.guard
    if entry is None:
        return
    for name, value in entry.value.items():
        if name not in GUARD_OPTIONS:
            raise entry.error(f"unknown option; allowed: {', '.join(GUARD_OPTIONS)}", name)
        if name == "on_cut" and value not in ON_CUT:
            raise entry.error(f"{value!r} is not one of {', '.join(ON_CUT)}", name)
        if name == "clamp_unbounded" and not isinstance(value, bool):
            raise entry.error(f"{value!r} is not true or false", name)
        if name in ("lease_seconds", "min_output") and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise entry.error(f"{value!r} is not a number", name)


_GAUGE_UNITS = {"usd": "USD", "tokens": "token", "input_tokens": "token", "output_tokens": "token"}


def _budget_rows(guard: Any) -> Iterator[Any]:
    from otel_tokens.telemetry.budgets import BudgetRow

    for row in guard.status():
        scope = dict(part.split("=", 1) for part in row.scope.split(",") if "=" in part)
        yield BudgetRow(row.name, scope, str(_GAUGE_UNITS.get(row.unit, row.unit)), row.limit, row.used)


# ---- OpenTelemetry's providers -------------------------------------------------------------------------------
def find_providers(settings: Settings, given: Given) -> tuple[Any, Any, Any]:
    """The providers to use, and those we made (None when the application has its own, or nobody asks for any).

    What stays unset is the API's proxy: providers that the application sets later are found then.
    """
    tracers = given.tracer_provider or otel_trace.get_tracer_provider()
    meters = given.meter_provider or otel_metrics.get_meter_provider()
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
