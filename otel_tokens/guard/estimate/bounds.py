"""Computes the highest cost of a call from price lines, which are kept for each kind of call."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from math import inf
from typing import Protocol

from otel_tokens.guard.estimate.history import Terms
from otel_tokens.guard.options import LinearPrice
from otel_tokens.values import Call, CallSizes, PriceLine, Usage

KEPT_SECONDS = 60.0
"""How long lines are used before prices are looked up again: the application may update them while it runs."""
MAX_KINDS = 4096

_DEFAULTS = {f.name: f.default for f in fields(Usage) if f.default is not MISSING}


class EstimatedUsage(Usage):
    """A `Usage` that keeps the defaults of its fields on the class. Making one costs little."""


for _name, _default in {**_DEFAULTS, "origin": "estimated"}.items():
    setattr(EstimatedUsage, _name, _default)


def estimated(input_tokens: int, output_tokens: int, **more: int) -> Usage:
    """The estimated usage of so many tokens."""
    usage = object.__new__(EstimatedUsage)
    usage.__dict__.update(input=input_tokens, output=output_tokens, **more)
    return usage


def possible_usages(input_tokens: int, output_tokens: int, searches: int, sizes: CallSizes) -> list[Usage]:
    """The usages that so many tokens may turn out to be: text, audio, input that is written to a cache."""
    usage = estimated(input_tokens, output_tokens, web_searches=searches)
    usages = [usage]
    if sizes.audio:
        usages.append(replace(usage, input_audio=input_tokens, output_audio=output_tokens))
    if sizes.cache_write is not None:
        usages.append(replace(usage, cache_write=input_tokens, **{sizes.cache_write: input_tokens}))
    return usages


def possible_terms(call: Call, seen: frozenset[Terms]) -> frozenset[Terms]:
    """The terms a call may be charged by: those it asks for, and those `seen` with other calls of its model."""
    terms = seen | {(call.service_tier, call.speed, call.geo)}
    if call.service_tier == "flex":
        terms |= {(None, call.speed, call.geo)}  # the provider may have no capacity at that price
    return terms


Kind = tuple[object, ...]
"""The facts of a call to one model that its price lines depend on."""


class PriceLines:
    """The price lines of one kind of call. Empty if the price is not linear: then each usage has to be priced."""

    __slots__ = ("kind", "lines", "most_input", "since", "until")

    def __init__(self, kind: Kind, lines: list[PriceLine], at: float) -> None:
        self.kind = kind
        self.lines = [line[:4] for line in _without_lower(lines)]
        self.most_input = min((line.most_input for line in lines), default=-1)
        self.since = max((line.valid_from for line in lines), default=-inf)
        self.until = min((line.valid_until for line in lines), default=inf)
        self.until = min(self.until, at + KEPT_SECONDS)
        self.since = max(self.since, at - KEPT_SECONDS)


class KeepsPriceLines(Protocol):
    """Keeps the price lines of the last call to its model (`matching.Plan`)."""

    price_lines: PriceLines


class CostBound:
    """Upper bounds of cost, from price lines."""

    def __init__(self, linear_price: LinearPrice | None) -> None:
        self._linear_price = linear_price
        self._known: dict[tuple[str, str, Kind], PriceLines] = {}

    def upper(
        self, plan: KeepsPriceLines, call: Call, model: str, sizes: CallSizes, output: int, *, seen: frozenset[Terms]
    ) -> int | None:
        """The highest cost, in nano-USD, of a call to `model` with `output` tokens of output.

        None if the price is not linear, or not known.
        """
        kind = (
            call.service_tier,
            call.speed,
            call.geo,
            call.server_address,
            sizes.cache_write,
            sizes.audio,
            seen,
        )
        # Nearly all calls of a plan are of the kind of the last one: comparing costs less than looking up.
        found = plan.price_lines
        if found.kind != kind or not found.since <= call.started < found.until:
            found = plan.price_lines = self._find(kind, call, model, sizes, seen)
        input_tokens = sizes.input_upper
        if input_tokens > found.most_input:
            return None
        pico = 0
        for per_input, per_output, per_search, fixed in found.lines:
            cost = per_input * input_tokens + per_output * output + per_search * sizes.web_searches + fixed
            if cost > pico:  # noqa: PLR1730 (max() costs a call)
                pico = cost
        return -(-pico // 1000)

    def _find(self, kind: Kind, call: Call, model: str, sizes: CallSizes, seen: frozenset[Terms]) -> PriceLines:
        """The price lines of a kind of call: kept ones while they hold, else new ones."""
        key = (model, call.provider, kind)
        found = self._known.get(key)
        if found is None or not found.since <= call.started < found.until:
            if len(self._known) >= MAX_KINDS:
                self._known.clear()
            found = self._known[key] = PriceLines(kind, self._lines(call, model, sizes, seen), call.started)
        return found

    def _lines(self, call: Call, model: str, sizes: CallSizes, seen: frozenset[Terms]) -> list[PriceLine]:
        """The line of each possible usage on each of the possible terms; none at all if one is missing."""
        if self._linear_price is None:
            return []
        made: list[PriceLine] = []
        for tier, speed, geo in possible_terms(call, seen):
            for one_in, one_out in zip(possible_usages(1, 0, 0, sizes), possible_usages(0, 1, 0, sizes), strict=True):
                line = self._linear_price(
                    *(call.provider, model, one_in, one_out),
                    at=call.started, tier=tier, speed=speed, geo=geo, address=call.server_address,
                )  # fmt: skip
                if line is None:
                    return []
                made.append(line)
        return made


def _without_lower(lines: list[PriceLine]) -> list[PriceLine]:
    """The lines without those that lie nowhere above another one: mostly one is left."""
    kept: list[PriceLine] = []
    for line in sorted(lines, reverse=True):
        if not any(all(a >= b for a, b in zip(other[:4], line[:4], strict=True)) for other in kept):
            kept.append(line)
    return kept


NO_PRICE_LINES = PriceLines((), [], 0.0)
