"""The public functions: on, off, flush, and what each room offers without the others. `assemble` builds the rooms."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_tokens import context
from otel_tokens.assemble import Given, Runtime, build, flush_telemetry, make_pricer
from otel_tokens.assemble_guard import check_held, listed
from otel_tokens.background import Worker
from otel_tokens.capture.patch import Patcher
from otel_tokens.errors import OtelTokensError
from otel_tokens.exits import Steps, before_exit, forget_steps
from otel_tokens.safely import on_fault, safely
from otel_tokens.settings import Settings, default_ledger, load_settings
from otel_tokens.values import Cost, Record, Usage

if TYPE_CHECKING:
    from otel_tokens.guard.guard import Guard
    from otel_tokens.pricing.price import Pricer
    from otel_tokens.reports.report import Report
    from otel_tokens.reports.times import When

_runtime: Runtime | None = None
_lock = threading.RLock()
_default_pricer: Pricer | None = None
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
    budgets: Iterable[Any] | None = (),
    on_record: Callable[[Record], object] | None = None,
    **settings: Any,
) -> None:
    """Meter every LLM call of this process. Calling it again while it is on does nothing: budgets that would not be
    held then are a ConfigError.

    `tracer_provider` and `meter_provider` default to the application's global ones; when it has none, what the
    `OTEL_*` variables and the settings ask for is set up. `config` is the settings file ("off": none), `ledger` a path,
    True for the default place or False for none, `budgets` a sequence of `Budget`, `on_record` takes each `Record`.
    Further keywords are settings by name (docs/settings.md). Raises ConfigError for a wrong setting, before anything is
    patched.
    """
    global _runtime
    with _lock:
        declared = listed(budgets)
        if _runtime is not None:
            check_held(_runtime.settings, _runtime.guard, declared)
            return
        loaded = load_settings(config, ledger=str(ledger) if isinstance(ledger, Path) else ledger, **settings)
        if not loaded.enabled:
            return
        given = Given(tracer_provider, meter_provider, declared, on_record)
        _runtime = build(loaded, given, _patcher, _worker)
        before_exit(Steps(partial(_end, theirs=False), _end, partial(safely, "flush", flush), _counted, _limit))


def uninstrument() -> None:
    """Restore every patched function, also of `os` and `multiprocessing`, and stop what `instrument()` started.

    What the OpenTelemetry SDK cannot give back stays: instruments of the meter, which the next `instrument()` uses
    again. Does nothing when the metering is off.
    """
    global _runtime
    with _lock:
        held, _runtime = _runtime, None
        if held is None:
            return
        held.patcher.uninstall()
        forget_steps()
        held.engine.end_open()
        _finish_queued(held, held.settings.flush_timeout)
        _close(held)


def flush(timeout: float | None = None) -> None:
    """Finish what is queued and hand telemetry over, in at most `timeout` seconds (default: setting flush_timeout)."""
    held = _runtime
    if held is not None:
        _flush(held, held.settings.flush_timeout if timeout is None else timeout)


def _flush(held: Runtime, timeout: float, *, theirs: bool = True) -> None:
    """`theirs`: the application's providers as well."""
    end = time.monotonic() + timeout
    _finish_queued(held, timeout)
    safely("telemetry.flush", flush_telemetry, held, max(0.0, end - time.monotonic()), theirs=theirs)


def _finish_queued(held: Runtime, timeout: float) -> None:
    """The ledger first, as the process may be ended while we wait; and last, for what the queue had for it."""
    end = time.monotonic() + timeout
    flush_ledger = held.ledger.flush if held.ledger is not None else lambda: None
    safely("ledger.flush", flush_ledger)
    _worker.flush(max(0.0, end - time.monotonic()))
    if held.guard is not None:
        safely("guard.flush", held.guard.flush, max(0.0, end - time.monotonic()))
    safely("ledger.flush", flush_ledger)


def _end(*, theirs: bool = True) -> None:
    """The last thing that is done in a process. At Python's own end the application's providers flush themselves."""
    held = _runtime
    if held is not None:
        safely("open calls", held.engine.end_open)
        safely("flush at exit", _flush, held, held.settings.flush_timeout, theirs=theirs)
        if theirs and held.ledger is not None:
            safely("ledger.finish", held.ledger.finish)  # its own `atexit` is passed by as well


def _counted() -> bool:
    held = _runtime
    return held is not None and bool(held.metrics.totals.counts("calls"))


def _limit() -> float:
    held = _runtime
    return held.settings.flush_timeout if held is not None else 0.0


def _close(held: Runtime) -> None:
    if held.guard is not None:
        safely("guard.close", held.guard.close)
    if held.ledger is not None:
        safely("ledger.close", held.ledger.close)
    safely("metrics.shutdown", held.metrics.shutdown)
    if held.providers is not None:
        safely("telemetry.shutdown", held.providers.shutdown, held.settings.flush_timeout)
    context.configure(())
    on_fault(None)


def _after_fork_in_child() -> None:
    if _runtime is not None:
        _runtime.engine.forget_open()


os.register_at_fork(after_in_child=_after_fork_in_child)


def normalise(provider: str, raw_usage: Any, *, endpoint: str | None = None) -> Usage:
    """The `Usage` of a provider's raw usage block (dict or SDK object), in our one convention.

    `endpoint` names the operation ("openai.chat", "openai.responses", "anthropic.messages" …); without it, it is
    found by the provider and the block's own fields. Never raises for odd numbers: they are flagged.
    """
    from otel_tokens.usage.normalise import endpoint_of, normalise_block

    return normalise_block(raw_usage, endpoint_of(provider, raw_usage, endpoint), provider)


def price(model: str, usage: Usage, *, provider: str | None = None, tier: str | None = None, at: When = None) -> Cost:
    """The cost of `usage` by the catalogue at `at` (default: now).

    Pure once the catalogue is loaded; the user's price rules count while instrumented. `provider` defaults to the
    model's maker. `at` takes what `report(since=)` takes: a datetime or date, an ISO text (local time without a time
    zone), unix seconds. An unknown price gives status "unpriced" and no total. Raises ConfigError for no time.
    """
    from otel_tokens.reports.times import moment

    now = time.time()
    when = moment(at, now, key="at")
    return _pricer()(provider, model, usage, tier=tier, at=now if when is None else when)


def _pricer() -> Pricer:
    global _default_pricer
    if _runtime is not None:
        return _runtime.pricer
    if _default_pricer is None:
        _default_pricer = make_pricer(Settings())
    return _default_pricer


def report(ledger: str | Path | None = None, *, by: str | Sequence[str] = "model", since: Any = None) -> Report:
    """A `Report` of the ledger's calls, by one or several dimensions.

    `ledger` defaults to this process's, else the one the settings name, else the default place. `since` takes a
    datetime, "24h", "7d", "today" or an ISO date. Raises LedgerError when there is no ledger to read.
    """
    from otel_tokens.reports.report import report as make_report

    if ledger is None:
        loaded = _runtime.settings if _runtime is not None else load_settings()
        ledger = loaded.ledger or default_ledger()
        if _runtime is not None:
            _finish_queued(_runtime, loaded.flush_timeout)
    return make_report(ledger, by=by, since=since)


def guard() -> Guard:
    """The process's `Guard`. Raises OtelTokensError when no budget is declared or nothing is instrumented."""
    held = _runtime
    if held is None or held.guard is None:
        raise OtelTokensError(
            "there is no guard: declare budgets, in otel-tokens.yaml or by instrument(budgets=[Budget(...)])"
        )
    return held.guard
