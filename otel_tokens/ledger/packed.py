"""The sums of many columns in one integer, so that adding two rows is one addition.

Each column has 128 bits of its own. Amounts are whole units of 10^-24, counts are as they are. A row only takes values
that leave room for 2^32 additions (`pack` refuses others), so a column never overflows into the next.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from otel_tokens.ledger.sums import MONEY, TOKENS, amount

COMMON = ("input", "output", "cache_read", "cache_write", "reasoning", "component_input", "component_output")
RARE = tuple(name for name in TOKENS if name not in COMMON)
"""TOKENS in the order of the columns. The rare ones come last: where they are 0 they take no space."""

_PLACES = 24  # decimal places of an amount: the price lists have rates of up to 24
_BYTES = 16
_LIMIT = 1 << 96  # an amount is below: 79,228 units of the currency
_COMMON = struct.Struct("<" + "Q8x" * (1 + len(COMMON)))  # refuses what is negative
_RARE = struct.Struct("<" + "Q8x" * len(RARE))
_ALL = struct.Struct("<" + "QQ" * (len(MONEY) + 1 + len(TOKENS)))
_NOTHING = bytes(_BYTES)
_ZEROS = {None: _NOTHING, "0": _NOTHING}
_POWERS = tuple(10**power for power in range(_PLACES, -1, -1))


def pack(amounts: Sequence[str | None], common: Sequence[int], rare: str | None) -> int:
    """One call as an integer: its MONEY (decimal text, None: unknown), COMMON tokens and RARE ones (JSON, None: all 0).

    Raises ValueError, TypeError, LookupError, OverflowError or struct.error for a row that does not fit exactly.
    """
    parts = [_ZEROS.get(amount) or _bytes(amount) for amount in amounts]
    parts.append(_COMMON.pack(1, *common))
    if rare is not None:
        parts.append(_RARE.pack(*json.loads(rare)))
    return int.from_bytes(b"".join(parts), "little")


def _bytes(amount: Any) -> bytes:
    whole, _, part = amount.partition(".")
    try:
        units = int(whole + part) * _POWERS[len(part)]
    except ValueError:
        return _bytes(_plain(amount))  # with an exponent, or not an amount
    if units >= _LIMIT:
        raise OverflowError("too large an amount")
    return units.to_bytes(_BYTES, "little")


def _plain(amount: str) -> str:
    """The same amount without an exponent. Raises ValueError if it is none, or negative."""
    try:
        number = Decimal(amount)
    except ArithmeticError:
        raise ValueError("not an amount") from None
    if not number.is_finite() or number.is_signed() or number.adjusted() > _PLACES:
        raise ValueError("not an amount that fits")
    return f"{number:f}"


def to_blob(packed: int) -> bytes:
    """As it is stored; `int.from_bytes(blob, "little")` reads it."""
    return packed.to_bytes((packed.bit_length() + 7) // 8, "little")


def calls(packed: int) -> int:
    """How many calls were added up."""
    return packed >> 8 * _BYTES * len(MONEY) & (1 << 8 * _BYTES) - 1


def unpack(packed: int) -> tuple[dict[str, int], dict[str, Decimal]]:
    """(tokens by TOKENS, cost by MONEY) of a sum of packed calls."""
    words = _ALL.unpack(packed.to_bytes(_ALL.size, "little"))
    numbers = [low | high << 64 for low, high in zip(words[::2], words[1::2], strict=True)]
    money = {name: amount(units, _PLACES) for name, units in zip(MONEY, numbers, strict=False)}
    found = dict(zip((*COMMON, *RARE), numbers[len(MONEY) + 1 :], strict=True))
    return {name: found[name] for name in TOKENS}, money
