"""Conditions that change a model's price: tier, speed and place of inference, as the response states them.

The first of these that is known counts: rates of the price list for the condition; rates that it lists from a later
day on, if the standard price is the same then (an estimate); a published factor (`shipped.MULTIPLIERS`); the standard
price, as an estimate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from math import inf, isnan
from typing import Any

from otel_tokens.pricing.shipped import (
    AS_BATCH,
    DEEPSEEK_PEAKS,
    DEEPSEEK_WEEKENDS,
    MULTIPLIERS,
    STANDARD,
    Multiplier,
)
from otel_tokens.values import EXACT

_SATURDAY = 5
_DISCOUNTS_END = date(2025, 9, 29)  # of those by the hour that came before
_PEAKS_BEGIN = date.fromisoformat(DEEPSEEK_PEAKS)
_WEEKENDS_BEGIN = date.fromisoformat(DEEPSEEK_WEEKENDS)

LATEST = 253_402_214_400.0  # the last day of the year 9999: datetime knows no later one


@dataclass(frozen=True, slots=True)
class Conditions:
    """Tier ("batch", "flex", "priority" …), speed ("fast") and geo ("us") of a call; "" is the normal one."""

    tier: str = ""
    speed: str = ""
    geo: str = ""

    def special(self) -> tuple[tuple[str, str], ...]:
        """(kind, value) of all that is not normal."""
        found = (("tier", self.tier), ("speed", self.speed), ("geo", self.geo))
        return tuple((kind, value) for kind, value in found if value)

    def __str__(self) -> str:
        return ", ".join(f"{kind} {value}" for kind, value in self.special())


NORMAL = Conditions()


@lru_cache(maxsize=1024)
def conditions(tier: str | None, speed: str | None = None, geo: str | None = None) -> Conditions:
    """The conditions in one spelling, for any provider's spelling (`SERVICE_TIER_FLEX`, `on_demand_flex`, `flex`)."""
    values: dict[str, str] = {}
    for kind, value in (("tier", tier), ("speed", speed), ("geo", geo)):
        word = (value or "").strip().lower().removeprefix("service_tier_").removeprefix("on_demand_")
        values[kind] = "" if word in STANDARD[kind] else word
    return Conditions(**values)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """How a model's price follows from its conditions: by listed rates (`context`, as of `moment`) and factors."""

    context: dict[str, str]
    moment: datetime
    factors: tuple[Multiplier, ...] = ()
    estimated: str = ""

    @property
    def factor(self) -> Decimal | None:
        """The product of all factors, or None."""
        product: Decimal | None = None
        for row in self.factors:
            product = Decimal(row.factor) if product is None else EXACT.multiply(product, Decimal(row.factor))
        return product

    def title(self) -> str:
        """The conditions that were applied, for the rule's name."""
        listed = "".join(f" {key}={value}" for key, value in self.context.items())
        return listed + "".join(f" x{row.factor} ({row.what} {row.value})" for row in self.factors)


def moment_of(at: float) -> datetime:
    """The UTC time of `at` in unix seconds, limited to the years that datetime knows."""
    return datetime.fromtimestamp(0.0 if isnan(at) else min(max(at, 0.0), LATEST), UTC)


def adjust(list_id: str, name: str, model: Any | None, wanted: Conditions, at: float) -> Adjustment:
    """How `wanted` changes the price of the model `name` of a price list.

    `model` is its ModelInfo, or None when no rates by condition may be looked up: shipped prices, and models that
    another vendor's list prices.
    """
    moment = at_once = _pricing_moment(list_id, at)
    context: dict[str, str] = {}
    factors: list[Multiplier] = []
    doubts: list[str] = []
    for kind, word in wanted.special():
        value = "batch" if (list_id, word) in AS_BATCH and _has_batch(model) else word
        key = _context_key(kind, value)
        variants = [v for v in (model.price_variants or ()) if v.when == {key: value}] if model and key else []
        if any(v.constraint is None or v.constraint.active(at_once) for v in variants):
            context[key] = value
            continue
        later = _same_later(model, variants, at_once) if model and variants else None
        row = None if later else _factor(list_id, name, kind, word, at_once.date())
        if later:
            context[key] = value
            moment = max(moment, later)
            doubts.append(f"{kind} {word} is listed only from {later.date()}")
        elif row:
            factors.append(row)
        else:
            doubts.append(f"{kind} {word} has no known price; the standard one is used")
    return Adjustment(context, moment, tuple(factors), "; ".join(doubts))


def _pricing_moment(list_id: str, at: float) -> datetime:
    """The moment whose prices hold at `at`. On a day without peak hours it is noon (UTC), which is no peak hour."""
    moment = moment_of(at)
    day = moment.date()
    quiet = list_id == "deepseek" and (
        _DISCOUNTS_END <= day < _PEAKS_BEGIN or (day >= _WEEKENDS_BEGIN and moment.weekday() >= _SATURDAY)
    )
    return moment.replace(hour=12, minute=0) if quiet else moment


def _has_batch(model: Any | None) -> bool:
    return model is not None and any(v.when == {"processing": "batch"} for v in model.price_variants or ())


def _context_key(kind: str, value: str) -> str:
    """The key of genai-prices' price context."""
    if kind == "tier":
        return "processing" if value == "batch" else "service_tier"
    return "speed" if kind == "speed" else ""


def _same_later(model: Any, variants: list[Any], at: datetime) -> datetime | None:
    """The first day on which a variant is listed, if the standard price was already the same at `at`."""
    days = sorted(day for v in variants if (day := getattr(v.constraint, "start_date", None)) is not None)
    for day in days:
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        if start > at:
            return start if model.get_prices(start) == model.get_prices(at) else None
    return None


def _factor(list_id: str, name: str, kind: str, value: str, day: date) -> Multiplier | None:
    for row in MULTIPLIERS:
        wanted = (row.provider, row.what, row.value) == (list_id, kind, value)
        if wanted and date.fromisoformat(row.since) <= day and re.match(row.models, name):
            return row
    return None


def period(lists: Sequence[str], model: Any | None, at: float) -> tuple[float, float]:
    """The time around `at`, [from, until) in unix seconds, in which the price of a model of `lists` cannot change."""
    moment = moment_of(at)
    marks = [midnight(row.since) for row in MULTIPLIERS if row.provider in lists]
    if model is not None:
        listed: Any = model.prices
        dated: list[Any] = [*(listed if isinstance(listed, list) else ()), *(model.price_variants or ())]
        for item in dated:
            marks += _marks(item.constraint, moment)
    return bounds(marks, at)


def bounds(marks: list[float], at: float) -> tuple[float, float]:
    """The two neighbours of `at` among `marks`."""
    earlier = max((mark for mark in marks if mark <= at), default=-inf)
    return earlier, min((mark for mark in marks if mark > at), default=inf)


def midnight(day: date | str) -> float:
    """When a day (or its ISO text) begins, in UTC and unix seconds."""
    begins = date.fromisoformat(day) if isinstance(day, str) else day
    return datetime(begins.year, begins.month, begins.day, tzinfo=UTC).timestamp()


def _marks(constraint: Any, moment: datetime) -> list[float]:
    if constraint is None:
        return []
    if hasattr(constraint, "start_date"):
        return [midnight(constraint.start_date)]
    marks: list[float] = []
    # Midnight too: which clocks count may depend on the day (`_pricing_moment`).
    for clock in (constraint.start_time, constraint.end_time, time(tzinfo=UTC)):
        for shift in (-1, 0, 1):
            try:
                when = datetime.combine(moment.date() + timedelta(shift), clock)
            except OverflowError:  # the first and the last day of the calendar
                continue
            marks.append((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    return marks
