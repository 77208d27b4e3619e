"""Bounds for the guard: the longest answer, the price of a token, the price of a vendor's dearest model."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from fnmatch import fnmatchcase
from functools import reduce
from math import inf

from otel_tokens.pricing.card import charge
from otel_tokens.pricing.names import place
from otel_tokens.pricing.price import Pricer
from otel_tokens.pricing.shipped import PRICE_LISTS
from otel_tokens.values import EXACT, Cost, PriceLine, Usage

MAX_OUTPUT: tuple[tuple[str, int], ...] = (
    # Largest output in tokens, reasoning included, by the vendors' model pages as of 2026-11. The first pattern that
    # fits wins. Anthropic's API demands max_tokens of every call, so its models need no row.
    ("gpt-5*-chat*", 16_384),
    ("gpt-5*", 128_000),
    ("gpt-4.1*", 32_768),
    ("gpt-4o*", 16_384),
    ("chatgpt-4o*", 16_384),
    ("gpt-4-turbo*", 4_096),
    ("gpt-4-*preview", 4_096),
    ("gpt-4-32k*", 32_768),
    ("gpt-4", 8_192),
    ("gpt-4-0*", 8_192),
    ("gpt-3.5-turbo*", 4_096),
    ("o1-mini*", 65_536),
    ("o1-preview*", 32_768),
    ("o1*", 100_000),
    ("o3*", 100_000),
    ("o4-mini*", 100_000),
)


def max_output(provider: str, model: str) -> int | None:
    """The most output tokens one choice of this model can have, or None when that is not known."""
    del provider  # the same model has the same bound wherever it runs
    name = model.lower().rpartition("/")[2]
    return next((bound for pattern, bound in MAX_OUTPUT if fnmatchcase(name, pattern)), None)


def straight(
    pricer: Pricer,
    provider: str,
    model: str,
    given: Usage,
    output: Usage,
    *,
    at: float,
    tier: str | None = None,
    speed: str | None = None,
    geo: str | None = None,
    address: str | None = None,
) -> PriceLine | None:
    """The price as a fixed amount and an amount for each token and search; None if no price is known.

    `given` and `output` are one input token and one output token, each of the wanted kind: text, sound, a cache write.
    """
    where = geo or place(provider, model, address)
    found = pricer.catalog.find((provider, model, None, tier, speed, where), at)
    if found.card is None:
        return None
    totals: list[Decimal] = []
    for usage in (Usage(), given, output, Usage(web_searches=1)):
        parts = charge(found.card, usage)
        if isinstance(parts, str):
            return None
        totals.append(reduce(EXACT.add, parts))
    fixed = totals[0]
    token_in, token_out, search = (_pico(EXACT.subtract(total, fixed)) for total in totals[1:])
    most = min((above for above, _ in found.card.bands), default=inf)
    return PriceLine(token_in, token_out, search, _pico(fixed), most, found.valid_from, found.valid_until)


def _pico(money: Decimal) -> int:
    return int(EXACT.scaleb(money, 12).to_integral_value(ROUND_CEILING))


class Dearest:
    """Prices usage by the dearest model of a vendor: a bound for a model without a price."""

    def __init__(self, pricer: Pricer) -> None:
        self._pricer = pricer
        self._found: dict[str, str | None] = {}

    def __call__(self, provider: str, usage: Usage, at: float) -> Cost:
        """The bound; unpriced when the vendor has no price list."""
        if provider not in self._found:
            self._found[provider] = self._search(provider, at)
        model = self._found[provider]
        return Cost() if model is None else self._pricer(provider, model, usage, at=at)

    def _search(self, provider: str, at: float) -> str | None:
        prices = self._pricer.catalog.price_list(PRICE_LISTS[provider]) if provider in PRICE_LISTS else None
        if prices is None:
            return None
        # As in most calls, the input is several times the output.
        sample = Usage(input=10_000, output=2_000, origin="provider")
        costs = ((self._pricer(provider, name, sample, at=at).total, name) for name in prices.known_names())
        known = [(total, name) for total, name in costs if total is not None]
        return max(known)[1] if known else None
