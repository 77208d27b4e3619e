"""What calls used and cost, by model, agent, day …: exact, and honest about what is not known."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from decimal import Context, Decimal
from functools import reduce
from typing import Any

from otel_tokens.errors import ConfigError
from otel_tokens.ledger.dimensions import TIMES, Where
from otel_tokens.ledger.query import open_ledger
from otel_tokens.ledger.rows import EXACT
from otel_tokens.ledger.sums import ZERO, Sums
from otel_tokens.reports import text
from otel_tokens.reports.data import ReportData, Row
from otel_tokens.reports.table import render
from otel_tokens.reports.times import When, moment

_ROUNDED = Context(prec=28)  # our own: the application may have changed the current one
_IN_TIME = set(TIMES)  # dimensions that are read in their own order, not by cost


class Report(ReportData):
    """A report as `report` gives it: its data (`rows`, `total` …) and its three forms."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.table()

    def table(self, width: int | None = None, *, color: bool | None = None) -> str:
        """A table for people: `width` columns (the terminal's, else 120), coloured when stdout is a terminal."""
        return render(self, width, color)

    def json(self) -> str:
        """The report as JSON, amounts as strings: see `otel_tokens.reports.text.to_json` for the schema."""
        return text.to_json(self)

    def csv(self) -> str:
        """The rows as CSV with a header line; the total is not among them."""
        return text.to_csv(self)


def report(
    ledger: str | os.PathLike[str],
    *,
    by: str | Sequence[str] = "model",
    since: When = None,
    until: When = None,
    where: Where | None = None,
) -> Report:
    """The report of a ledger.

    `by` is one dimension or several (model, provider, session, task, tenant, user, agent, feature, hour, day, week,
    month, operation, outcome … or the name of a tag of your own). `where` keeps only calls with these values. `since`
    and `until` (exclusive) take a datetime, "24h", "7d", "today", an ISO date, or unix seconds, by the start of a call.
    Raises LedgerError when there is no ledger to read, ConfigError for an empty name or a time that is none.
    """
    dimensions = tuple(name.strip() for name in (by.split(",") if isinstance(by, str) else by))
    if not all(dimensions):
        raise ConfigError(f"{by!r} leaves a name empty; write model, or agent,model", key="by")
    now = time.time()
    start, end = moment(since, now), moment(until, now, key="until")
    with open_ledger(ledger) as reader:
        groups = reader.aggregate(dimensions, start, end, where)
        unpriced = reader.unpriced(start, end, where)
        path = reader.path
    rows = _rows(groups, dimensions)
    totals = _totals(rows)
    total = totals[0] if len(totals) == 1 else _sum(rows, None)
    return Report(
        ledger=path,
        by=dimensions,
        since=start,
        until=end,
        generated=now,
        rows=tuple(rows),
        total=total,
        totals=tuple(totals),
        unpriced_models=unpriced,
        notes=text.notes(dimensions, rows, total, totals, unpriced),
    )


def _rows(groups: Sequence[tuple[tuple[Any, ...], str | None, Sums]], by: tuple[str, ...]) -> list[Row]:
    merged = _with_currency(groups)
    spent: dict[str | None, Decimal] = {}
    for (_, currency), sums in merged.items():
        spent[currency] = EXACT.add(spent.get(currency, ZERO), sums.cost["total"])
    rows = [
        _row(key, currency, sums, _share(sums.cost["total"], spent[currency]))
        for (key, currency), sums in merged.items()
    ]
    rows.sort(key=lambda row: (EXACT.minus(row.cost or ZERO), -row.calls, [value or "" for value in row.key]))
    for at in reversed(range(len(by))):
        if by[at] in _IN_TIME:
            rows.sort(key=lambda row: row.key[at] or "")
    return rows


def _with_currency(
    groups: Sequence[tuple[tuple[Any, ...], str | None, Sums]],
) -> dict[tuple[tuple[str | None, ...], str | None], Sums]:
    """One group per key and currency: calls without a cost go to a group that has one, if any."""
    merged: dict[tuple[tuple[str | None, ...], str | None], Sums] = {}
    for values, currency, sums in sorted(groups, key=lambda group: (group[1] is None, group[1])):
        key = tuple(None if value is None else str(value) for value in values)
        if currency is None:
            currency = next((known for other, known in merged if other == key), None)  # noqa: PLW2901
        before = merged.get((key, currency))
        merged[key, currency] = sums if before is None else before + sums
    return merged


def _row(key: tuple[str | None, ...], currency: str | None, sums: Sums, share: Decimal | None = None) -> Row:
    tokens = sums.tokens
    return Row(
        key=key,
        calls=sums.calls,
        errors=sums.counts["errors"],
        input=tokens["input"],
        cache_read=tokens["cache_read"],
        cache_write=tokens["cache_write"],
        output=tokens["output"],
        reasoning=tokens["reasoning"],
        component_input=tokens["component_input"],
        component_output=tokens["component_output"],
        cost=sums.cost["total"] if sums.counts["priced"] and currency is not None else None,
        currency=currency,
        unpriced=sums.counts["unpriced"],
        estimated=sums.counts["estimated"],
        missing=sums.counts["missing"],
        share=share,
        sums=sums,
    )


def _share(cost: Decimal, spent: Decimal) -> Decimal | None:
    return _ROUNDED.divide(cost, spent).quantize(Decimal("0.0001"), context=_ROUNDED) if spent > 0 else None


def _sum(rows: Sequence[Row], currency: str | None) -> Row:
    return _row((), currency, reduce(lambda total, row: total + row.sums, rows, Sums()))


def _totals(rows: Sequence[Row]) -> list[Row]:
    currencies = list(dict.fromkeys(row.currency for row in rows if row.currency is not None))
    if len(currencies) <= 1:
        return [_sum(rows, currencies[0] if currencies else None)]
    # Rows without any cost belong to no currency; the overall total has them.
    return [_sum([row for row in rows if row.currency == currency], currency) for currency in currencies]
