"""The guard's options, and the functions that are injected into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from otel_tokens.guard.budgets.presets import THRESHOLDS
from otel_tokens.guard.budgets.thresholds import HOOKS
from otel_tokens.values import EMPTY, Call, CallSizes, Cost, PriceLine, Usage


class Price(Protocol):
    """Prices usage; `at` is unix time in seconds; `tier`, `speed` and `geo` are what was asked for, or answered."""

    def __call__(
        self,
        provider: str,
        model: str,
        usage: Usage,
        *,
        at: float,
        tier: str | None = None,
        speed: str | None = None,
        geo: str | None = None,
        address: str | None = None,
    ) -> Cost:
        """The cost; its total is None when the model has no price."""
        ...


class LinearPrice(Protocol):
    """Gives the price of a kind of call as a linear function of its tokens; None where the price is not linear.

    The kind is given by two usages: `given` has one input token of it, `output` has one output token.
    """

    def __call__(
        self,
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
        """The line. It never lies below the price."""
        ...


Estimate = Callable[[Call, CallSizes], Usage]
"""The likely usage of a call (what `estimate: expected` reserves)."""


def _no_tags() -> Mapping[str, str]:
    return EMPTY


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """How the guard decides where budgets do not say.

    `fail`: without the store go on by what this process last knew of each account (local), let all calls through
    (open), or refuse those under hard budgets (closed). `offline_share` (0 to 1): the part of its limit that an account
    has while `fail` is local and this process has not seen it yet. `estimate`: reserve the upper bound or
    the expected use. `unpriced`: under a money budget refuse a model without price, price it as its dearest
    `sibling` (needs `dearest`), or watch its `tokens` only. `thresholds`: shares of a budget that are announced.
    `lease_seconds`: how long a reservation outlives its process. `min_output`: the fewest output tokens a call
    may be clamped to. `clamp_unbounded`: a call without a limit of its own gets one when its model's maximum
    does not fit. `max_output(provider, model)` is a model's largest output, or None. `straight` gives prices as
    lines, by which reservations cost less time (None: each is priced). `queue` bounds settlements waiting for a
    store on the network. `tags()` are the current tags. `on_pause(event)` is told of each paused call. `hooks` are
    the application's own, by kind (checkpoint, compact).
    """

    fail: Literal["local", "open", "closed"] = "local"
    offline_share: float = 0.1
    estimate: Literal["upper", "expected"] = "upper"
    unpriced: Literal["block", "sibling", "tokens"] = "block"
    thresholds: object = THRESHOLDS
    lease_seconds: float = 60.0
    min_output: int = 128
    clamp_unbounded: bool = True
    max_output: Callable[[str, str], int | None] | None = None
    dearest: Callable[[str, Usage, float], Cost] | None = None
    straight: LinearPrice | None = None
    queue: int = 10_000
    tags: Callable[[], Mapping[str, str]] = _no_tags
    on_pause: Callable[[Any], object] | None = None
    hooks: Mapping[str, Callable[[Any], object]] = field(default_factory=dict[str, Callable[[Any], object]])

    def __post_init__(self) -> None:
        unknown = set(self.hooks) - HOOKS
        if unknown:
            raise ValueError(f"unknown hooks: {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(HOOKS))}")
