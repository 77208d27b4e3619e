"""Reading the ledger: rows, sums by any dimension, what is unpriced. Read-only, and while others write."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from otel_tokens.errors import LedgerError
from otel_tokens.ledger import sums
from otel_tokens.ledger.rows import NAMED_TAGS, SELECT, decode
from otel_tokens.ledger.schema import reading, resolve
from otel_tokens.ledger.sums import Sums
from otel_tokens.values import Record

Path = str | os.PathLike[str]
Where = Mapping[str, str | int | None]
"""Dimension → the value it must have; None asks for rows that have none."""

_TIME = "strftime('{}', started, 'unixepoch', 'localtime')"
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
            "sdk",
            "origin",
            "cost_status",
            "cost_source",
            "currency",
            "decision",
            "host",
            "pid",
            *NAMED_TAGS,
        )
    },
    "hour": _TIME.format("%Y-%m-%d %H:00"),
    "day": _TIME.format("%Y-%m-%d"),
    "month": _TIME.format("%Y-%m"),
}
"""What rows can be grouped by, and the SQL for it; any other name is a tag of the application's own ("tag:NAME"
if it is named like one of these). Times are local."""

# A row's own currency says something only when it has a cost.
_CURRENCY = "CASE WHEN cost_total IS NOT NULL THEN currency END"
_OWN_TAG = "(SELECT value FROM json_each(tags) WHERE key = ?)"


class Reader:
    """What a ledger holds at one moment; made by `open_ledger`. Times are unix seconds, `until` is exclusive."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.connection = connection
        self.path = path

    def rows(
        self, since: float | None = None, until: float | None = None, where: Where | None = None
    ) -> Iterator[Record]:
        """The records in the order they were written. Raises LedgerError for a row that somebody else damaged."""
        condition, parameters = _condition(since, until, where)
        for row in self.connection.execute(f"{SELECT} WHERE {condition} ORDER BY seq", parameters):
            try:
                yield decode(row)
            except (ValueError, TypeError, KeyError) as error:
                raise LedgerError(f"the row of call {row[0]} is unreadable: {error}", path=self.path) from error

    def aggregate(
        self,
        by: Sequence[str] = ("model",),
        since: float | None = None,
        until: float | None = None,
        where: Where | None = None,
    ) -> list[tuple[tuple[Any, ...], str | None, Sums]]:
        """(values of `by`, currency, sums) of each group. Currencies aren't added up; it is None without a cost."""
        condition, parameters = _condition(since, until, where)
        expressions, names = _expressions(by)
        found = sums.select(self.connection, [*expressions, _CURRENCY], condition, [*names, *parameters])
        return [(key[:-1], key[-1], total) for key, total in found]

    def unpriced(
        self, since: float | None = None, until: float | None = None, where: Where | None = None
    ) -> dict[str, int]:
        """Model → number of its calls whose price is unknown."""
        condition, parameters = _condition(since, until, where)
        sql = (
            f"SELECT model, count(*) FROM calls WHERE ({condition}) AND {sums.COUNTS['unpriced']} GROUP BY 1 ORDER BY 1"  # noqa: S608
        )
        return dict(self.connection.execute(sql, parameters))


@contextlib.contextmanager
def open_ledger(path: Path) -> Generator[Reader]:
    """Read a ledger; all that is read inside is of one moment. Raises LedgerError, with the path."""
    with reading(path) as connection:
        yield Reader(connection, resolve(path))


def rows(
    path: Path, since: float | None = None, until: float | None = None, where: Where | None = None
) -> Iterator[Record]:
    """The records of a ledger, in the order they were written: see `Reader.rows`."""
    with open_ledger(path) as ledger:
        yield from ledger.rows(since, until, where)


def aggregate(
    path: Path,
    by: Sequence[str] = ("model",),
    since: float | None = None,
    until: float | None = None,
    where: Where | None = None,
) -> list[tuple[tuple[Any, ...], str | None, Sums]]:
    """Exact sums of a ledger by the dimensions `by`: see `Reader.aggregate`."""
    with open_ledger(path) as ledger:
        return ledger.aggregate(by, since, until, where)


def _expressions(by: Sequence[str]) -> tuple[list[str], list[Any]]:
    """SQL for the dimensions, and its parameters."""
    expressions: list[str] = []
    names: list[Any] = []
    for name in by:
        tag = name.removeprefix("tag:")
        known = tag if tag in NAMED_TAGS else DIMENSIONS.get(name)
        expressions.append(known or _OWN_TAG)
        if known is None:
            names.append(tag)
    return expressions, names


def _condition(since: float | None, until: float | None, where: Where | None) -> tuple[str, list[Any]]:
    parts, parameters = ["1"], list[Any]()
    if since is not None:
        parts.append("started >= ?")
        parameters.append(since)
    if until is not None:
        parts.append("started < ?")
        parameters.append(until)
    for name, value in (where or {}).items():
        expressions, names = _expressions([name])
        # Not "IS ?", for which SQLite would not use an index.
        parts.append(f"{expressions[0]} IS NULL" if value is None else f"{expressions[0]} = ?")
        parameters += names if value is None else [*names, value]
    return " AND ".join(parts), parameters
