"""Reading the ledger: rows, sums by any dimension, what is unpriced. Read-only, and while others write."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from otel_tokens.errors import LedgerError
from otel_tokens.ledger import plan
from otel_tokens.ledger.catch_up import bring_up_to_date
from otel_tokens.ledger.dimensions import Where, condition
from otel_tokens.ledger.plan import Query
from otel_tokens.ledger.rows import SELECT, decode
from otel_tokens.ledger.schema import reading, resolve
from otel_tokens.ledger.sums import Sums
from otel_tokens.values import Record

Path = str | os.PathLike[str]


class Reader:
    """What a ledger holds at one moment; made by `open_ledger`. Times are unix seconds, `until` is exclusive."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.connection = connection
        self.path = path

    def rows(
        self, since: float | None = None, until: float | None = None, where: Where | None = None
    ) -> Iterator[Record]:
        """The records in the order they were written. Raises LedgerError for a row that somebody else damaged."""
        text, parameters = condition(since, until, where)
        for row in self.connection.execute(f"{SELECT} WHERE {text} ORDER BY seq", parameters):
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
        found = plan.aggregate(self.connection, Query(by, since, until, where or {}))
        return [(key[:-1], key[-1], total) for key, total in found]

    def unpriced(
        self, since: float | None = None, until: float | None = None, where: Where | None = None
    ) -> dict[str, int]:
        """Model → number of its calls whose price is unknown."""
        found = plan.aggregate(self.connection, Query(("model",), since, until, where or {}))
        counts: dict[str, int] = {}
        for (model, _), total in found:
            if total.counts["unpriced"]:
                counts[model] = counts.get(model, 0) + total.counts["unpriced"]
        return dict(sorted(counts.items(), key=lambda item: item[0] or ""))


@contextlib.contextmanager
def open_ledger(path: Path) -> Generator[Reader]:
    """Read a ledger; all that is read inside is of one moment. Raises LedgerError, with the path."""
    bring_up_to_date(path)
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
