"""Forecasts how long a budget lasts: calls left, money left, time to exhaustion with an interval. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from otel_tokens.guard.reporting.administration import Status
from otel_tokens.values import EXACT

_Z = 1.2816
"""80 % of outcomes lie within this many standard deviations."""
_FEWEST = 3


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is left of one budget in one scope, and for how long, if things go on as they went lately.

    `left` is in whole units; `calls_left` at the mean use of the last calls; `per_hour` the burn; `seconds_left`
    the time to exhaustion with its 80 % interval `seconds_low` .. `seconds_high` (None = no end in sight). None of
    these is known before three calls. `lasts` says whether the window ends first (None without a window or a rate).
    """

    name: str
    unit: str
    scope: str
    left: Decimal
    ratio: float
    samples: int
    calls_left: int | None = None
    per_call: Decimal | None = None
    per_hour: Decimal | None = None
    seconds_left: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    lasts: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        row: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return {key: str(value) if isinstance(value, Decimal) else value for key, value in row.items()}


def forecast(status: Status, samples: Sequence[tuple[float, int, int]], smallest: int, now: float) -> Forecast:
    """The forecast of one budget from `samples` (unix seconds, used before, used after), oldest first.

    Amounts of samples are in smallest units, of which `smallest` make a whole one. What other processes used
    shows in the differences between samples, so it counts.
    """
    left = status.remaining
    plain = Forecast(status.name, status.unit, status.scope, left, status.ratio, len(samples))
    costs = [after - before for _, before, after in samples]
    if len(samples) < _FEWEST or sum(costs) <= 0:
        return plain
    span = now - samples[0][0]
    # The first sample only marks where the count begins.
    burnt = max(samples[-1][2] - samples[0][2], sum(costs[1:]))
    rate = burnt / span if span > 0 and burnt > 0 else 0.0
    mean = sum(costs) / len(costs)
    left_smallest = float(left) * smallest
    seconds, low, high = _interval(left_smallest, rate, costs)
    per_call = EXACT.divide(Decimal(round(mean)), smallest)
    return Forecast(
        status.name,
        status.unit,
        status.scope,
        left,
        status.ratio,
        len(samples),
        calls_left=int(left_smallest // mean),
        per_call=per_call,
        per_hour=EXACT.divide(Decimal(round(rate * 3600)), smallest),
        seconds_left=seconds,
        seconds_low=low,
        seconds_high=high,
        lasts=None if status.end is None or seconds is None else now + seconds >= status.end,
    )


def clock_forecast(status: Status) -> Forecast:
    """The forecast of wall time, which passes by itself, one second per second."""
    left = float(status.remaining)
    return Forecast(
        status.name,
        status.unit,
        status.scope,
        status.remaining,
        status.ratio,
        0,
        seconds_left=left,
        seconds_low=left,
        seconds_high=left,
    )


def _interval(left: float, rate: float, costs: Sequence[int]) -> tuple[float | None, float | None, float | None]:
    """Seconds to exhaustion, and the interval that calls coming at random with these costs leave.

    A compound Poisson process: the relative error of the burn is sqrt(sum of squares) / sum.
    """
    if rate <= 0:
        return None, None, None
    spread = _Z * math.sqrt(sum(cost * cost for cost in costs)) / sum(costs)
    high = None if spread >= 1 else left / (rate * (1 - spread))
    return left / rate, left / (rate * (1 + spread)), high
