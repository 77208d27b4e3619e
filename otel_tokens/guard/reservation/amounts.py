"""Checks amounts before they reach a store: whole numbers, 0 or more, and no more than a store can add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from otel_tokens.values import CallSizes

MOST = 2**50
"""The largest amount. It is above every limit that can be declared, and thousands of them add up in 64 bits."""
_MOST_TOKENS = 10**12
_USUAL = 2**40


def checked(sizes: CallSizes) -> CallSizes:
    """`sizes` with numbers that can be reserved: a request may contain anything (`max_tokens` of -1, 10**19 or "5").

    A bound on output that is no number, not finite or below 0 is none. Other numbers become 0 then, and all are cut at
    10**12.
    """
    bound = sizes.output_bound
    try:
        # In one step for nearly all calls: no int of these is below 0 or very large, and none is a float or a text.
        bits = sizes.input_upper | sizes.input_tokens_estimate | sizes.thinking | sizes.choices | sizes.web_searches
        if 0 <= (bits if bound is None else bits | bound) < _USUAL:
            return sizes
    except TypeError:
        pass
    return replace(
        sizes,
        input_upper=_whole(sizes.input_upper) or 0,
        input_tokens_estimate=_whole(sizes.input_tokens_estimate) or 0,
        output_bound=_whole(bound),
        thinking=_whole(sizes.thinking) or 0,
        choices=_whole(sizes.choices) or 1,
        web_searches=_whole(sizes.web_searches) or 0,
    )


def _whole(value: object) -> int | None:
    if isinstance(value, float) and math.isfinite(value):
        value = math.ceil(value)
    if not isinstance(value, int) or value < 0:
        return None
    return min(int(value), _MOST_TOKENS)


def within_store(amounts: Sequence[int]) -> Sequence[int]:
    """`amounts`, each from 0 to `MOST`."""
    if not amounts or (max(amounts) <= MOST and min(amounts) >= 0):
        return amounts
    return tuple(min(max(amount, 0), MOST) for amount in amounts)


def counted(amount: object, what: str) -> int:
    """A number that the program gives. Raises ValueError for anything but a whole number, 0 or more."""
    if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
        raise ValueError(f"{what} are a whole number, not less than 0: {amount!r}"[:200])
    return min(amount, MOST)
