"""Exact sums over rows: counts in integers, money in decimals. What queries, totals and retention share."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from otel_tokens.errors import LedgerError
from otel_tokens.ledger.rows import EXACT
from otel_tokens.values import COST_PARTS, TOKEN_FIELDS

ZERO = Decimal(0)

COUNTS: dict[str, str] = {
    "calls": "1",
    "errors": "outcome = 'error'",
    # A failed call that reported nothing was not billed: it is neither missing its usage nor its price.
    "missing": "origin = 'missing' AND coalesce(missing_reason, '') <> 'error'",
    "estimated": "origin IN ('estimated', 'partial') OR cost_status = 'estimated'",
    "unpriced": "cost_status = 'unpriced' AND origin <> 'missing'",
    "priced": "cost_total IS NOT NULL",
}
"""What is counted, and the condition under which a row counts."""

TOKENS: tuple[str, ...] = (*TOKEN_FIELDS, "component_input", "component_output")
"""The token columns; the component ones are billed parts that the others don't contain."""

MONEY: tuple[str, ...] = ("total", *COST_PARTS)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over some rows. `counts` by COUNTS, `tokens` by TOKENS, `cost` by MONEY (known amounts only)."""

    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    tokens: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(TOKENS, 0))
    cost: Mapping[str, Decimal] = field(default_factory=lambda: dict.fromkeys(MONEY, ZERO))

    @property
    def calls(self) -> int:
        """How many calls."""
        return self.counts["calls"]

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            {name: count + other.counts.get(name, 0) for name, count in self.counts.items()},
            {name: count + other.tokens.get(name, 0) for name, count in self.tokens.items()},
            {name: EXACT.add(amount, other.cost.get(name, ZERO)) for name, amount in self.cost.items()},
        )

    def pack(self) -> str:
        """As JSON, without zeros."""
        return json.dumps(
            {
                "counts": {name: count for name, count in self.counts.items() if count},
                "tokens": {name: count for name, count in self.tokens.items() if count},
                "cost": {name: str(amount) for name, amount in self.cost.items() if amount},
            }
        )

    @classmethod
    def unpack(cls, text: str) -> Sums:
        """From what `pack` gave. Names it does not have are 0, names of other versions are left out."""
        packed = json.loads(text)
        return cls(
            {name: int(packed["counts"].get(name, 0)) for name in COUNTS},
            {name: int(packed["tokens"].get(name, 0)) for name in TOKENS},
            {name: Decimal(packed["cost"].get(name, 0)) for name in MONEY},
        )


Key = tuple[Any, ...]


def select(
    connection: sqlite3.Connection, by: Sequence[str], where: str = "1", parameters: Sequence[Any] = ()
) -> list[tuple[Key, Sums]]:
    """The sums of the rows for which `where` holds, grouped by the SQL expressions `by`.

    `parameters` fill the placeholders of `by`, then of `where`. Raises sqlite3.Error, and LedgerError for an amount
    that is none. No function of Python runs inside SQLite, which would lose what a signal handler raises there.
    """
    try:
        return _select(connection, by, where, parameters, "sum({0}), 0")
    except sqlite3.OperationalError as error:
        # Only numbers that no provider means get here, and even they must add up.
        if "integer overflow" not in str(error):
            raise
        return _select(connection, by, where, parameters, f"sum({{0}} & {_LOW}), sum({{0}} >> {_BITS})")


_BITS = 32
_LOW = (1 << _BITS) - 1
_PLACES = 12
# An amount "0.…" of at most 14 characters has at most 12 decimal places, and its floating-point product with 10^12 is
# so close to an integer that it is exact once rounded. Other amounts are added up by Python.
_SHORT = "{0} GLOB '0.*' AND length({0}) <= 14"
_UNITS = f"CASE WHEN {_SHORT} THEN CAST({{0}} * 1e12 + 0.5 AS INTEGER) END"
_OTHERS = f"group_concat(CASE WHEN {{0}} = '0' OR {_SHORT} THEN NULL ELSE {{0}} END, ' ')"


def _select(
    connection: sqlite3.Connection, by: Sequence[str], where: str, parameters: Sequence[Any], add: str
) -> list[tuple[Key, Sums]]:
    columns = [
        *by,
        *(f"sum({condition})" for condition in COUNTS.values()),
        *(add.format(name) for name in TOKENS),
        *(f"{add.format(_UNITS.format(f'cost_{name}'))}, {_OTHERS.format(f'cost_{name}')}" for name in MONEY),
    ]
    group = f"GROUP BY {', '.join(str(at + 1) for at in range(len(by)))}" if by else ""
    sql = f"SELECT {', '.join(columns)} FROM calls WHERE {where} {group}"  # noqa: S608  # no text of a user's in it
    return [(row[: len(by)], _sums(row[len(by) :])) for row in connection.execute(sql, parameters).fetchall()]


def _sums(values: tuple[Any, ...]) -> Sums:
    tokens_at, money_at = len(COUNTS), len(COUNTS) + 2 * len(TOKENS)
    counts, tokens, money = values[:tokens_at], values[tokens_at:money_at], values[money_at:]
    return Sums(
        dict(zip(COUNTS, (count or 0 for count in counts), strict=True)),
        dict(zip(TOKENS, map(_whole, tokens[::2], tokens[1::2]), strict=True)),
        dict(zip(MONEY, map(_amount, money[::3], money[1::3], money[2::3]), strict=True)),
    )


def _whole(low: int | None, high: int | None) -> int:
    return int(low or 0) + (int(high or 0) << _BITS)


def _amount(low: int | None, high: int | None, others: str | None) -> Decimal:
    total = amount(_whole(low, high), _PLACES)
    try:
        for text in (others or "").split():
            total = EXACT.add(total, Decimal(text))
    except ArithmeticError:
        total = Decimal("NaN")
    if not total.is_finite():
        raise LedgerError("an amount in it cannot be read; `otel-tokens doctor` says which")
    return total


def amount(units: int, places: int) -> Decimal:
    """So many units of 10^-`places`, without needless zeros."""
    exact = EXACT.scaleb(Decimal(units), -places)
    short = EXACT.normalize(exact)
    return EXACT.quantize(short, Decimal(1)) if short == EXACT.to_integral_value(short) else short
