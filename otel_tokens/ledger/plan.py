"""How a query is answered: from the summary where it can be, and from the rows where it must be.

The summary has whole quarters of an hour, or whole six hours for a tag. What it lacks comes from the rows: the time
before and after those, odd rows, and the rows that were written since. Each row is read from one place only.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from otel_tokens.ledger import packed, sums
from otel_tokens.ledger.dimensions import CURRENCY, DIMENSIONS, TIMES, Where, condition, expressions
from otel_tokens.ledger.part import KIND, NO_VALUE, PLACED_TAGS, QUARTER, SIX_HOURS, SUMMED_TAGS
from otel_tokens.ledger.summary import State, state
from otel_tokens.ledger.sums import COUNTS, Key, Sums

_AT_ONCE = 250_000  # rows
_NEVER = (0, -1)  # a range of row numbers with nothing in it


@dataclass(frozen=True, slots=True)
class Query:
    """Asks for sums by the dimensions `by` of calls in a time (unix seconds, `until` exclusive) with values `where`."""

    by: Sequence[str]
    since: float | None = None
    until: float | None = None
    where: Where = field(default_factory=dict[str, "str | int | None"])

    @property
    def tags(self) -> set[str]:
        """Those of its dimensions that `by_tag` has."""
        return {name for name in map(_bare, (*self.by, *self.where)) if name in SUMMED_TAGS}

    def is_summed(self) -> bool:
        """Whether the summary has all of its dimensions."""
        others = {_bare(name) for name in (*self.by, *self.where)} - self.tags
        return len(self.tags) <= 1 and all(name in TIMES or (name in KIND and name in DIMENSIONS) for name in others)


def _bare(name: str) -> str:
    tag = name.removeprefix("tag:")
    return tag if tag in SUMMED_TAGS else name


class Buckets(NamedTuple):
    """Buckets of `width` seconds, from `first` up to before `end`, numbered from 1970."""

    width: int
    first: int
    end: int


def aggregate(connection: sqlite3.Connection, query: Query) -> list[tuple[Key, Sums]]:
    """((*values of `by`, currency), sums) of each group, in one read transaction. Raises sqlite3.Error."""
    groups: dict[Key, Sums] = {}
    for key, found in _pieces(connection, query):
        before = groups.get(key)
        groups[key] = found if before is None else before + found
    return list(groups.items())


def _pieces(connection: sqlite3.Connection, query: Query) -> Iterator[tuple[Key, Sums]]:
    now = state(connection)
    oldest, newest = connection.execute("SELECT (SELECT min(seq) FROM calls), (SELECT max(seq) FROM calls)").fetchone()
    if oldest is None:
        return
    if now.stale or not now.summed:
        yield from _range(connection, query, oldest, newest)
        return
    buckets = _buckets(connection, query) if query.is_summed() else None
    if buckets is not None:
        yield from _summed(connection, query, buckets)
    regular = "seq NOT IN (SELECT seq FROM odd)"
    for begin, end in _outside(query, buckets):
        first, last = _numbers(connection, begin, end, now, query.where)
        piece = Query(query.by, begin, end, query.where)
        yield from _range(connection, piece, max(first, oldest), last, regular)
    yield from _range(connection, query, now.summed + 1, newest)
    yield from _rows(connection, query, "seq IN (SELECT seq FROM odd)", [])


def _range(
    connection: sqlite3.Connection, query: Query, first: int, last: int, chosen: str = "1"
) -> Iterator[tuple[Key, Sums]]:
    """The sums of the rows numbered `first` to `last`, some at a time: SQLite sorts them in memory."""
    for begin in range(first, last + 1, _AT_ONCE):
        end = min(begin + _AT_ONCE - 1, last)
        yield from _rows(connection, query, f"seq BETWEEN ? AND ? AND {chosen}", [begin, end])


def _rows(connection: sqlite3.Connection, query: Query, place: str, parameters: list[Any]) -> list[tuple[Key, Sums]]:
    found, names = expressions(query.by)
    text, values = condition(query.since, query.until, query.where)
    return sums.select(connection, [*found, CURRENCY], f"{place} AND {text}", [*names, *parameters, *values])


# ---- which part of the time is in whole buckets -------------------------------------------------------------------
def _buckets(connection: sqlite3.Connection, query: Query) -> Buckets | None:
    """The whole buckets within the query's time; None if there are none, or if they don't fit its hours or days."""
    width = SIX_HOURS if query.tags else QUARTER
    times = [TIMES[name] for name in (*query.by, *query.where) if name in TIMES]
    found = connection.execute("SELECT min(bucket), max(bucket) FROM spans").fetchone()
    if found[0] is None:
        return None
    oldest, newest = (bucket * QUARTER // width for bucket in found)
    first = oldest if query.since is None else max(oldest, math.ceil(query.since / width))
    end = newest + 1 if query.until is None else min(newest + 1, math.floor(query.until / width))
    if first >= end:
        return None
    if times:
        differ = " OR ".join(f"{_at(time, 'begin')} <> {_at(time, 'begin + ?1 - 1')}" for time in times)
        begins = (
            "SELECT DISTINCT bucket * ?2 / ?1 * ?1 AS begin FROM spans WHERE bucket * ?2 >= ?3 AND bucket * ?2 < ?4"
        )
        split = f"SELECT 1 FROM ({begins}) WHERE {differ} LIMIT 1"  # noqa: S608
        if connection.execute(split, (width, QUARTER, first * width, end * width)).fetchone() is not None:
            return None
    return Buckets(width, first, end)


def _at(time: str, moment: str) -> str:
    return time.replace("CAST(started AS INTEGER)", moment)


def _outside(query: Query, buckets: Buckets | None) -> list[tuple[float | None, float | None]]:
    """The times that the buckets leave out."""
    if buckets is None:
        return [(query.since, query.until)]
    begin, end = buckets.first * buckets.width, buckets.end * buckets.width
    before = [] if query.since is None or query.since >= begin else [(query.since, begin)]
    after = [] if query.until is None or query.until <= end else [(end, query.until)]
    return [*before, *after]


def _numbers(
    connection: sqlite3.Connection, begin: float | None, end: float | None, now: State, where: Where
) -> tuple[int, int]:
    """(first, last) number of the summed rows of a time; others may lie between."""
    first, last = 0, now.summed
    if begin is not None or end is not None:
        low = -math.inf if begin is None else begin // QUARTER
        high = math.inf if end is None else end // QUARTER
        found = connection.execute(
            "SELECT min(first), max(last) FROM spans WHERE bucket >= ? AND bucket <= ?", (low, high)
        ).fetchone()
        first, last = found if found[0] is not None else _NEVER
    for name, value in where.items():
        tag = name.removeprefix("tag:")
        if tag in PLACED_TAGS and value is not None:
            place = connection.execute(
                "SELECT first, last FROM places WHERE tag = ? AND value = ?", (tag, str(value))
            ).fetchone()
            first, last = (max(first, place[0]), min(last, place[1])) if place is not None else _NEVER
    return first, last


# ---- the summary --------------------------------------------------------------------------------------------------
def _summed(connection: sqlite3.Connection, query: Query, buckets: Buckets) -> Iterator[tuple[Key, Sums]]:
    kinds = _kinds(connection, query)
    groups: dict[Key, dict[str, int]] = {}
    totals: dict[Key, int] = {}
    for (time, value, kind), total in _cells(connection, query, buckets).items():
        described = kinds.get(kind)
        if described is None:
            continue
        of_kind, currency, counted = described
        key = (*_key(query.by, dict(time), value, of_kind), currency)
        totals[key] = totals.get(key, 0) + total
        counts = groups.setdefault(key, dict.fromkeys(COUNTS, 0))
        calls = packed.calls(total)
        for name in counted:
            counts[name] += calls
    for key, total in totals.items():
        tokens, cost = packed.unpack(total)
        yield key, Sums(groups[key], tokens, cost)


def _key(by: Sequence[str], times: dict[str, str], value: Any, of_kind: dict[str, Any]) -> Key:
    return tuple(
        times[name] if name in TIMES else value if _bare(name) in SUMMED_TAGS else of_kind[name] for name in by
    )


def _kinds(connection: sqlite3.Connection, query: Query) -> dict[int, tuple[dict[str, Any], str | None, list[str]]]:
    """Kind → its dimensions, its currency and which of COUNTS its calls are; of those that the query asks for."""
    where = {name: value for name, value in query.where.items() if name in KIND}
    text, parameters = condition(None, None, where)
    columns = ", ".join([*KIND, CURRENCY, *COUNTS.values()])
    rows = connection.execute(f"SELECT kind, {columns} FROM kinds WHERE {text}", parameters)  # noqa: S608
    size = 1 + len(KIND)
    return {
        row[0]: (
            dict(zip(KIND, row[1:size], strict=True)),
            row[size],
            [name for name, is_one in zip(COUNTS, row[size + 1 :], strict=True) if is_one],
        )
        for row in rows
    }


Cell = tuple[tuple[tuple[str, str], ...], Any, int]
"""((dimension of time, value) …, value of the tag, kind)."""


def _cells(connection: sqlite3.Connection, query: Query, buckets: Buckets) -> dict[Cell, int]:
    """The packed sums of the buckets."""
    tag = next(iter(query.tags), None)
    times = _times(connection, query, buckets)
    table, conditions, parameters = "by_time", ["bucket >= ?", "bucket < ?"], list[Any](buckets[1:])
    if tag is None and not times and query.since is None and query.until is None:
        rows = connection.execute("SELECT 0, NULL, kind, sums FROM kinds")
        return {((), None, kind): int.from_bytes(total, "little") for _, _, kind, total in rows}
    if tag is not None:
        table, conditions, parameters = "by_tag", ["tag = ?", *conditions], [tag, *parameters]
    for name, value in query.where.items():
        if _bare(name) == tag:
            conditions.append("value = ?")
            parameters.append(NO_VALUE if value is None else str(value))
    column = "NULL" if tag is None else "nullif(value, 0)"
    sql = f"SELECT bucket, {column}, kind, sums FROM {table} WHERE {' AND '.join(conditions)}"  # noqa: S608
    cells: dict[Cell, int] = {}
    for bucket, value, kind, total in connection.execute(sql, parameters):
        time = times.get(bucket) if times else ()
        if time is not None:
            cell = time, value, kind
            cells[cell] = cells.get(cell, 0) + int.from_bytes(total, "little")
    return cells


def _times(connection: sqlite3.Connection, query: Query, buckets: Buckets) -> dict[int, tuple[tuple[str, str], ...]]:
    """Bucket → its hour, day … as the query asks for them, of the buckets that `where` lets through."""
    names = [name for name in dict.fromkeys((*query.by, *query.where)) if name in TIMES]
    if not names:
        return {}
    per = buckets.width // QUARTER
    columns = ", ".join(_at(TIMES[name], f"bucket / {per} * {buckets.width}") for name in names)
    rows = connection.execute(
        f"SELECT DISTINCT bucket / {per}, {columns} FROM spans WHERE bucket / {per} >= ? AND bucket / {per} < ?",  # noqa: S608
        buckets[1:],
    )
    found = {bucket: tuple(zip(names, values, strict=True)) for bucket, *values in rows}
    wanted = {(name, str(value)) for name, value in query.where.items() if name in TIMES}
    return {bucket: time for bucket, time in found.items() if wanted <= set(time)} or {-1: ()}
