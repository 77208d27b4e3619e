"""Units of budgets: smallest units, parsing and printing ("5 USD", "50k tokens", "2 min")."""

from __future__ import annotations

import re
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from math import ceil

from otel_tokens.values import EXACT

NANO = 1_000_000_000
_NANO = Decimal(NANO)
USD = "usd"
TOKENS = "tokens"
INPUT_TOKENS = "input_tokens"
OUTPUT_TOKENS = "output_tokens"
CALLS = "calls"
SECONDS = "seconds"
OPERATIONS = "operations"

CALL_UNITS = (USD, TOKENS, INPUT_TOKENS, OUTPUT_TOKENS, CALLS, SECONDS)
"""What a call uses; operations are counted by the application (`guard.count`)."""
UNITS = (*CALL_UNITS, OPERATIONS)

_SMALLEST = {USD: NANO, SECONDS: 1000}
_WORDS = {
    "usd": USD,
    "$": USD,
    "dollar": USD,
    "dollars": USD,
    "token": TOKENS,
    "tokens": TOKENS,
    "input_tokens": INPUT_TOKENS,
    "output_tokens": OUTPUT_TOKENS,
    "call": CALLS,
    "calls": CALLS,
    "requests": CALLS,
    "operation": OPERATIONS,
    "operations": OPERATIONS,
}
_DURATIONS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "sec": Decimal(1),
    "second": Decimal(1),
    "seconds": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "minute": Decimal(60),
    "minutes": Decimal(60),
    "h": Decimal(3600),
    "hour": Decimal(3600),
    "hours": Decimal(3600),
    "d": Decimal(86400),
    "day": Decimal(86400),
    "days": Decimal(86400),
    "w": Decimal(604800),
    "week": Decimal(604800),
    "weeks": Decimal(604800),
}
_SCALE = {"k": 1000, "m": 1_000_000}
_NUMBER = re.compile(r"\s*([+-]?\d[\d_]*(?:\.\d+)?|[+-]?\.\d+)\s*(.*?)\s*")
_LARGEST = 10**15
"""A sum above this many smallest units times a thousand calls would leave 64 bits; nobody means such a limit."""


def nano(money: Decimal) -> int:
    """USD to nano-USD, rounded up: a budget never gains by rounding."""
    return ceil(EXACT.multiply(money, _NANO))


def family(unit: str) -> str:
    """The kind of a unit: "operations:file_edit" is of "operations"."""
    return unit.partition(":")[0]


def smallest(unit: str) -> int:
    """How many of the smallest units make a whole one."""
    return _SMALLEST.get(unit, 1)


def to_smallest(unit: str, amount: object) -> int:
    """An amount as declared (number or text) in the unit's smallest unit. Raises ValueError that names the reason."""
    if family(unit) == SECONDS:
        return _scaled(duration(amount), 1000)
    if isinstance(amount, str):
        # As typed at a terminal: "$5", "50k tokens".
        with suppress(ValueError):
            named, smallest_units = parse_amount(amount)
            if named == family(unit):
                return smallest_units
    number, rest = _number(amount)
    if rest and unit != USD and rest.lower() in _SCALE:
        number, rest = EXACT.multiply(number, _SCALE[rest.lower()]), ""
    if rest and _WORDS.get(rest.lower()) != family(unit):
        raise ValueError(f"{amount!r} is not an amount of {unit}")
    return _scaled(number, smallest(unit))


def from_smallest(unit: str, amount: int) -> Decimal:
    """The amount in whole units: USD, tokens, seconds."""
    return EXACT.divide(Decimal(amount), smallest(unit))


def duration(value: object) -> Decimal:
    """Seconds of a number or of text such as "90", "2 min", "1.5h". Raises ValueError."""
    number, rest = _number(value)
    if not rest:
        return number
    factor = _DURATIONS.get(rest.lower())
    if factor is None:
        raise ValueError(f"{value!r} is not a time; write 90, 90s, 15 min, 2h or 7d")
    return EXACT.multiply(number, factor)


def parse_amount(text: str) -> tuple[str, int]:
    """The (unit, smallest units) of what a person typed: "5USD", "$5", "50k tokens", "10min". Raises ValueError."""
    plain = text.strip()
    sign = "-" if plain.startswith("-") else ""
    if plain.lstrip("+-").startswith("$"):
        plain = f"{sign}{plain.lstrip('+-')[1:]} USD"
    number, rest = _number(plain)
    word = rest.lower()
    for letter, scale in _SCALE.items():
        scaled = _WORDS.get(word[1:].strip()) if word.startswith(letter) else None
        if scaled is not None and scaled != USD:
            return scaled, _scaled(EXACT.multiply(number, scale), 1)
    unit = _WORDS.get(word) or (SECONDS if word in _DURATIONS else None)
    if unit is None and word.startswith(f"{OPERATIONS}:"):
        unit = rest
    if unit is None:
        raise ValueError(f"{text!r} does not say of what; write 5USD, 50000tokens, 10calls or 15min")
    return unit, _scaled(duration(text) if unit == SECONDS else number, smallest(unit))


def show(unit: str, amount: int) -> str:
    """An amount for people, without its unit: "4.97", "12,345", "90"."""
    if family(unit) == USD:
        value = from_smallest(unit, amount)
        return f"{value.normalize(EXACT):,f}" if amount % (NANO // 100) else f"{value:,.2f}"
    if family(unit) == SECONDS:
        return f"{from_smallest(unit, amount).normalize(EXACT):,f}"
    return f"{amount:,}"


def name(unit: str) -> str:
    """The unit for people: "USD", "tokens", "file_edit operations"."""
    kind, _, what = unit.partition(":")
    return "USD" if kind == USD else f"{what} {kind}" if what else kind.replace("_", " ")


_MAX_EXPONENT = 40


def _number(value: object) -> tuple[Decimal, str]:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        raise ValueError(f"{value!r} is not a number")
    if isinstance(value, Decimal) and value.is_finite():
        # Before any other step: writing the number out takes a digit for each step of its exponent.
        if value and not -_MAX_EXPONENT <= value.adjusted() <= _MAX_EXPONENT:
            raise ValueError(f"{value} is not a believable amount")
        value = value or Decimal(0)
    # Nine digits for floats: 0.1 * 3 means 0.3.
    styles: dict[type, str] = {float: ".9f", Decimal: "f"}
    found = _NUMBER.fullmatch(format(value, styles.get(type(value), "")))
    try:
        number = Decimal(found[1].replace("_", "")) if found else Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a number") from None
    if not number.is_finite():
        raise ValueError(f"{value!r} is not a finite number")
    return number, found[2] if found else ""


def _scaled(number: Decimal, scale: int) -> int:
    exact = EXACT.multiply(number, scale)
    if exact != exact.to_integral_value():
        raise ValueError(f"{number} is finer than 1/{scale}" if scale > 1 else f"{number} is not a whole number")
    if not -_LARGEST <= exact <= _LARGEST:
        raise ValueError(f"{number} is too large")
    return int(exact)
