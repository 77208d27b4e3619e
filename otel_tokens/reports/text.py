"""A report in words and data: money as people read it, the notes below the table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

from otel_tokens.ledger.dimensions import DIMENSIONS
from otel_tokens.reports.data import ReportData, Row
from otel_tokens.text import printable

SCHEMA = 1
_SIGNS = {"USD": "$", "EUR": "€", "GBP": "£", "CNY": "CN¥", "JPY": "JP¥", "INR": "₹", "KRW": "₩"}
_NAMES_SHOWN = 5
_SIGNS_OF_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # also the wide ones of East Asia

COUNTED = (
    "calls",
    "errors",
    "input",
    "cache_read",
    "cache_write",
    "output",
    "reasoning",
    "total_tokens",
    "component_input",
    "component_output",
    "unpriced",
    "estimated",
    "missing",
)
"""The integer fields of a row, in JSON and CSV."""


def price(amount: Decimal, currency: str | None) -> str:
    """An amount as people read it: cents from 1 up, four digits below, three significant ones below a cent."""
    size = amount.copy_abs()
    if size >= 1 or size == 0:
        shown = f"{amount:,.2f}"
    elif size >= Decimal("0.01"):
        shown = f"{amount:.4f}"
    else:
        shown = plain(Context(prec=3, rounding=ROUND_HALF_EVEN).plus(amount))
    sign = _SIGNS.get(currency or "USD")
    return f"{currency} {shown}" if sign is None else f"{sign}{shown}"


def plain(amount: Decimal) -> str:
    """An exact amount without an exponent or needless zeros: "0.000123"."""
    shown = f"{amount:f}"
    return (shown.rstrip("0").rstrip(".") or "0") if "." in shown else shown


def notes(
    by: Sequence[str], rows: Sequence[Row], total: Row, totals: Sequence[Row], unpriced: Mapping[str, int]
) -> tuple[str, ...]:
    """What the numbers don't say by themselves, a sentence each."""
    said: list[str] = []
    if total.unpriced:
        models = _some([printable(model) or "(no model)" for model in unpriced])
        said.append(
            f"{counted(total.unpriced, 'call')} of {counted(len(unpriced), 'model')} {are(total.unpriced)} unpriced, "
            f"the cost is unknown: {models}"
        )
    if total.missing:
        said.append(
            f"{counted(total.missing, 'call')} {are(total.missing)} without usage: the provider did not report any"
        )
    if total.estimated:
        said.append(f"{counted(total.estimated, 'call')} {are(total.estimated)} (partly) estimated")
    if total.component_input or total.component_output:
        said.append(
            f"{total.component_input:,} input and {total.component_output:,} output tokens more were billed in parts "
            "of calls that providers report apart (compaction, other models); the cost has them"
        )
    if len(totals) > 1:
        amounts = " and ".join(price(row.cost, row.currency) for row in totals if row.cost is not None)
        said.append(f"costs in different currencies are not added up: {amounts}")
    for at, name in enumerate(by):
        if rows and name not in DIMENSIONS and all(row.key[at] is None for row in rows):
            said.append(f'no call has a tag "{printable(name)}"')
    return tuple(said)


def to_json(report: ReportData) -> str:
    """The report as a JSON object. Stable: fields may be added, `schema` changes if one goes or changes its sense.

    schema, ledger (path), generated / since / until (ISO time in UTC or null), by (names), currency (null when there
    are several), rows, total, totals (one per currency), unpriced_models ({model: calls}), notes (sentences).
    A row: key ({dimension: value or null}; the total has {}), the integers of COUNTED, cost (exact decimal string, or
    null when unknown), currency, cost_parts ({input, cache_read, cache_write, output, other}: strings), share (of all
    cost in this currency, 0 to 1, string or null).
    """
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "ledger": report.ledger,
        "generated": _iso(report.generated),
        "since": _iso(report.since),
        "until": _iso(report.until),
        "by": list(report.by),
        "currency": report.total.currency,
        "rows": [_object(row, report.by) for row in report.rows],
        "total": _object(report.total, ()),
        "totals": [_object(row, ()) for row in report.totals],
        "unpriced_models": dict(report.unpriced_models),
        "notes": list(report.notes),
    }
    return json.dumps(body, indent=2)  # ASCII: it has to survive a stdout of any encoding


def to_csv(report: ReportData) -> str:
    """The rows as CSV: the dimensions, COUNTED, cost (exact, empty when unknown), currency."""
    out = io.StringIO(newline="")
    writer = csv.writer(_Lines(out), lineterminator="\r\n")
    writer.writerow([*map(_harmless, report.by), *COUNTED, "cost", "currency"])
    for row in report.rows:
        cost = "" if row.cost is None else plain(row.cost)
        counts = [getattr(row, name) for name in COUNTED]
        writer.writerow([*(_harmless(value or "") for value in row.key), *counts, cost, row.currency or ""])
    return out.getvalue()


class _Lines:
    """Lines that end in LF, for a writer whose lines end in CR LF: before Python 3.13 it quotes no CR otherwise."""

    def __init__(self, out: io.StringIO) -> None:
        self._out = out

    def write(self, line: str) -> int:
        return self._out.write(f"{line[:-2]}\n")


def _object(row: Row, by: Sequence[str]) -> dict[str, Any]:
    return {
        "key": dict(zip(by, row.key, strict=True)),
        **{name: getattr(row, name) for name in COUNTED},
        "cost": None if row.cost is None else plain(row.cost),
        "currency": row.currency,
        "cost_parts": None if row.cost is None else {name: plain(part) for name, part in row.cost_parts.items()},
        "share": None if row.share is None else plain(row.share),
    }


def _harmless(value: str) -> str:
    """A spreadsheet would run a value that looks like a formula, and tags may come from anybody.

    It does not see spaces and control characters in front of the sign, so these don't count.
    """
    seen = next((character for character in value if character.isprintable() and not character.isspace()), "")
    return f"'{value}" if (seen in _SIGNS_OF_FORMULA and seen) or value.startswith(("\t", "\r", "\n")) else value


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 call", "1,024 calls"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def are(count: int) -> str:
    """The verb for `counted`."""
    return "is" if count == 1 else "are"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
