"""When a budget begins anew: calendar and rolling windows, with zone, reset time and week start. Pure arithmetic.

Calendar windows cut time into pieces without gap or overlap, also where clocks change: a day lasts 23 or 25
hours then. Times are unix milliseconds; windows begin on whole seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Period = Literal["second", "minute", "hour", "day", "week", "month"]
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_WORDS: dict[str, tuple[int, Period]] = {
    "second": (1, "second"),
    "minute": (1, "minute"),
    "minutely": (1, "minute"),
    "hour": (1, "hour"),
    "hourly": (1, "hour"),
    "day": (1, "day"),
    "daily": (1, "day"),
    "week": (1, "week"),
    "weekly": (1, "week"),
    "month": (1, "month"),
    "monthly": (1, "month"),
    "quarter": (3, "month"),
    "quarterly": (3, "month"),
    "year": (12, "month"),
    "yearly": (12, "month"),
}
_SUFFIXES: dict[str, tuple[int, Period]] = {
    "s": (1, "second"),
    "sec": (1, "second"),
    "m": (1, "minute"),
    "min": (1, "minute"),
    "h": (1, "hour"),
    "d": (1, "day"),
    "w": (1, "week"),
    "mo": (1, "month"),
    "y": (12, "month"),
}
_LARGER: dict[str, tuple[int, Period]] = {
    "second": (60, "minute"),
    "minute": (60, "hour"),
    "hour": (24, "day"),
    "day": (7, "week"),
}
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2592000}
_LONGEST = 1200 * _SECONDS["month"]
"""Calendars begin with the year 1: the window of a thousand years around today could not be worked out."""
_SLICES = 60
ALLOWED = "none, minute, hour, day, week, month, quarter, year, or a length such as 15m, 6h, 1d, 2w, 3mo"


@dataclass(frozen=True, slots=True)
class Window:
    """`count` periods, from `reset` seconds after midnight (weeks: on weekday `week_start`, 0 = Monday) in `zone`.

    `rolling` windows have no beginning: they are the last `count` periods (a month is then 30 days).
    """

    period: Period
    count: int = 1
    zone: str = "UTC"
    reset: int = 0
    week_start: int = 0
    rolling: bool = False

    @property
    def slice_ms(self) -> int:
        """The length of a rolling window's slices in milliseconds; 0 for calendar windows."""
        return self.length * 1000 // _SLICES if self.rolling else 0

    @property
    def slices(self) -> int:
        """How many slices a rolling window has."""
        return _SLICES if self.rolling else 0

    @property
    def length(self) -> int:
        """The nominal length in seconds."""
        return self.count * _SECONDS[self.period]

    @property
    def identity(self) -> str:
        """What two windows must share to begin and end at the same moments, as text."""
        text = f"{self.count} {self.period}"
        if self.rolling:
            return f"rolling {text}"
        if self.period in {"second", "minute"}:
            return text  # the same in every zone
        text = f"{text} {self.zone}"
        if self.period == "week":
            text = f"{text} {WEEKDAYS[self.week_start]}"
        return f"{text} +{self.reset}" if self.reset else text

    def at(self, now_ms: int) -> tuple[int, int]:
        """The calendar window [start, end) in unix milliseconds that `now_ms` falls into; (0, 0) when rolling."""
        if self.rolling:
            return 0, 0
        start, end = self._seconds(now_ms // 1000)
        return start * 1000, end * 1000

    def weekday(self, moment_ms: int) -> int:
        """The weekday (0 = Monday) of the budget day that `moment_ms` falls into."""
        return (_local(moment_ms // 1000, zone_of(self.zone)) - timedelta(seconds=self.reset)).weekday()

    def day_end(self, now_ms: int) -> int:
        """The end of the budget day around `now_ms`, in unix milliseconds."""
        return Window("day", 1, self.zone, self.reset).at(now_ms)[1]

    def _seconds(self, now: int) -> tuple[int, int]:
        zone = zone_of(self.zone)
        if self.period in {"second", "minute"}:
            # Offsets between zones are whole quarters of an hour, so these windows are the same everywhere.
            return _floor(now, self.length, 0)
        if self.period == "hour" and (self.count == 1 or 24 % self.count):
            return self._hours(now, zone)
        local = _local(now, zone) - timedelta(seconds=self.reset)
        first = self._floor_local(local)
        start, end = self._instant(first, zone), self._instant(self._next(first), zone)
        while end <= now:
            # The second pass of an hour that comes twice: the window ended in its first pass.
            first = self._next(first)
            start, end = end, self._instant(self._next(first), zone)
        return start, end

    def _hours(self, now: int, zone: tzinfo) -> tuple[int, int]:
        """Absolute hours that begin on the zone's full hour; cut where the zone shifts by a part of an hour."""
        phase = _offset(now, zone) % 3600
        start, end = _floor(now, self.length, phase)
        if _offset(start, zone) % 3600 != phase:
            start = _last_shift(start, now, zone)
        if _offset(end - 1, zone) % 3600 != phase:
            end = _first_shift(now, end - 1, zone)
        return start, end

    def _floor_local(self, local: datetime) -> datetime:
        """The beginning of the window, as a local time counted from `reset`."""
        day = local.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.period == "hour":
            return day + timedelta(hours=local.hour - local.hour % self.count)
        if self.period == "day":
            return day - timedelta(days=day.toordinal() % self.count)
        if self.period == "week":
            # Ordinal 1 is a Monday; whole weeks are counted from the first `week_start`.
            weeks, into = divmod(day.toordinal() - 1 - self.week_start, 7)
            return day - timedelta(days=into + 7 * (weeks % self.count))
        months = day.year * 12 + day.month - 1
        return _month(months - months % self.count)

    def _next(self, first: datetime) -> datetime:
        if self.period == "month":
            return _month(first.year * 12 + first.month - 1 + self.count)
        days = {"hour": 0, "day": 1, "week": 7}[self.period] * self.count
        return first + (timedelta(days=days) if days else timedelta(hours=self.count))

    def _instant(self, local: datetime, zone: tzinfo) -> int:
        """Unix seconds of a local time; its first pass when it comes twice, the change itself when it is skipped."""
        wall = local + timedelta(seconds=self.reset)
        first = int(wall.replace(tzinfo=zone).timestamp())
        if _local(first, zone) == wall:
            return first
        # Skipped: fold 0 reads it with the old offset, fold 1 with the new one; the change lies between.
        other = int(wall.replace(tzinfo=zone, fold=1).timestamp())
        return _first_shift(min(first, other), max(first, other), zone)


def zone_of(name: str) -> tzinfo:
    """The time zone of an IANA name. Raises ValueError."""
    if name.upper() == "UTC":
        return UTC  # without asking for a time zone database, which may be missing
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone; allowed: IANA names such as UTC or Europe/Berlin") from None


def parse_window(
    text: str, *, zone: str = "UTC", reset: int = 0, week_start: int = 0, rolling: bool = False
) -> Window | None:
    """The window of "day", "daily", "1d", "24h", "month", "90 min" … or None for "none". Raises ValueError."""
    word = text.strip().lower()
    if word.startswith("rolling "):
        word, rolling = word.removeprefix("rolling ").strip(), True
    if word in {"", "none", "life"}:
        return None
    found = re.fullmatch(r"(\d{1,6})\s*([a-z]+)", word)
    if word in _WORDS:
        count, period = _WORDS[word]
    elif found and (unit := _SUFFIXES.get(found[2]) or _WORDS.get(found[2].removesuffix("s"))):
        count, period = int(found[1]) * unit[0], unit[1]
    else:
        raise ValueError(f"{text!r} is not a window; allowed: {ALLOWED}")
    if count < 1:
        raise ValueError(f"{text!r} is no time at all")
    if count * _SECONDS[period] > _LONGEST:
        raise ValueError(f"{text!r} is too long; at most 100y")
    while period in _LARGER and count % _LARGER[period][0] == 0:
        factor, larger = _LARGER[period]
        count, period = count // factor, larger
    return Window(period, count, zone, reset, week_start, rolling)


def _month(months: int) -> datetime:
    return datetime(months // 12, months % 12 + 1, 1)  # noqa: DTZ001 (a local time)


def _local(seconds: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(seconds: int, zone: tzinfo) -> int:
    delta = datetime.fromtimestamp(seconds, UTC).astimezone(zone).utcoffset()
    return int(delta.total_seconds()) if delta is not None else 0


def _floor(now: int, length: int, phase: int) -> tuple[int, int]:
    start = (now + phase) // length * length - phase
    return start, start + length


def _first_shift(low: int, high: int, zone: tzinfo) -> int:
    """The first second after `low`, at most `high`, with another offset than at `low` (or `high`)."""
    offset = _offset(low, zone)
    while low + 1 < high:
        middle = (low + high) // 2
        if _offset(middle, zone) == offset:
            low = middle
        else:
            high = middle
    return high


def _last_shift(low: int, high: int, zone: tzinfo) -> int:
    """The first second, after `low`, from which on the offset is that of `high`."""
    offset = _offset(high, zone)
    while low + 1 < high:
        middle = (low + high) // 2
        if _offset(middle, zone) == offset:
            high = middle
        else:
            low = middle
    return high
