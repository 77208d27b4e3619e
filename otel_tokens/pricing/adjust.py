"""Cards on the conditions of a call: its tier, speed and place (`tiers`), applied to what a price list has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from otel_tokens.pricing.card import RateCard
from otel_tokens.pricing.compile import listed_card, shipped_card, unbilled_card
from otel_tokens.pricing.shipped import PREPAID, PRICE_LISTS, SOLD_AT_OWN_PRICE, Shipped
from otel_tokens.pricing.tiers import NORMAL, Conditions, adjust, period


def doubted(card: RateCard, doubt: str) -> RateCard:
    """The card with one more reason why its rates may not be right; "" is none."""
    return replace(card, estimated="; ".join(filter(None, (card.estimated, doubt)))) if doubt else card


def adjusted_listed(provider: str, source: str, model: Any, wanted: Conditions, at: float) -> RateCard | None:
    """The card of a genai-prices model out of the price list `source`, which may be another vendor's."""
    list_id = PRICE_LISTS[provider]
    # Rates by tier are the vendor's own terms: where another cloud sells the model they are only the likeliest.
    change = adjust(list_id, model.id, model if source == list_id else None, wanted, at)
    if change.estimated and (list_id, source) in SOLD_AT_OWN_PRICE:
        theirs = adjust(source, model.id, model, wanted, at)
        change = change if theirs.estimated else replace(theirs, estimated=f"{source}'s own price of {wanted}")
    prices = model.get_prices(change.moment, change.context or None)
    rule = f"genai-prices {source}/{model.id}{change.title()}"
    card = listed_card(provider, model.id, prices, rule)
    if card is None:
        return None
    if source == "openai" != list_id:
        card = replace(card, web_search=None, fees={})  # the tools of another host have prices of their own
    begin, end = period((list_id, source), model, at)
    factor = change.factor
    card = card if factor is None else card.times(factor)
    return replace(doubted(card, change.estimated), valid_from=begin, valid_until=end)


def adjusted_shipped(provider: str, name: str, entry: Shipped, wanted: Conditions, at: float) -> RateCard:
    """The card of an entry of our own table, on these conditions."""
    list_id = PRICE_LISTS[provider]
    change = adjust(list_id, name, None, wanted, at) if wanted != NORMAL else None
    card = shipped_card(provider, name, entry)
    if change is not None:
        card = card if change.factor is None else card.times(change.factor)
        card = replace(doubted(card, change.estimated), rule=card.rule + change.title())
    begin, end = period((list_id,), None, at)
    return replace(card, valid_from=begin, valid_until=end)


def prepaid(provider: str, names: Sequence[tuple[str, str]], wanted: Conditions) -> RateCard | None:
    """The card of a tier whose capacity is paid for in advance, or None. `names` are (name, doubt)."""
    if wanted.tier not in PREPAID.get(PRICE_LISTS.get(provider, ""), ()):
        return None
    return unbilled_card(provider, names[0][0], f"tier {wanted.tier}: paid for in advance, not by token")
