"""The rate card: all prices of one model on one tier in one period, and the arithmetic of a call's cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from math import inf

from otel_tokens.values import EXACT, Usage

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per token; None where no rate is known.

    `cache_write` is the rate of a write whose lifetime is not stated. Modalities (and reasoning) without a rate of
    their own are charged at `cache_read`, `input` or `output`, whose part they are.
    """

    input: Decimal | None = None
    output: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_5m: Decimal | None = None
    cache_write_30m: Decimal | None = None
    cache_write_1h: Decimal | None = None
    cache_write_12h: Decimal | None = None
    input_audio: Decimal | None = None
    input_image: Decimal | None = None
    input_video: Decimal | None = None
    cache_read_audio: Decimal | None = None
    cache_read_image: Decimal | None = None
    cache_read_video: Decimal | None = None
    output_audio: Decimal | None = None
    output_image: Decimal | None = None
    output_video: Decimal | None = None
    reasoning: Decimal | None = None

    @property
    def modal(self) -> bool:
        """Whether a modality or reasoning has a rate of its own."""
        return any(getattr(self, name) is not None for name in _MODAL)

    def times(self, factor: Decimal) -> Rates:
        """All rates multiplied by `factor`."""
        changes = {
            name: EXACT.multiply(rate, factor) for name in RATE_NAMES if (rate := getattr(self, name)) is not None
        }
        return replace(self, **changes)


RATE_NAMES: tuple[str, ...] = tuple(f.name for f in fields(Rates))
MODALITIES = ("audio", "image", "video")
_MODAL = (
    *(f"{kind}_{modality}" for kind in ("input", "cache_read", "output") for modality in MODALITIES),
    "reasoning",
)
TTLS = ("12h", "1h", "30m", "5m")


def rates_per_million(values: Mapping[str, Decimal | None]) -> Rates:
    """`Rates` from USD per million tokens.

    A cache rate that is not given is the input rate (of the same modality), a lifetime's that of `cache_write`.
    """
    per_token = {name: None if rate is None else EXACT.scaleb(rate, -6) for name, rate in values.items()}
    if per_token.get("cache_read") is None:
        for modality in MODALITIES:
            per_token.setdefault(f"cache_read_{modality}", per_token.get(f"input_{modality}"))
    for name in ("cache_read", "cache_write"):
        if per_token.get(name) is None:
            per_token[name] = per_token.get("input")
    for ttl in TTLS:
        if per_token.get(f"cache_write_{ttl}") is None:
            per_token[f"cache_write_{ttl}"] = per_token["cache_write"]
    return Rates(**per_token)


@dataclass(frozen=True, slots=True)
class RateCard:
    """The compiled prices of (provider, model, tier) in the period [`valid_from`, `valid_until`), unix seconds.

    `bands` are the long-context rates: (n, rates) charges *all* tokens of a call whose input, cached included, is
    larger than n; the highest that fits counts. `web_search` and `per_request` are USD for one, `fees` USD for one
    call of another hosted tool; with `search_once` all searches of a request cost as one. `rule` names the source.
    `estimated` says why the rates are not known to be right ("" if they are), `unsure` the cache-write lifetimes that
    have no rate of their own.
    """

    provider: str
    model: str
    rule: str
    rates: Rates
    bands: tuple[tuple[int, Rates], ...] = ()
    web_search: Decimal | None = None
    per_request: Decimal | None = None
    fees: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    search_once: bool = False
    estimated: str = ""
    unsure: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    valid_from: float = -inf
    valid_until: float = inf
    currency: str = "USD"
    modal: bool = field(init=False, default=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modal", self.rates.modal or any(rates.modal for _, rates in self.bands))

    def rates_for(self, input_tokens: int) -> Rates:
        """The rates of a call with this much input."""
        rates = self.rates
        for above, banded in self.bands:
            if input_tokens > above:
                rates = banded
        return rates

    def times(self, factor: Decimal) -> RateCard:
        """The card with all token rates multiplied; prices per search and per request stay."""
        bands = tuple((above, rates.times(factor)) for above, rates in self.bands)
        return replace(self, rates=self.rates.times(factor), bands=bands)


Parts = tuple[Decimal, Decimal, Decimal, Decimal, Decimal]
"""input, cache_read, cache_write, output, other: in the order of `values.COST_PARTS`."""

_mul = EXACT.multiply
_add = EXACT.add


def charge(card: RateCard, usage: Usage) -> Parts | str:
    """The cost of `usage` in USD by `card`, or the kind of tokens that has no rate.

    Only this function subtracts: uncached input is input - cache_read - cache_write, never below 0.
    """
    rates = card.rates_for(usage.input) if card.bands else card.rates
    read, write = usage.cache_read, usage.cache_write
    uncached = usage.input - read - write
    if uncached < 0 or read < 0 or write < 0 or usage.output < 0:
        uncached, read, write = max(uncached, 0), max(read, 0), max(write, 0)
    split = _modal_parts if card.modal else _plain_parts
    plain = split(rates, usage, uncached, read)
    if isinstance(plain, str):
        return plain
    cost_in, cost_read, cost_out = plain
    cost_write = ZERO
    if write:
        if rates.cache_write is None:
            return "cache_write"
        cost_write = _write_cost(rates, usage, write)
    other = ZERO if card.per_request is None else card.per_request
    if usage.web_searches > 0 and card.web_search is not None:
        other = _add(other, _mul(card.web_search, 1 if card.search_once else usage.web_searches))
    return cost_in, cost_read, cost_write, cost_out, other


def _plain_parts(rates: Rates, usage: Usage, uncached: int, read: int) -> tuple[Decimal, Decimal, Decimal] | str:
    """input, cache_read and output where tokens of a kind all have the same rate."""
    cost_in = cost_read = cost_out = ZERO
    if uncached:
        if rates.input is None:
            return "input"
        cost_in = _mul(rates.input, uncached)
    if read:
        if rates.cache_read is None:
            return "cache_read"
        cost_read = _mul(rates.cache_read, read)
    if usage.output > 0:
        if rates.output is None:
            return "output"
        cost_out = _mul(rates.output, usage.output)
    return cost_in, cost_read, cost_out


def _write_cost(rates: Rates, usage: Usage, write: int) -> Decimal:
    """The cost of cache writes by lifetime. Writes without a stated lifetime have the provider's default."""
    total, left = ZERO, write
    for tokens, rate in (
        (usage.cache_write_12h, rates.cache_write_12h),
        (usage.cache_write_1h, rates.cache_write_1h),
        (usage.cache_write_30m, rates.cache_write_30m),
        (usage.cache_write_5m, rates.cache_write_5m),
        (write, rates.cache_write),
    ):
        if tokens > 0 and left > 0:
            written = min(tokens, left)
            left -= written
            total = _add(total, _mul(rate or ZERO, written))
    return total


def _modal_parts(rates: Rates, usage: Usage, uncached: int, read: int) -> tuple[Decimal, Decimal, Decimal] | str:
    """input, cache_read and output where a modality or reasoning has a rate of its own."""
    costs: list[Decimal] = []
    for kind, whole in (("input", uncached), ("cache_read", read), ("output", max(usage.output, 0))):
        cost, left = ZERO, whole
        for rate, tokens in _special(rates, usage, kind):
            taken = min(max(tokens, 0), left)
            left -= taken
            cost = _add(cost, _mul(rate, taken))
        if left:
            rest: Decimal | None = getattr(rates, kind)
            if rest is None:
                return kind
            cost = _add(cost, _mul(rest, left))
        costs.append(cost)
    return costs[0], costs[1], costs[2]


def _special(rates: Rates, usage: Usage, kind: str) -> Iterator[tuple[Decimal, int]]:
    """(rate, tokens) of the parts of `kind` that have a rate of their own."""
    for modality in MODALITIES:
        rate: Decimal | None = getattr(rates, f"{kind}_{modality}")
        if rate is not None:
            tokens: int = getattr(usage, f"{kind}_{modality}")
            if kind == "input":
                tokens -= getattr(usage, f"cache_read_{modality}")
            yield rate, tokens
    if kind == "output" and rates.reasoning is not None:
        yield rates.reasoning, usage.reasoning


def is_unsure(card: RateCard, usage: Usage) -> bool:
    """Whether `usage` has cache writes of a lifetime whose rate is not known."""
    unsure = card.unsure
    return (usage.cache_write_12h > 0 and "12h" in unsure) or (usage.cache_write_1h > 0 and "1h" in unsure)
