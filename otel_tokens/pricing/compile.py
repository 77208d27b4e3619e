"""Price data to rate cards: from genai-prices' models, from the shipped table, from the user's rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

from otel_tokens.pricing.card import ZERO, RateCard, Rates, rates_per_million
from otel_tokens.pricing.rules import PriceRule
from otel_tokens.pricing.shipped import (
    ALWAYS_SEARCHES,
    CLAUDE_WEB_SEARCH,
    CLAUDE_WRITE_1H,
    FEES,
    OPENAI_WRITE_12H,
    PRICE_LISTS,
    SEARCH_ONCE,
    Shipped,
)
from otel_tokens.values import EXACT

THOUSAND = Decimal(1000)

# genai-prices' names of prices per million tokens. It has others, for seconds, pages or characters: a model that is
# billed by those alone has no price here.
_PER_MILLION: dict[str, str] = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_5m_mtok": "cache_write_5m",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "input_image_mtok": "input_image",
    "input_video_mtok": "input_video",
    "cache_audio_read_mtok": "cache_read_audio",
    "cache_image_read_mtok": "cache_read_image",
    "cache_video_read_mtok": "cache_read_video",
    "output_audio_mtok": "output_audio",
    "output_image_mtok": "output_image",
    "output_video_mtok": "output_video",
    "output_reasoning_mtok": "reasoning",
}


def listed_card(provider: str, model: str, prices: Any, rule: str) -> RateCard | None:
    """The card of a genai-prices ModelPrice; None when it states no price for tokens or requests."""
    stated = cast("dict[str, Any]", prices.__dict__)
    values = {key: value for key, value in stated.items() if value is not None}
    tokens = {ours: values[theirs] for theirs, ours in _PER_MILLION.items() if theirs in values}
    per_request = _one(values.get("requests_kcount"))
    if not {"input", "output"} & tokens.keys() and per_request is None:
        return None
    file_search = _one(values.get("storage_searches_kcount"))
    fees = {} if file_search is None else {"file_search": file_search}
    starts = sorted({tier.start for price in tokens.values() for tier in getattr(price, "tiers", ())})
    card = RateCard(
        provider,
        model,
        rule,
        _rates(tokens, -1),
        tuple((start, _rates(tokens, start)) for start in starts),
        web_search=_one(values.get("web_searches_kcount")),
        per_request=per_request,
        fees=fees,
    )
    return finished(card, set(tokens))


def _one(price: Any) -> Decimal | None:
    """The price of one, of a price per thousand."""
    return EXACT.divide(price, THOUSAND) if isinstance(price, Decimal) else None


def _rates(tokens: Mapping[str, Any], above: int) -> Rates:
    """The rates of calls with just more than `above` input tokens."""
    return rates_per_million({name: _tiered(price, above) for name, price in tokens.items()})


def _tiered(price: Any, above: int) -> Decimal:
    found: Decimal = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if above >= tier.start:
            found = tier.price
    return found


def shipped_card(provider: str, name: str, entry: Shipped) -> RateCard:
    """The card of an entry of our own table."""
    rates = rates_per_million({key: Decimal(value) for key, value in entry.rates.items()})
    requests = {key: Decimal(value) for key, value in entry.requests.items()}
    card = RateCard(
        provider,
        name,
        f"shipped {entry.provider}/{name}",
        rates,
        web_search=requests.get("web_search"),
        per_request=requests.get("per_request"),
        notes=(f"{entry.source}, as of {entry.date}",),
    )
    return finished(card, set(entry.rates))


def rule_card(provider: str, name: str, rule: PriceRule, above: Iterable[PriceRule]) -> RateCard:
    """The card of a user's rule, with the rules for long contexts."""
    notes = [rule.note] if rule.note else []
    without = [kind for kind in ("input", "output") if kind not in rule.rates]
    if rule.rates and without:
        notes.append(f"{without[0]} not stated: calls with {without[0]} are unpriced")
    if "input" in rule.rates:
        missing = [key for key in ("cache_read", "cache_write") if key not in rule.rates]
        if missing:
            notes.append(f"{' and '.join(missing)} not stated: charged as input")
    ordered = sorted(above, key=lambda banded: banded.above or 0)
    card = RateCard(
        provider,
        name,
        rule.title,
        rates_per_million(rule.rates),
        tuple((banded.above or 0, rates_per_million({**rule.rates, **banded.rates})) for banded in ordered),
        web_search=rule.web_search,
        per_request=rule.per_request,
        notes=tuple(notes),
    )
    return replace(card, unsure=_unsure(rule.rates))


def _unsure(stated: Iterable[str]) -> frozenset[str]:
    """Lifetimes without a rate. 5 and 30 minutes are not among them: they are vendors' plain cache writes."""
    names = set(stated)
    return frozenset(ttl for ttl in ("1h", "12h") if "cache_write_" + ttl not in names and "cache_write" in names)


def finished(card: RateCard, stated: set[str]) -> RateCard:
    """The card with prices that a vendor publishes for all its models and a price list may lack."""
    if card.provider == "perplexity" and card.per_request is not None:
        card = replace(card, estimated="the fee of a request depends on its search context")  # the list has the highest
    list_id = PRICE_LISTS.get(card.provider)
    for fee in FEES:
        if fee.provider == list_id and re.match(fee.models, card.model):
            card = with_fee(card, fee.tool, Decimal(fee.price))
    if any(list_id == place and re.match(models, card.model) for place, models in SEARCH_ONCE):
        card = replace(card, search_once=True)
    if card.provider == "openai" and "cache_write" in stated:
        card = _with_write(card, "12h", "cache_write", Decimal(OPENAI_WRITE_12H))
        stated = {*stated, "cache_write_12h"}
    if "claude" not in card.model:
        return replace(card, unsure=_unsure(stated))
    if "cache_write" in stated and "cache_write_1h" not in stated:
        card = _with_write(card, "1h", "input", Decimal(CLAUDE_WRITE_1H))
    if card.web_search is None:
        card = replace(card, web_search=EXACT.divide(Decimal(CLAUDE_WEB_SEARCH), THOUSAND))
    return card


def with_fee(card: RateCard, tool: str, price: Decimal) -> RateCard:
    """The card with a fee for each call of a tool, unless it has one."""
    if tool == "web_search":
        return card if card.web_search is not None else replace(card, web_search=price)
    return card if tool in card.fees else replace(card, fees={**card.fees, tool: price})


def searching(card: RateCard, source: str, name: str) -> RateCard:
    """The card with the search that the model `name` of the price list `source` does for each request."""
    for fee in ALWAYS_SEARCHES:
        if fee.provider == source and card.per_request is None and re.match(fee.models, name):
            doubt = "; ".join(filter(None, (card.estimated, "one search for each request is assumed")))
            return replace(card, per_request=Decimal(fee.price), estimated=doubt)
    return card


def unbilled_card(provider: str, model: str, rule: str) -> RateCard:
    """A card by which tokens cost nothing."""
    return RateCard(provider, model, rule, rates_per_million({"input": ZERO, "output": ZERO}))


def _with_write(card: RateCard, lifetime: str, of: str, times: Decimal) -> RateCard:
    """The card with cache writes of this lifetime at `times` times the rate `of`, in all its bands."""

    def changed(rates: Rates) -> Rates:
        rate: Decimal | None = getattr(rates, of)
        return rates if rate is None else replace(rates, **{f"cache_write_{lifetime}": EXACT.multiply(rate, times)})

    bands = tuple((above, changed(rates)) for above, rates in card.bands)
    return replace(card, rates=changed(card.rates), bands=bands)
