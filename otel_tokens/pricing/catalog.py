"""All price data: the user's rules, genai-prices, and the shipped table of what it lacks.

The catalogue looks for a model by its exact name in the user's rules, by their patterns, by its exact name and aliases
in the provider's price list, and by its family (the name without date or `-latest`), in this order. A model that is not
found is unpriced. Its price is never guessed and never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import inf
from typing import Any

from otel_tokens.pricing.adjust import adjusted_listed, adjusted_shipped, doubted, prepaid
from otel_tokens.pricing.card import ZERO, RateCard
from otel_tokens.pricing.compile import rule_card, searching, unbilled_card
from otel_tokens.pricing.loading import Background
from otel_tokens.pricing.match import PriceList
from otel_tokens.pricing.names import by_the_hour, family, regional_doubt, spellings, variants, without_region
from otel_tokens.pricing.quiet_import import import_prices
from otel_tokens.pricing.rules import PriceRule
from otel_tokens.pricing.shipped import (
    AS_OF,
    FREE_ROUTER,
    FREE_VARIANT,
    ONLINE_FEE,
    PRICE_LISTS,
    PRICES,
    PROVIDER_ALIASES,
    ROUTED_VARIANTS,
    SOLD_AT_OWN_PRICE,
    Shipped,
)
from otel_tokens.pricing.tiers import Conditions, bounds, conditions, midnight, moment_of
from otel_tokens.pricing.vendors import vendor_of
from otel_tokens.values import EXACT

_MAX_CARDS = 4096

Query = tuple[str | None, str, str | None, str | None, str | None, str | None]
"""provider (None: the model's maker), model asked for, model that answered, tier, speed, geo."""


@dataclass(frozen=True, slots=True)
class PriceData:
    """genai-prices' data: its version, and its price lists by id, each indexed when it is first used."""

    version: str
    sources: dict[str, Any]
    lists: dict[str, PriceList]

    def list(self, list_id: str) -> PriceList | None:
        """The index of a price list, or None when there is none of that id."""
        found = self.lists.get(list_id)
        if found is None and list_id in self.sources:
            found = self.lists[list_id] = PriceList(self.sources[list_id])
        return found


def _load() -> PriceData:
    # Imported here: it takes 0.3 s and brings pydantic along.
    import_prices()
    from genai_prices import __version__
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    updated = f" updated {snapshot.timestamp:%Y-%m-%dT%H:%M:%S}" if snapshot.from_auto_update else ""
    return PriceData(__version__ + updated, {provider.id: provider for provider in snapshot.providers}, {})


PRICE_DATA = Background(_load)
"""The process's price data, shared by all catalogues."""

_SHIPPED: dict[tuple[str, str], Shipped] = {(entry.provider, name): entry for entry in PRICES for name in entry.models}


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a look-up, valid in [`valid_from`, `valid_until`): a card, or the reason why there is none."""

    card: RateCard | None
    reason: str
    valid_from: float = -inf
    valid_until: float = inf


class Catalog:
    """All prices. `overrides` are the user's rules (`parse_rules`), which win over all other prices."""

    def __init__(self, overrides: Sequence[PriceRule] = ()) -> None:
        self.overrides = tuple(overrides)
        self._found: dict[tuple[Any, ...], Found] = {}
        self._marks = [mark for rule in self.overrides for mark in rule.boundaries()]
        self._fingerprint = _fingerprint(self.overrides) if self.overrides else ""
        self._version = ""

    def warm(self) -> None:
        """Begin to load genai-prices' data in the background; a look-up that comes earlier waits for it."""
        PRICE_DATA.start()

    def reload(self) -> None:
        """Read genai-prices' data again, after the application has updated it (`genai_prices.UpdatePrices`)."""
        PRICE_DATA.reload()
        self._found = {}
        self._version = ""

    @property
    def version(self) -> str:
        """Names the data, so that a price can be looked up again: "genai-prices 0.2.3, shipped 2026-11-23"."""
        if not self._version:
            data = PRICE_DATA.get()
            number = data.version if data is not None else "unavailable"
            own = f", rules {self._fingerprint}" if self._fingerprint else ""
            self._version = f"genai-prices {number}, shipped {AS_OF}{own}"
        return self._version

    def card(
        self,
        provider: str | None,
        model: str,
        tier: str | None = None,
        at: float = 0.0,
        *,
        speed: str | None = None,
        geo: str | None = None,
    ) -> RateCard | None:
        """The rate card of a model at `at` (unix seconds), or None. `provider` None: the maker of the model."""
        return self.find((provider, model, None, tier, speed, geo), at).card

    def find(self, query: Query, at: float) -> Found:
        """The card of a call. A cached one takes half a microsecond."""
        found = self._found.get(query)
        if found is None or not found.valid_from <= at < found.valid_until:
            found = self._find(query, at)
            if len(self._found) >= _MAX_CARDS:
                self._found = {}  # the application chooses the names, so their memory is bounded
            self._found[query] = found
        return found

    def price_list(self, list_id: str) -> PriceList | None:
        """A price list of genai-prices by its id ("openai", "google" …)."""
        data = PRICE_DATA.get()
        return data.list(list_id) if data is not None else None

    def _find(self, query: Query, at: float) -> Found:
        provider, model, response_model, *rest = query
        wanted = conditions(*rest)
        billed_by = canonical(provider) if provider else vendor_of(model)
        names = _candidates(billed_by, model, response_model)
        begin, end = bounds(self._marks, at)
        card = self._ruled(billed_by, [name for name, _ in names], wanted, at) or prepaid(billed_by, names, wanted)
        if card is None:
            for name, doubt in names:
                card = self._listed(billed_by, name, wanted, at)
                if card is not None:
                    card = doubted(card, doubt)
                    begin, end = max(begin, card.valid_from), min(end, card.valid_until)
                    break
        if card is None:
            whose = billed_by or "an unknown provider"
            return Found(None, f"no price for {model!r} of {whose}{_why(billed_by, model)}", begin, end)
        return Found(replace(card, valid_from=begin, valid_until=end), "", begin, end)

    def _ruled(self, provider: str, names: list[str], wanted: Conditions, at: float) -> RateCard | None:
        """The card of the user's best rule for the first name that has one."""
        day = moment_of(at).date()
        known = [
            rule
            for rule in self.overrides
            if rule.active(day)
            and (rule.provider is None or canonical(rule.provider) == provider)
            and (rule.tier is None or rule.tier in (wanted.tier, wanted.speed))
        ]
        for pattern in (False, True):
            for name in names:
                fitting = [rule for rule in known if rule.is_pattern is pattern and rule.fits(name)]
                base = [rule for rule in fitting if rule.above is None]
                if base:
                    best = max(enumerate(base), key=lambda item: (*_rank(item[1]), item[0]))[1]
                    above = {r.above: r for r in sorted(fitting, key=_rank) if r.above and r.tier == best.tier}
                    return rule_card(provider, name, best, above.values())
        return None

    def _listed(self, provider: str, model: str, wanted: Conditions, at: float) -> RateCard | None:
        """The card of exactly `model`, else of its family, from the provider's price list."""
        list_id = PRICE_LISTS.get(provider)
        if list_id is None or by_the_hour(model):
            return None
        exact = spellings(model, provider)
        for name in exact:
            card = self._named(provider, list_id, name, wanted, at)
            if card is not None:
                return doubted(card, regional_doubt(exact[0], card.model)) if list_id in ("aws", "azure") else card
        for name in exact:
            shorter = family(name)
            card = self._named(provider, list_id, shorter, wanted, at) if shorter else None
            if card is not None:
                doubt = "which version is the latest is not known" if name.endswith("-latest") else ""
                return doubted(replace(card, rule=f"{card.rule} (family of {name})"), doubt)
        if list_id == "openrouter":
            return self._variant(provider, exact, wanted, at)
        for name in exact if list_id == "aws" else ():
            anywhere = without_region(name)
            card = self._named(provider, list_id, anywhere, wanted, at) if anywhere else None
            if card is not None:
                return doubted(card, "no price for this region is listed; the general regional one is used")
        return None

    def _variant(self, provider: str, names: Sequence[str], wanted: Conditions, at: float) -> RateCard | None:
        """The card of a model of OpenRouter whose suffix the list does not have: by the meaning of the suffix."""
        for name in names:
            base, suffixes = variants(name)
            routed = [suffix for suffix in suffixes if suffix != FREE_VARIANT]
            if (not suffixes and base != FREE_ROUTER) or any(suffix not in ROUTED_VARIANTS for suffix in routed):
                continue
            if len(routed) < len(suffixes) or base == FREE_ROUTER:
                card: RateCard | None = unbilled_card(provider, name, f"OpenRouter's free variant {name}")
            else:
                card = self._named(provider, "openrouter", base, wanted, at)
            if card is not None:
                fee = Decimal(ONLINE_FEE) if "online" in routed else None
                card = card if fee is None else replace(card, per_request=EXACT.add(card.per_request or ZERO, fee))
                return doubted(card, "; ".join(ROUTED_VARIANTS[suffix] for suffix in routed))
        return None

    def _named(self, provider: str, list_id: str, name: str, wanted: Conditions, at: float) -> RateCard | None:
        """The card of this very name from the provider's list, else from those of the vendors it sells."""
        prices = self.price_list(list_id)
        for source in (list_id, *(prices.fallbacks if prices is not None else ())):
            card = self._sourced(provider, source, name, wanted, at)
            if card is not None:
                own = SOLD_AT_OWN_PRICE.get((list_id, source))
                sold = source == list_id or (own is not None and re.match(own, card.model))
                return card if sold else doubted(card, f"{source}'s own price")
        return None

    def _sourced(self, provider: str, source: str, name: str, wanted: Conditions, at: float) -> RateCard | None:
        entry = _SHIPPED.get((source, name))
        since = midnight(entry.since) if entry is not None else -inf
        prices = self.price_list(source)
        model = prices.find(name) if prices is not None else None
        if entry is not None and (model is None or (entry.first and since <= at)):
            card: RateCard | None = adjusted_shipped(provider, name, entry, wanted, at)
        elif model is not None:
            card = adjusted_listed(provider, source, model, wanted, at)
        else:
            return None
        card = None if card is None else searching(card, source, name)
        if card is None or entry is None or model is None:
            return card
        begin, end = bounds([since], at)
        return replace(card, valid_from=max(card.valid_from, begin), valid_until=min(card.valid_until, end))


def canonical(provider: str) -> str:
    """The conventions' name of a provider, for any spelling of it."""
    name = provider.strip().lower()
    return PROVIDER_ALIASES.get(name, name)


def _candidates(provider: str, model: str, response_model: str | None) -> list[tuple[str, str]]:
    """(name, doubt) in the order in which to look: first the model that answered, then the model of the request.

    The request comes first if only it has what decides the price: a fine-tune, a suffix of OpenRouter, an id or profile
    of Bedrock, which names the region.
    """
    if not response_model or response_model == model:
        return [(model, "")]
    if model.startswith("ft:") or by_the_hour(model):
        return [(model, "")]
    if provider == "aws.bedrock":
        return [(model, ""), (response_model, "the request does not name the model, nor its region")]
    if provider == "openrouter" and variants(model)[1]:
        return [(model, ""), (response_model, "")]
    return [(response_model, ""), (model, "")]


def _why(provider: str, model: str) -> str:
    if by_the_hour(model):
        return " (its capacity is billed by the hour)"
    return "" if not provider or provider in PRICE_LISTS else " (no price list of this provider is known)"


def _rank(rule: PriceRule) -> tuple[bool, bool, int, Any]:
    """The sort key of rules that fit: the largest is the best rule."""
    start = rule.start.toordinal() if rule.start else 0
    return rule.tier is not None, rule.provider is not None, len(rule.model.strip("*?")), start


def _fingerprint(rules: Iterable[PriceRule]) -> str:
    from hashlib import sha256  # only needed if the user states prices

    text = repr([(r.model, sorted(r.rates.items()), r.provider, r.tier, r.per_request, r.web_search, r.above, r.start,
                  r.end) for r in rules])  # fmt: skip
    return sha256(text.encode()).hexdigest()[:8]
