"""Computes the highest cost of a call from price lines that are kept for its kind."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from math import inf
from typing import Protocol

from otel_tokens.guard.estimate.history import Terms
from otel_tokens.guard.options import Straight
from otel_tokens.values import Call, CallSizes, PriceLine, Usage

KEPT_SECONDS = 60.0
"""How long lines are used before prices are looked up again: the application may update them while it runs."""
MAX_KINDS = 4096

_DEFAULTS = {f.name: f.default for f in fields(Usage) if f.default is not MISSING}


class SizedUsage(Usage):
    """A `Usage` whose fields stand in the class, except those that differ. One is made for every call."""


for _name, _default in {**_DEFAULTS, "origin": "estimated"}.items():
    setattr(SizedUsage, _name, _default)


def sized(given: int, output: int, **more: int) -> Usage:
    """The estimated usage of `given` input and `output` tokens."""
    usage = object.__new__(SizedUsage)
    usage.__dict__.update(input=given, output=output, **more)
    return usage


def uses(given: int, output: int, searches: int, sizes: CallSizes) -> list[Usage]:
    """What so many tokens may turn out to be: text, sound, input that is written to a cache."""
    usage = sized(given, output, web_searches=searches)
    kinds = [usage]
    if sizes.audio:
        kinds.append(replace(usage, input_audio=given, output_audio=output))
    if sizes.cache_write is not None:
        kinds.append(replace(usage, cache_write=given, **{sizes.cache_write: given}))
    return kinds


def terms_of(call: Call, seen: frozenset[Terms]) -> frozenset[Terms]:
    """The terms a call may be charged by: those it asks for, and those `seen` by other calls of its model."""
    terms = seen | {(call.service_tier, call.speed, call.geo)}
    if call.service_tier == "flex":
        terms |= {(None, call.speed, call.geo)}  # where there is no room at that price
    return terms


class PriceLines:
    """The price lines of one kind of call; empty where there are none, and pricing must tell."""

    __slots__ = ("lines", "most_input", "since", "until")

    def __init__(self, lines: list[PriceLine], at: float) -> None:
        self.lines = _dearest(lines)
        self.most_input = min((line.most_input for line in lines), default=-1)
        self.since = max((line.valid_from for line in lines), default=-inf)
        self.until = min((line.valid_until for line in lines), default=inf)
        self.until = min(self.until, at + KEPT_SECONDS)
        self.since = max(self.since, at - KEPT_SECONDS)


Kind = tuple[object, ...]
"""What the lines of a call depend on."""


class KeepsPriceLines(Protocol):
    """Keeps the price lines of the call before (`matching.Plan`)."""

    price_lines: tuple[Kind, PriceLines]


class CostBound:
    """Upper bounds of cost: a comparison and a sum of products. Under 1 us, where pricing two uses takes 25 us."""

    def __init__(self, straight: Straight | None) -> None:
        self._straight = straight
        self._kinds: dict[Kind, PriceLines] = {}

    def __call__(
        self, plan: KeepsPriceLines, call: Call, model: str, sizes: CallSizes, output: int, *, seen: frozenset[Terms]
    ) -> int | None:
        """The most nano-USD of a call to `model` with so many output tokens; None where pricing must tell."""
        straight = self._straight
        if straight is None:
            return None
        kind = (
            *(model, call.provider, call.service_tier, call.speed, call.geo, call.server_address),
            *(sizes.cache_write, sizes.audio, seen),
        )
        # Nearly all calls of a plan are of the kind of the one before: to compare costs less than to look up.
        known, found = plan.price_lines
        if kind != known or not found.since <= call.started < found.until:
            found = self._kinds.get(kind) or NO_PRICE_LINES
            if not found.since <= call.started < found.until:
                if len(self._kinds) >= MAX_KINDS:
                    self._kinds.clear()
                found = self._kinds[kind] = PriceLines(_lines(straight, call, model, sizes, seen), call.started)
            plan.price_lines = (kind, found)
        given, searches = sizes.input_upper, sizes.web_searches
        if given > found.most_input:
            return None
        pico = 0
        for line in found.lines:
            cost = line.input * given + line.output * output + line.search * searches + line.fixed
            if cost > pico:  # noqa: PLR1730 (max() costs a call)
                pico = cost
        return -(-pico // 1000)


def _lines(straight: Straight, call: Call, model: str, sizes: CallSizes, seen: frozenset[Terms]) -> list[PriceLine]:
    """The line of each use on each of the terms; none at all if one is missing."""
    made: list[PriceLine] = []
    for tier, speed, geo in terms_of(call, seen):
        for given, output in zip(uses(1, 0, 0, sizes), uses(0, 1, 0, sizes), strict=True):
            line = straight(
                *(call.provider, model, given, output),
                at=call.started, tier=tier, speed=speed, geo=geo, address=call.server_address,
            )  # fmt: skip
            if line is None:
                return []
            made.append(line)
    return made


def _dearest(lines: list[PriceLine]) -> list[PriceLine]:
    """The lines without those that another is nowhere below: mostly one is left."""
    kept: list[PriceLine] = []
    for line in sorted(lines, reverse=True):
        if not any(all(a >= b for a, b in zip(other[:4], line[:4], strict=True)) for other in kept):
            kept.append(line)
    return kept


NO_PRICE_LINES = PriceLines([], 0.0)
