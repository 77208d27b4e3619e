"""Points in time as people write them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest

from otel_tokens.errors import ConfigError
from otel_tokens.reports.times import moment

NOW = datetime(2026, 11, 3, 15, 30, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nine hours ahead: there it is already the 4th."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(*parts: int) -> float:
    return datetime(*parts, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (None, None),
        ("90s", NOW - 90),
        ("90m", NOW - 5400),
        ("24h", NOW - 86400),
        (" 24H ", NOW - 86400),
        ("1.5h", NOW - 5400),
        ("7d", NOW - 7 * 86400),
        ("2w", NOW - 14 * 86400),
        ("today", utc(2026, 11, 3, 15)),
        ("Yesterday", utc(2026, 11, 2, 15)),
        ("2026-11-01", utc(2026, 10, 31, 15)),
        ("2026-11-01T12:00", utc(2026, 11, 1, 3)),
        ("2026-11-01 12:00:30+00:00", utc(2026, 11, 1, 12, 0, 30)),
        ("2026-11-01T12:00:00Z", utc(2026, 11, 1, 12)),
        (date(2026, 11, 1), utc(2026, 10, 31, 15)),
        (datetime(2026, 11, 1, 9), utc(2026, 11, 1)),  # noqa: DTZ001
        (datetime(2026, 11, 1, tzinfo=UTC), utc(2026, 11, 1)),
        (timedelta(hours=1), NOW - 3600),
        (1.5, 1.5),
        ("1762000000", 1762000000.0),
    ],
)
def test_times(when: object, expected: float | None) -> None:
    assert moment(when, NOW) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "when", ["", "999999999d", "soon", "24", "7y", "2026-13-01", "-1d", "nan", "inf", float("nan"), [], "9" * 400]
)
def test_what_is_no_time(when: object) -> None:
    with pytest.raises(ConfigError, match="is not a time; use a datetime"):
        moment(when, NOW)  # type: ignore[arg-type]
