"""The summary of a ledger: sums by quarter of an hour and kind of call, kept beside the rows.

Reports add up these sums instead of the rows. The rows stay the truth: `Adder` takes rows into the summary in the order
of their numbers (`seq`), some thousands at a time, and `meta.summed` says how far it is. A query adds the rows after that.

Tables: `kinds` has one row for each combination of `KIND`, with its sums; `by_time` splits them by quarter of an hour;
`by_tag` by the values of each of SUMMED_TAGS, for every six hours; `spans` says which rows a quarter of an hour has,
`places` which rows a session or task has; `odd` lists rows that `packed` cannot hold, which queries add one by one.
Triggers count each row that is changed or deleted in `meta.edits`. If it was not `remove` that did it, the summary
is stale, and `Adder` makes it anew.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

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
_STEP = 256  # rows
_FORGET = 16  # each 2^16 rows that go, the sessions and times without a row are deleted too
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


class State(NamedTuple):
    """Rows up to `summed` are in the summary, except when it is `stale`. `edits` counts changes of rows."""

    summed: int
    edits: int
    stale: bool


def state(connection: sqlite3.Connection) -> State:
    """How far the summary is."""
    meta = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('summed', 'edits', 'edits_summed')"))
    return State(meta["summed"], meta["edits"], meta["edits"] != meta["edits_summed"])


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
                f"INSERT INTO kinds(key, sums, {names}) VALUES({places})",  # noqa: S608
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


class Adder:
    """Takes rows into the summary, `count` in one transaction, in steps short enough for others to get their turn.

    Several processes may do this at once.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._part: Part | None = None
        self._before = State(0, 0, stale=False)
        self._next = self._last = 0

    def step(self, connection: sqlite3.Connection) -> bool:
        """Do the next step; whether it ended a transaction. Raises sqlite3.Error, with nothing half done."""
        if self._part is None:
            self._part = self._begin(connection)
        if self._next <= self._last:
            end = min(self._next + _STEP, self._last + 1)
            self._part.read(connection, self._next, end - 1)
            self._next = end
            return False
        part, self._part = self._part, None
        self._write(connection, part)
        return True

    def _begin(self, connection: sqlite3.Connection) -> Part:
        self._before = state(connection)
        oldest, newest = connection.execute(
            "SELECT (SELECT min(seq) FROM calls), (SELECT max(seq) FROM calls)"
        ).fetchone()
        first = 1 if self._before.stale else self._before.summed + 1
        self._next = max(first, oldest or 1)
        self._last = min(self._next + self._count - 1, newest or 0)
        return Part()

    def _write(self, connection: sqlite3.Connection, part: Part) -> None:
        with transaction(connection):
            if state(connection) != self._before:
                return  # another process was faster, or rows were changed in the meantime
            if self._before.stale:
                for table in ("kinds", "by_time", "by_tag", "spans", "places", "odd"):
                    connection.execute(f"DELETE FROM {table}")  # noqa: S608
                connection.execute("UPDATE meta SET value = ? WHERE key = 'edits_summed'", (self._before.edits,))
            part.write(connection)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'summed'", (self._last,))


def remove(connection: sqlite3.Connection, seqs: list[int]) -> None:
    """Delete rows, from the summary too, inside a transaction. Raises sqlite3.Error."""
    before = state(connection)
    part = Part()
    part.read_numbers(connection, [seq for seq in seqs if seq <= before.summed])
    chosen = "seq IN (SELECT value FROM json_each(?))"
    for table in ("calls", "odd"):
        connection.execute(f"DELETE FROM {table} WHERE {chosen}", (json.dumps(seqs),))  # noqa: S608
    if not before.stale:
        part.write(connection, -1)
        edits = state(connection).edits
        connection.execute("UPDATE meta SET value = ? WHERE key = 'edits_summed'", (edits,))
    if min(seqs) >> _FORGET != (max(seqs) + 1) >> _FORGET:
        for table in ("places", "spans"):
            connection.execute(f"DELETE FROM {table} WHERE last < (SELECT min(seq) FROM calls)")  # noqa: S608


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes; rolled back by any exception."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def behind(connection: sqlite3.Connection) -> int:
    """How many rows the summary does not have yet, at most."""
    now = state(connection)
    return _newest(connection) - (0 if now.stale else now.summed)


def _newest(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT coalesce(max(seq), 0) FROM calls").fetchone()[0]
