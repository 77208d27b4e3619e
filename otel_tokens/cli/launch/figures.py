"""What a run has used so far, read from the ledger, and how it is written in a line."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from otel_tokens.errors import LedgerError
from otel_tokens.ledger.query import aggregate
from otel_tokens.reports.text import counted, price


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over the calls of one run; `cost` by currency."""

    calls: int = 0
    input: int = 0
    output: int = 0
    cost: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    errors: int = 0
    unpriced: int = 0

    def line(self) -> str:
        """As one line: "12 calls · 34.1k in · 5.2k out · $0.0123 · 2 unpriced"."""
        parts = [counted(self.calls, "call"), f"{short(self.input)} in", f"{short(self.output)} out"]
        parts += [price(amount, currency) for currency, amount in sorted(self.cost.items())]
        if self.unpriced:
            parts.append(f"{self.unpriced} unpriced")
        if self.errors:
            parts.append(counted(self.errors, "error"))
        return " · ".join(parts)


def read(path: str, since: float, tag: str, value: str) -> Figures:
    """The figures of the calls that have `tag` = `value`; those of none when there is no ledger yet."""
    calls = tokens_in = tokens_out = errors = unpriced = 0
    cost: dict[str, Decimal] = {}
    with contextlib.suppress(LedgerError):
        for _, currency, sums in aggregate(path, (), since=since, where={f"tag:{tag}": value}):
            calls += sums.calls
            tokens_in += sums.tokens["input"] + sums.tokens["component_input"]
            tokens_out += sums.tokens["output"] + sums.tokens["component_output"]
            errors += sums.counts["errors"]
            unpriced += sums.counts["unpriced"]
            if currency is not None:
                cost[currency] = cost.get(currency, Decimal(0)) + sums.cost["total"]
    return Figures(calls, tokens_in, tokens_out, cost, errors, unpriced)


def short(number: int) -> str:
    """A number in at most six characters: 950, 34.1k, 5.2M."""
    for size, sign in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{sign}"
    return str(number)
