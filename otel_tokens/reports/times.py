"""Points in time as users write them: "24h", "7d", "today", an ISO date, a datetime. Local time unless they say."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, time, timedelta

from otel_tokens.errors import ConfigError

When = datetime | date | timedelta | float | str | None

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_FORMS = 'a datetime, seconds since 1970, "90m", "24h", "7d", "2w", "today", "yesterday", or an ISO date or time'


def moment(when: When, now: float, *, key: str = "since") -> float | None:
    """The unix time (seconds) that `when` means; None stays None. A timedelta or "24h" counts back from `now`.

    Raises ConfigError, naming `key` and the forms that are understood.
    """
    if when is None:
        return None
    try:
        if isinstance(when, str):
            return _read(when.strip(), now)
        if isinstance(when, timedelta):
            return now - when.total_seconds()
        if isinstance(when, datetime):
            return when.timestamp()
        if isinstance(when, date):
            return _midnight(when)
        return _seconds(float(when))
    except (ValueError, TypeError, OverflowError, OSError):
        raise ConfigError(f"{when!r} is not a time; use {_FORMS}", key=key) from None


def _read(text: str, now: float) -> float:
    ago = _AGO.fullmatch(text.lower())
    if ago:
        then = now - float(ago[1]) * _SECONDS[ago[2]]
        datetime.fromtimestamp(then)  # noqa: DTZ006  (raises for a time before the year 1: nobody could show it)
        return then
    # Local on purpose: "today" is the reader's.
    today = datetime.fromtimestamp(now).date()  # noqa: DTZ006
    if text.lower() == "today":
        return _midnight(today)
    if text.lower() == "yesterday":
        return _midnight(today - timedelta(days=1))
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return _seconds(float(text), at_least=1e8)  # "24" is a "24h" gone wrong, not a time in 1970


def _seconds(number: float, at_least: float = -math.inf) -> float:
    if not math.isfinite(number) or number < at_least:
        raise ValueError
    return number


def _midnight(day: date) -> float:
    return datetime.combine(day, time()).timestamp()
