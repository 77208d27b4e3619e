"""Exact sums over rows: counts in integers, money in decimals. What queries, totals and retention share."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

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
) -> Iterator[tuple[Key, Sums]]:
    """The sums of the rows for which `where` holds, grouped by the SQL expressions `by`.

    `parameters` fill the placeholders of `by`, then of `where`. Raises sqlite3.Error.
    """
    connection.create_aggregate("exact_money", 1, _Money)  # pyright: ignore[reportArgumentType]  # sums may be text
    try:
        yield from _select(connection, by, where, parameters, "sum")
    except sqlite3.OperationalError as error:
        # Only numbers that no provider means get here, and even they must add up.
        if "integer overflow" not in str(error):
            raise
        connection.create_aggregate("exact_sum", 1, _Integers)  # pyright: ignore[reportArgumentType]
        yield from _select(connection, by, where, parameters, "exact_sum")


def _select(
    connection: sqlite3.Connection, by: Sequence[str], where: str, parameters: Sequence[Any], add: str
) -> list[tuple[Key, Sums]]:
    columns = [
        *by,
        *(f"sum({condition})" for condition in COUNTS.values()),
        *(f"{add}({name})" for name in TOKENS),
        *(f"exact_money(cost_{name})" for name in MONEY),
    ]
    group = f"GROUP BY {', '.join(str(at + 1) for at in range(len(by)))}" if by else ""
    sql = f"SELECT {', '.join(columns)} FROM calls WHERE {where} {group}"  # noqa: S608  # no text of a user's in it
    rows = connection.execute(sql, parameters).fetchall()
    return [(row[: len(by)], _sums(row[len(by) :])) for row in rows]


def _sums(values: tuple[Any, ...]) -> Sums:
    tokens_at, money_at = len(COUNTS), len(COUNTS) + len(TOKENS)
    return Sums(
        dict(zip(COUNTS, (count or 0 for count in values[:tokens_at]), strict=True)),
        dict(zip(TOKENS, (int(count or 0) for count in values[tokens_at:money_at]), strict=True)),
        dict(zip(MONEY, (Decimal(amount or 0) for amount in values[money_at:]), strict=True)),
    )


class _Money:
    """SQL aggregate: the exact sum of amounts held as text; unknown ones (NULL) are left out."""

    def __init__(self) -> None:
        self._total = ZERO

    def step(self, amount: str | None) -> None:
        if amount is not None and amount != "0":
            self._total = EXACT.add(self._total, Decimal(amount))

    def finalize(self) -> str:
        if not self._total.is_finite():
            raise ValueError("not an amount")  # some row holds a NaN or an infinity, which we never write
        return str(self._total)


class _Integers:
    """SQL aggregate: the sum of integers of any size."""

    def __init__(self) -> None:
        self._total = 0

    def step(self, count: int | None) -> None:
        self._total += count or 0

    def finalize(self) -> str:
        return str(self._total)
