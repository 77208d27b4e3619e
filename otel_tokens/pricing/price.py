"""The cost of one call: its usage, charged by the rate cards of the models that answered."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from otel_tokens.pricing.card import ZERO, Parts, charge, is_unsure
from otel_tokens.pricing.catalog import Catalog, Found, Query
from otel_tokens.pricing.names import place
from otel_tokens.pricing.shipped import REFUSALS_BILLED, REFUSALS_BILLED_AGAIN, REFUSALS_FREE
from otel_tokens.pricing.tiers import midnight
from otel_tokens.values import EXACT, Component, Cost, CostStatus, Usage, make

NO_USAGE = "no usage"
"""`Cost.rule` of a call that reported no tokens: nothing to price, so not a missing price either."""

REFUSED = "refused before any output: not billed"

ZERO_REPORTED = "the provider reports 0 USD beside tokens"

_NOTHING: Parts = (ZERO, ZERO, ZERO, ZERO, ZERO)
_UNREAD = frozenset(
    {"unaccounted:total"}
    | {f"{fault}:{name}" for fault in ("missing", "negative", "absurd", "not_a_number") for name in ("input", "output")}
)
"""Flags of a usage that leaves out tokens which may have been billed."""

Sum = tuple[Parts, str, str]
"""The parts, the rules used, and why they are only an estimate ("" if they are not)."""

_add = EXACT.add


class Pricer:
    """Prices calls by a `Catalog`. Pure. No I/O once the catalogue's data is loaded."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def __call__(
        self,
        provider: str | None,
        model: str,
        usage: Usage,
        *,
        response_model: str | None = None,
        tier: str | None = None,
        speed: str | None = None,
        geo: str | None = None,
        address: str | None = None,
        at: float,
    ) -> Cost:
        """The cost of `usage` in USD at the prices of `at` (unix seconds).

        `model` is what was asked for and `response_model` what answered; `tier`, `speed` and `geo` are the
        response's, `address` is the server's, which may show the place too. `provider` None means the maker of the
        model. Components add up to the total exactly.

        Status: "priced", also for tokens of a `Usage` made by hand; "estimated" when the tokens are (`usage.origin`)
        or are not reported in full (`usage.flags`), or when a tier, lifetime, region or web search has no known price
        and the nearest one is used (`rule` says which); "unpriced", all money None, when any part of the call has no
        known price (half a price is none) or when there was no usage (`rule` is then `NO_USAGE`: no pricing miss).

        A cost that the provider itself reports wins: it is `total` and `provider_total`, `source` is "provider",
        `local_total` is ours. What it exceeds our parts by is added to `other`; if it is below them, or we have
        none, all of it is `other` and the parts are 0, because we do not know how the provider split it. A reported 0
        beside tokens is believed only where our own price is 0 too.

        A request that Anthropic refused before any output costs nothing (`usage.flags` say "refused").
        """
        where = geo or place(provider, model, address)
        if usage.flags and "claude" in (response_model or model) and _refused_free(usage, at):
            total: Sum | str = _NOTHING, REFUSED, ""
        else:
            total = self._sum((provider, model, response_model, tier, speed, where), usage, at)
        ours = None if isinstance(total, str) else total
        reported = usage.reported_cost
        if reported is not None and reported >= 0 and (reported or _may_be_free(usage, ours)):
            return self._reported(reported, ours)
        if ours is None:
            return Cost(version=self.catalog.version, rule=str(total), provider_total=reported)
        return self._priced(ours, usage)

    def _priced(self, total: Sum, usage: Usage) -> Cost:
        parts, rule, doubt = total
        if usage.reported_cost is not None:
            doubt = "; ".join(filter(None, (doubt, ZERO_REPORTED)))
        if usage.origin in ("partial", "estimated"):
            doubt = "; ".join(filter(None, (doubt, f"tokens {usage.origin}")))
        for flag in usage.flags:
            why = _doubt_of(flag)
            if why not in doubt:
                doubt = f"{doubt}; {why}" if doubt else why
        status: CostStatus = "estimated" if doubt else "priced"
        if doubt:
            rule = f"{rule} [{doubt}]"
        amount = _total(parts)
        values: dict[str, Any] = {
            "total": amount,
            "local_total": amount,
            "status": status,
            "version": self.catalog.version,
            "rule": rule,
            "provider_total": usage.reported_cost,
        }
        values["input"], values["cache_read"], values["cache_write"], values["output"], values["other"] = parts
        return make(Cost, values)

    def _sum(self, query: Query, usage: Usage, at: float) -> Sum | str:
        """The cost of the call and its components, or why it is not known."""
        if usage.origin == "missing" and not (usage.input or usage.output or usage.web_searches or usage.components):
            return NO_USAGE
        own = self.catalog.find(query, at)
        charged = _charge(own, usage)
        if isinstance(charged, str) or not usage.components:
            return charged
        parts, rule, doubt = charged
        for component in usage.components:
            model = component.model
            found = own if model is None else self.catalog.find((query[0], model, None, *query[3:]), at)
            more = _charge_component(found, component)
            if isinstance(more, str):
                return f"{component.kind}: {more}"
            parts = _plus(parts, more[0])
            doubt = "; ".join(filter(None, (doubt, "" if more[2] in doubt else more[2])))
            if more[1] not in rule:
                rule = f"{rule} + {more[1]}"
        return parts, rule, doubt

    def _reported(self, reported: Decimal, ours: Sum | None) -> Cost:
        """The cost that the provider states, split by our prices as far as they agree."""
        local = None if ours is None else _total(ours[0])
        parts: Parts = (ZERO, ZERO, ZERO, ZERO, reported)
        if ours is not None and local is not None and local <= reported:
            known = ours[0]
            parts = (*known[:4], _add(known[4], EXACT.subtract(reported, local)))
        return Cost(
            reported,
            *parts,
            status="priced",
            source="provider",
            version=self.catalog.version,
            rule="reported by the provider" + (f"; ours: {ours[1]}" if ours else ""),
            local_total=local,
            provider_total=reported,
        )


def _charge(found: Found, usage: Usage) -> Sum | str:
    card = found.card
    if card is None:
        return found.reason
    parts = charge(card, usage)
    if isinstance(parts, str):
        return f"{card.rule} has no rate for {parts} tokens"
    doubt = card.estimated
    if card.unsure and usage.cache_write and is_unsure(card, usage):
        doubt = doubt or "the lifetime of a cache write has no rate of its own"
    if usage.web_searches and card.web_search is None and card.per_request is None:
        doubt = doubt or "web searches have no known price"
    return parts, card.rule, doubt


def _charge_component(found: Found, component: Component) -> Sum | str:
    """The tokens of a component, and the fee of each call of a hosted tool; a request's own fee is the call's."""
    card, calls = found.card, component.calls
    if not calls:
        if card is not None and card.per_request is not None:
            found = replace(found, card=replace(card, per_request=None))
        return _charge(found, component.usage)
    fee = None if card is None else card.fees.get(component.kind)
    if fee is None:
        return _NOTHING, "" if card is None else card.rule, f"{component.kind} calls have no known price"
    return (ZERO, ZERO, ZERO, ZERO, EXACT.multiply(fee, calls)), "" if card is None else card.rule, ""


def _doubt_of(flag: str) -> str:
    """Why a call with this flag may have cost more; "" if the flag does not say so."""
    if flag.startswith("uncounted:"):
        return f"{flag.removeprefix('uncounted:')} calls have no known price"
    return "tokens not reported in full" if flag in _UNREAD else ""


def _may_be_free(usage: Usage, ours: Sum | None) -> bool:
    """Whether a reported cost of 0 can be right: there were no tokens, or our own price is 0 as well."""
    return not (usage.input or usage.output) or (ours is not None and not _total(ours[0]))


def _refused_free(usage: Usage, at: float) -> bool:
    """Whether a request that was refused before any output is not billed: by day and by the refusal's category."""
    refused = [flag.partition(":")[2] for flag in usage.flags if flag.partition(":")[0] == "refused"]
    if not refused or usage.components or at < midnight(REFUSALS_FREE):
        return False
    return at < midnight(REFUSALS_BILLED_AGAIN) or refused[0] not in REFUSALS_BILLED


def _plus(left: Parts, right: Parts) -> Parts:
    a, b, c, d, e = (_add(x, y) for x, y in zip(left, right, strict=True))
    return a, b, c, d, e


def _total(parts: Parts) -> Decimal:
    cost_in, cost_read, cost_write, cost_out, other = parts
    return _add(_add(_add(_add(cost_in, cost_read), cost_write), cost_out), other)
