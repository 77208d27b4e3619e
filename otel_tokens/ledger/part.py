"""The sums of some rows, on their way into the summary or out of it: see summary.py."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from otel_tokens.ledger.packed import COMMON, RARE, pack, to_blob
from otel_tokens.ledger.sums import MONEY

KIND = (
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
    "cost_total",  # 0: the cost is known; None: it is not
)
"""The columns of `kinds`. None of them has many values."""

SUMMED_TAGS = ("tenant", "agent", "feature")
PLACED_TAGS = ("session", "task")
NO_VALUE = 0
"""The value in `by_tag` of calls without the tag. Values of tags are text."""

QUARTER = 900  # seconds: the offset of every time zone is a multiple
SIX_HOURS = 21600
_TIMES = (0, 1e11)  # unix seconds; a row outside is odd
_UNFIT = (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error)

# Most rare tokens are 0 in most calls; a column that is not read costs nothing.
_RARE = f"CASE WHEN {' | '.join(RARE)} IS NOT 0 THEN json_array({', '.join(RARE)}) END"
_COLUMNS = (
    *("seq", "started", *SUMMED_TAGS, *PLACED_TAGS, *KIND[:-1], "CASE WHEN cost_total IS NOT NULL THEN 0 END"),
    *(*(f"cost_{name}" for name in MONEY), *COMMON, _RARE),
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM calls"  # noqa: S608  # made of the names above
_KIND_AT = 2 + len(SUMMED_TAGS) + len(PLACED_TAGS)
_MONEY_AT = _KIND_AT + len(KIND)
_COMMON_AT = _MONEY_AT + len(MONEY)
_TAGS = tuple(enumerate(SUMMED_TAGS, start=2))
_PLACES = tuple(enumerate(PLACED_TAGS, start=2 + len(SUMMED_TAGS)))


class Part:
    """The sums of some rows, in memory."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Any, ...], int] = {}
        self._by_time: dict[tuple[int, int], int] = {}
        self._by_tag: tuple[dict[tuple[int, Any, int], int], ...] = tuple({} for _ in SUMMED_TAGS)
        self._spans: dict[int, list[int]] = {}
        self._places: dict[tuple[str, str], list[int]] = {}
        self._odd: list[int] = []

    def read(self, connection: sqlite3.Connection, first: int, last: int) -> None:
        """Add the rows numbered `first` to `last`."""
        self._take(connection.execute(f"{_SELECT} WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)))

    def read_numbers(self, connection: sqlite3.Connection, seqs: list[int]) -> None:
        """Add the rows with these numbers that are not odd."""
        chosen = "seq IN (SELECT value FROM json_each(?)) AND seq NOT IN (SELECT seq FROM odd)"
        self._take(connection.execute(f"{_SELECT} WHERE {chosen}", (json.dumps(seqs),)))

    def _take(self, rows: Iterable[tuple[Any, ...]]) -> None:
        kinds, by_time, spans, places = self._kinds, self._by_time, self._spans, self._places
        tags = [(at, found) for (at, _), found in zip(_TAGS, self._by_tag, strict=True)]
        for row in rows:
            seq, started = row[:2]
            for at, tag in _PLACES:
                if row[at] is not None:
                    _widen(places, (tag, row[at]), seq)
            try:
                packed = pack(row[_MONEY_AT:_COMMON_AT], row[_COMMON_AT:-1], row[-1])
                if not _TIMES[0] <= started < _TIMES[1]:
                    raise ValueError("a time that nobody means")
            except _UNFIT:
                self._odd.append(seq)
                continue
            kind = kinds.setdefault(row[_KIND_AT:_MONEY_AT], len(kinds))
            quarter = int(started) // QUARTER
            by_time[quarter, kind] = by_time.get((quarter, kind), 0) + packed
            _widen(spans, quarter, seq)
            for at, found in tags:
                if row[at] is not None:
                    cell = quarter // 24, row[at], kind
                    found[cell] = found.get(cell, 0) + packed

    def write(self, connection: sqlite3.Connection, sign: int = 1) -> None:
        """Add the sums to the tables, or subtract them with `sign` -1, inside a transaction."""
        totals: dict[int, int] = {}
        six_hours: dict[tuple[int, int], int] = {}
        for (quarter, kind), packed in self._by_time.items():
            totals[kind] = totals.get(kind, 0) + packed
            cell = quarter // 24, kind
            six_hours[cell] = six_hours.get(cell, 0) + packed
        ids = _kinds(connection, self._kinds, totals, sign)
        time_cells = ((quarter, ids[kind], packed) for (quarter, kind), packed in self._by_time.items())
        _change(connection, "by_time", ("bucket", "kind"), time_cells, sign)
        tag_cells = self._tag_cells(six_hours, ids)
        _change(connection, "by_tag", ("tag", "bucket", "value", "kind"), tag_cells, sign)
        if sign > 0:
            self._write_places(connection)

    def _tag_cells(self, all_calls: dict[tuple[int, int], int], ids: list[int]) -> Iterator[tuple[Any, ...]]:
        for tag, found in zip(SUMMED_TAGS, self._by_tag, strict=True):
            without = dict(all_calls)
            for (bucket, value, kind), packed in found.items():
                without[bucket, kind] -= packed
                yield tag, bucket, value, ids[kind], packed
            for (bucket, kind), packed in without.items():
                if packed:
                    yield tag, bucket, NO_VALUE, ids[kind], packed

    def _write_places(self, connection: sqlite3.Connection) -> None:
        wider = "DO UPDATE SET first = min(first, excluded.first), last = max(last, excluded.last)"
        connection.executemany(
            f"INSERT INTO spans VALUES(?, ?, ?) ON CONFLICT(bucket) {wider}",
            ((quarter, *ends) for quarter, ends in self._spans.items()),
        )
        connection.executemany(
            f"INSERT INTO places VALUES(?, ?, ?, ?) ON CONFLICT(tag, value) {wider}",
            ((*place, *ends) for place, ends in self._places.items()),
        )
        connection.executemany("INSERT OR IGNORE INTO odd VALUES(?)", ((seq,) for seq in self._odd))


def _widen(ends: dict[Any, list[int]], key: Any, seq: int) -> None:
    found = ends.get(key)
    if found is None:
        ends[key] = [seq, seq]
    else:
        found[1] = seq  # rows come in the order of their numbers


def _kinds(
    connection: sqlite3.Connection, kinds: Iterable[tuple[Any, ...]], totals: dict[int, int], sign: int
) -> list[int]:
    """The ids of the kinds, whose own sums are changed."""
    ids: list[int] = []
    for at, kind in enumerate(kinds):
        key = json.dumps(kind)
        found = connection.execute("SELECT kind, sums FROM kinds WHERE key = ?", (key,)).fetchone()
        if found is None:
            places = ", ".join("?" * (2 + len(KIND)))
            names = ", ".join(KIND)
            added = connection.execute(
                f"INSERT INTO kinds(key, sums, {names}) VALUES({places})",
                (key, to_blob(totals[at]), *kind),
            )
            ids.append(added.lastrowid or 0)
            continue
        ids.append(found[0])
        total = int.from_bytes(found[1], "little") + sign * totals[at]
        connection.execute("UPDATE kinds SET sums = ? WHERE kind = ?", (to_blob(total), found[0]))
    return ids


def _change(
    connection: sqlite3.Connection, table: str, keys: tuple[str, ...], cells: Iterable[tuple[Any, ...]], sign: int
) -> None:
    condition = " AND ".join(f"{key} = ?" for key in keys)
    select = f"SELECT sums FROM {table} WHERE {condition}"  # noqa: S608  # names of ours
    put = f"INSERT OR REPLACE INTO {table} VALUES({'?, ' * len(keys)}?)"
    delete = f"DELETE FROM {table} WHERE {condition}"  # noqa: S608
    for *key, packed in cells:
        found = connection.execute(select, key).fetchone()
        total = sign * packed + (int.from_bytes(found[0], "little") if found is not None else 0)
        if total:
            connection.execute(put, (*key, to_blob(total)))
        else:
            connection.execute(delete, key)
