"""What the ledger's rows can be grouped and chosen by, and the SQL for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otel_tokens.ledger.rows import NAMED_TAGS

Where = Mapping[str, str | int | None]
"""Dimension → the value it must have; None asks for rows that have none."""

# Whole seconds: SQLite would round the last millisecond of a day into the next.
_TIME = "strftime('{}', CAST(started AS INTEGER), 'unixepoch', 'localtime'{})"
_THURSDAY = ", '-3 days', 'weekday 4'"  # of the same week: an ISO week belongs to the year of its Thursday
_WEEK = (
    f"{_TIME.format('%Y', _THURSDAY)} || '-W' || "
    f"substr('0' || ((CAST({_TIME.format('%j', _THURSDAY)} AS INTEGER) + 6) / 7), -2)"
)
TIMES: dict[str, str] = {
    "hour": _TIME.format("%Y-%m-%d %H:00", ""),
    "day": _TIME.format("%Y-%m-%d", ""),
    "week": _WEEK,
    "month": _TIME.format("%Y-%m", ""),
}
"""Local times: "2026-11-03 12:00", "2026-11-03", "2026-W45" (ISO weeks, from Monday), "2026-11"."""

DIMENSIONS: dict[str, str] = {
    **{
        name: name
        for name in (
            "model",
            "response_model",
            "asked_model",
            "provider",
            "operation",
            "endpoint",
            "outcome",
            "error_type",
            "service_tier",
            "server_address",
            "server_port",
            "sdk",
            "origin",
            "missing_reason",
            "cost_status",
            "cost_source",
            "currency",
            "decision",
            "host",
            "pid",
            *NAMED_TAGS,
        )
    },
    **TIMES,
}
"""Dimension → SQL. Any other name is a tag of the application's own ("tag:NAME" if it is named like one of these)."""

# A row's own currency says something only when it has a cost.
CURRENCY = "CASE WHEN cost_total IS NOT NULL THEN currency END"
_OWN_TAG = "(SELECT value FROM json_each(tags) WHERE key = ?)"


def expressions(by: Sequence[str]) -> tuple[list[str], list[Any]]:
    """SQL for the dimensions, and its parameters."""
    found: list[str] = []
    names: list[Any] = []
    for name in by:
        tag = name.removeprefix("tag:")
        known = tag if tag in NAMED_TAGS else DIMENSIONS.get(name)
        found.append(known or _OWN_TAG)
        if known is None:
            names.append(tag)
    return found, names


def condition(since: float | None, until: float | None, where: Where | None) -> tuple[str, list[Any]]:
    """SQL for the rows of a time and with these values, and its parameters."""
    parts, parameters = ["1"], list[Any]()
    if since is not None:
        parts.append("started >= ?")
        parameters.append(since)
    if until is not None:
        parts.append("started < ?")
        parameters.append(until)
    for name, value in (where or {}).items():
        found, names = expressions([name])
        parts.append(f"{found[0]} IS ?")
        parameters += [*names, value]
    return " AND ".join(parts), parameters
