"""Whether a ledger can be trusted: the file itself, and rows that contradict themselves."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from otel_tokens.ledger.rows import COLUMNS, EXACT, SELECT, decode
from otel_tokens.ledger.schema import reading, resolve
from otel_tokens.ledger.sums import ZERO, Sums
from otel_tokens.values import COST_PARTS, CostStatus, Origin, Outcome, Record

_CLOCKS = 300.0  # seconds that the clocks of two machines may differ
_EXAMPLES = 3

_SPLITS: dict[str, tuple[str, ...]] = {
    "cache_write": ("cache_write_5m", "cache_write_30m", "cache_write_1h", "cache_write_12h"),
    "input": ("input_text", "input_audio", "input_image", "input_video"),
    "cache_read": ("cache_read_text", "cache_read_audio", "cache_read_image", "cache_read_video"),
    "output": ("output_text", "output_audio", "output_image", "output_video"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: `kind` is stable, `count` rows show it, `examples` are ids of some of their calls."""

    severity: Literal["error", "warning"]
    kind: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


def audit(path: str | os.PathLike[str], now: float | None = None) -> list[Finding]:
    """All findings, errors first; an empty list means the ledger is sound. `now` is unix time in seconds.

    Reads every row. Raises LedgerError when the file cannot be read at all.
    """
    place = resolve(path)
    with reading(place) as connection:
        found = [*_file(connection, place)]
        # Rows of a damaged file cannot be read reliably.
        if not found or found[0].kind != "damaged":
            found += [*_totals(connection), *_rows(connection, time.time() if now is None else now)]
    return sorted(found, key=lambda finding: finding.severity)


def _file(connection: sqlite3.Connection, path: str) -> list[Finding]:
    found: list[Finding] = []
    try:
        broken = [text for (text,) in connection.execute("PRAGMA integrity_check(10)") if text != "ok"]
    except sqlite3.DatabaseError as error:
        broken = [str(error)]
    if broken:
        found.append(Finding("error", "damaged", f"the file is damaged: {broken[0]}", len(broken)))
    mode = stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116
    if mode & 0o077:
        found.append(Finding("warning", "readable_by_others", f"the file has mode {mode:04o} instead of 0600"))
    journal = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if journal not in ("wal", "off"):  # off: opened as immutable
        found.append(Finding("warning", "no_wal", f"journal mode {journal} instead of wal: writes are slow"))
    return found


def _totals(connection: sqlite3.Connection) -> list[Finding]:
    bad = 0
    for (packed,) in connection.execute("SELECT sums FROM totals"):
        try:
            Sums.unpack(packed)
        except (ValueError, ArithmeticError, TypeError, KeyError, AttributeError):
            bad += 1
    return [Finding("error", "totals", "stored totals of pruned rows are unreadable", bad)] if bad else []


def _rows(connection: sqlite3.Connection, now: float) -> list[Finding]:
    hits: dict[str, list[str]] = {}
    counts: dict[str, int] = {}

    def hit(kind: str, call_id: Any) -> None:
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= _EXAMPLES:
            hits.setdefault(kind, []).append(str(call_id))

    for row in connection.execute(SELECT):
        try:
            record = decode(row)
            kinds = [kind for kind, (_, _, wrong) in _CHECKS.items() if wrong is not None and wrong(record, now)]
        except (ValueError, TypeError, KeyError, ArithmeticError):
            kinds = ["unreadable"]
        for kind in kinds:
            hit(kind, row[_ID])
    return [
        Finding(severity, kind, message, counts[kind], tuple(hits[kind]))
        for kind, (severity, message, _) in _CHECKS.items()
        if kind in counts
    ]


_ID = COLUMNS.index("id")


def _parts_differ(record: Record, _now: float) -> bool:
    cost = record.cost
    parts = [part for name in COST_PARTS if (part := getattr(cost, name)) is not None]
    if cost.total is None:
        return bool(parts)
    total = ZERO
    for part in parts:
        total = EXACT.add(total, part)
    return bool(parts) and total != cost.total


def _price_contradicts(record: Record, _now: float) -> bool:
    return (record.cost.status == "unpriced") == (record.cost.total is not None)


def _parts_exceed(record: Record, _now: float) -> bool:
    usage = record.usage
    if usage.flags:
        return False  # known, and said on the row
    if usage.cache_read + usage.cache_write > usage.input or usage.reasoning > usage.output:
        return True
    return any(sum(getattr(usage, part) for part in parts) > getattr(usage, name) for name, parts in _SPLITS.items())


def _negative(record: Record, _now: float) -> bool:
    usage = record.usage
    return min(usage.input, usage.output, usage.cache_read, usage.cache_write, usage.reasoning) < 0


def _when(record: Record, now: float) -> bool:
    return record.started > now + _CLOCKS or record.started <= 0


def _duration(record: Record, _now: float) -> bool:
    return record.duration is None or record.duration < 0 or (record.first_chunk or 0) < 0


def _unknown_word(record: Record, _now: float) -> bool:
    return (
        record.outcome not in get_args(Outcome)
        or record.usage.origin not in get_args(Origin)
        or record.cost.status not in get_args(CostStatus)
    )


_Check = Callable[[Record, float], bool]
_CHECKS: dict[str, tuple[Literal["error", "warning"], str, _Check | None]] = {
    "unreadable": ("error", "rows that cannot be read", None),
    "cost_parts": ("error", "the parts of the cost don't add up to its total", _parts_differ),
    "cost_status": ("error", "unpriced with a cost, or priced without one", _price_contradicts),
    "negative_tokens": ("error", "negative tokens", _negative),
    "token_parts": ("error", "parts of the tokens exceed their total, and no flag says so", _parts_exceed),
    "unknown_word": ("warning", "an outcome, origin or status that this version doesn't know", _unknown_word),
    "time": ("warning", "started in the future, or at no time: a clock is wrong", _when),
    "duration": ("warning", "a duration below zero", _duration),
}
