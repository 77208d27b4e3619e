"""The price of a model and its source, for `otel-tokens prices MODEL`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from math import isfinite

from otel_tokens.pricing.card import RATE_NAMES, RateCard, Rates
from otel_tokens.pricing.catalog import Catalog, canonical
from otel_tokens.pricing.shipped import PRICE_LISTS
from otel_tokens.pricing.vendors import vendor_of
from otel_tokens.values import EXACT

PER_MILLION = "USD per million tokens"
EACH = "USD each"

_FALLS_BACK = {
    "cache_read": "input",
    "cache_write": "input",
    **{f"cache_write_{ttl}": "cache_write" for ttl in ("5m", "30m", "1h", "12h")},
}


@dataclass(frozen=True, slots=True)
class PricedRate:
    """One rate: `name` as in `card.Rates` (or web_search, per_request), `amount` in `unit`.

    `above` is the number of input tokens from which on it holds, None for the normal one.
    """

    name: str
    amount: Decimal
    unit: str = PER_MILLION
    above: int | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The price of a model, or why there is none.

    `rule` names the entry that is used, `source` where its numbers were published. `estimated` is the reason why the
    numbers may not be right ("" if they are). `until` is when they may change (unix seconds; None: no change is known).
    If there is no price, `reason` says why, `near` has similar names with a price, and `elsewhere` has the providers
    that have a price for this name.
    """

    model: str
    provider: str
    version: str
    rule: str = ""
    source: str = ""
    rates: tuple[PricedRate, ...] = ()
    estimated: str = ""
    until: float | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""
    near: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def priced(self) -> bool:
        """Whether a price was found."""
        return bool(self.rule)


def explain(
    model: str,
    *,
    provider: str | None = None,
    tier: str | None = None,
    at: float | None = None,
    catalog: Catalog | None = None,
) -> Explanation:
    """Explain the price of `model` of `provider` (None: its maker) on `tier` at `at` (unix seconds; None: now)."""
    catalog = catalog or Catalog()
    moment = time.time() if at is None else at
    billed_by = canonical(provider) if provider else vendor_of(model)
    found = catalog.find((provider, model, None, tier, None, None), moment)
    if found.card is not None:
        card = found.card
        return Explanation(
            model,
            billed_by,
            catalog.version,
            rule=card.rule,
            source=_source(catalog, card),
            rates=tuple(_rates(card)),
            estimated=card.estimated,
            until=card.valid_until if isfinite(card.valid_until) else None,
            notes=card.notes,
        )
    return Explanation(
        model,
        billed_by,
        catalog.version,
        reason=found.reason,
        near=_near(catalog, billed_by, model),
        elsewhere=tuple(
            other
            for other in dict.fromkeys([*_named(catalog), *PRICE_LISTS])
            if other != billed_by and catalog.card(other, model, tier, moment) is not None
        ),
    )


def _source(catalog: Catalog, card: RateCard) -> str:
    if card.rule.startswith("genai-prices "):
        prices = catalog.price_list(card.rule.removeprefix("genai-prices ").partition("/")[0])
        return ", ".join(prices.urls) if prices is not None else ""
    return card.notes[0] if card.rule.startswith("shipped ") and card.notes else card.rule


def _rates(card: RateCard) -> list[PricedRate]:
    found: list[PricedRate] = []
    bands: list[tuple[int | None, Rates]] = [(None, card.rates), *card.bands]
    for above, rates in bands:
        for name in RATE_NAMES:
            rate: Decimal | None = getattr(rates, name)
            whole = _FALLS_BACK.get(name)
            if rate is not None and (whole is None or rate != getattr(rates, whole)):
                found.append(PricedRate(name, EXACT.scaleb(rate, 6).normalize(EXACT), above=above))
    for name, amount in (("web_search", card.web_search), ("per_request", card.per_request)):
        if amount is not None:
            found.append(PricedRate(name, amount, EACH))
    return found


def _named(catalog: Catalog) -> list[str]:
    """The providers that rules of the user's are about."""
    return [canonical(rule.provider) for rule in catalog.overrides if rule.provider]


def _near(catalog: Catalog, provider: str, model: str) -> tuple[str, ...]:
    """Names like `model` that have a price, at its provider first."""
    lists = [PRICE_LISTS[provider]] if provider in PRICE_LISTS else sorted({*PRICE_LISTS.values()} - {"openrouter"})
    names = [rule.model for rule in catalog.overrides if rule.model.lower() != model.lower()]
    for list_id in lists:
        prices = catalog.price_list(list_id)
        names += prices.known_names() if prices is not None else []
    return tuple(get_close_matches(model.lower(), dict.fromkeys(names), n=5, cutoff=0.6))
