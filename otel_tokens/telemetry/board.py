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

from otel_tokens.conventions import Metric
from otel_tokens.safely import report_fault, safely
from otel_tokens.telemetry.forks import repair_metrics
from otel_tokens.telemetry.totals import Totals

Show = Callable[[], Iterable[Observation]]


class Board:
    """The totals of one meter, and what is shown of them. `shown` is empty while nobody is instrumented."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.shown: dict[str, Show] = {}
        self.instruments: list[Any] = []
        self.owner: object | None = None

    def callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """The callback of one asynchronous instrument."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            show = self.shown.get(metric.name)
            return () if show is None else safely(f"observe {metric.name}", show) or ()

        return observe

    def keep(self, instruments: Iterable[Any]) -> None:
        """Remember instruments, to reset them in a forked child."""
        known = {id(item) for item in self.instruments}
        self.instruments.extend(item for item in instruments if id(item) not in known)


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


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for board in {id(board): board for board in list(_boards.values())}.values():
        board.totals.reset()
        try:
            repair_metrics(board.instruments)
        except Exception as error:  # private names of the SDK have changed: the child runs on without the repair
            report_fault("metrics after fork", error)


os.register_at_fork(after_in_child=_after_fork_in_child)
