"""One board per meter: the totals behind its asynchronous instruments, which outlive any `instrument()`.

The OpenTelemetry SDK cannot remove an asynchronous instrument or its callback. So callbacks belong to a board
that stays with the meter; switching off makes it show nothing, and switching on again goes on with the same
totals, neither doubled nor lost.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from otel_tokens.conventions import SCOPE, Metric
from otel_tokens.safely import report_fault, safely
from otel_tokens.telemetry.forks import repair_metrics
from otel_tokens.telemetry.totals import Totals

Show = Callable[[], Iterable[Observation]]


class Board:
    """The totals of one meter, and what is shown of them. `shown` is empty while nobody is instrumented."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.shown: dict[str, Show] = {}
        self.instruments: dict[str, Any] = {}
        self.owner: object | None = None

    def callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """The callback of one asynchronous instrument."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            show = self.shown.get(metric.name)
            return () if show is None else safely(f"observe {metric.name}", show) or ()

        return observe

    def instrument(self, metric: Metric, create: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """The instrument of `metric`: `create(name, *args, **keywords)`, once for each meter.

        The SDK never lets an instrument go. So each `instrument()` takes those of the one before.
        """
        found = self.instruments.get(metric.name)
        if found is None:
            found = self.instruments[metric.name] = create(metric.name, *args, **keywords)
        return found


_lock = threading.Lock()
_boards: weakref.WeakKeyDictionary[Meter, Board] = weakref.WeakKeyDictionary()


def _real(meter: Meter) -> Meter | None:
    """The meter itself; behind a proxy the real one, or None while the application has not set a provider."""
    return getattr(meter, "_real_meter", meter)


def board_of(meter: Meter) -> Board:
    """The board of `meter`. Meters of the global proxy share one, before and after a provider is set."""
    with _lock:
        found = _boards.get(meter)
        if found is None:
            real = _real(meter)
            found = next((board for known, board in _boards.items() if _real(known) is real), None) or Board()
            _boards[meter] = found
        return found


_meters: weakref.WeakKeyDictionary[Any, Meter] = weakref.WeakKeyDictionary()


def meter_of(provider: Any) -> Meter:
    """Our meter of a provider, the same one each time: the API keeps every meter of its proxy for ever."""
    with _lock:
        try:
            found = _meters.get(provider)
            if found is None:
                found = _meters[provider] = provider.get_meter(SCOPE)
        except TypeError:  # a provider of the application that cannot be held weakly
            return provider.get_meter(SCOPE)
        return found


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for board in {id(board): board for board in list(_boards.values())}.values():
        board.totals.reset()
        try:
            repair_metrics(board.instruments.values())
        except Exception as error:  # private names of the SDK have changed: the child runs on without the repair
            report_fault("metrics after fork", error)


os.register_at_fork(after_in_child=_after_fork_in_child)
