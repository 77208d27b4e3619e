"""Windows: they cut time without gap or overlap, in every zone, on every odd day, and mean what people say."""

from __future__ import annotations

import random
import zoneinfo
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from otel_tokens.guard.budgets.windows import Window, parse_window

SPECS = ("minute", "15m", "hour", "2h", "6h", "5h", "day", "2d", "week", "2w", "month", "quarter", "year")
RESETS = (0, 0, 3600, 2 * 3600, 2 * 3600 + 1800, 6 * 3600, 23 * 3600)
ZONES = sorted(zoneinfo.available_timezones())


def check(window: Window, now: int) -> None:
    start, end = window.at(now)
    assert start <= now < end
    assert window.at(start) == window.at(end - 1) == (start, end)
    assert window.at(end)[0] == end
    assert window.at(start - 1)[1] == start


def transitions(zone: ZoneInfo, rng: random.Random) -> int:
    """Unix seconds of one change of the zone's clock (or of any moment where it has none)."""
    year = rng.randint(1990, 2030)
    low, high = int(datetime(year, 1, 1, tzinfo=UTC).timestamp()), int(datetime(year, 7, 1, tzinfo=UTC).timestamp())
    if rng.random() < 0.5:
        low, high = high, int(datetime(year + 1, 1, 1, tzinfo=UTC).timestamp())

    def offset(t: int) -> timedelta | None:
        return datetime.fromtimestamp(t, zone).utcoffset()

    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
    return high


def test_windows_cut_time_without_gap_or_overlap() -> None:
    """1,000 pairs of zone and date, each also right at a change of the clock, and on leap days."""
    rng = random.Random(4)
    for _ in range(1000):
        name = rng.choice(ZONES)
        spec, reset, week_start = rng.choice(SPECS), rng.choice(RESETS), rng.randrange(7)
        window = parse_window(spec, zone=name, reset=reset, week_start=week_start)
        assert window is not None
        change = transitions(ZoneInfo(name), rng) + rng.choice((-3600, -1, 0, 1, 1799, 3600))
        leap = int(datetime(rng.choice((2000, 2024, 2028)), 2, 29, rng.randrange(24), tzinfo=UTC).timestamp())
        for seconds in (rng.randrange(946_684_800, 2_208_988_800), change, leap):
            check(window, seconds * 1000 + rng.randrange(1000))


@pytest.mark.parametrize(
    ("short", "words"),
    [
        ("1d", ("day", "daily", "24h", "1440m", "1 day", "DAY")),
        ("1h", ("hour", "hourly", "60m", "60 min", "3600s")),
        ("1w", ("week", "weekly", "7d", "168h")),
        ("1mo", ("month", "monthly", "1 month")),
        ("1m", ("minute", "60s", "minutely")),
        ("3mo", ("quarter", "3 months")),
        ("1y", ("year", "yearly", "12mo")),
    ],
)
def test_words_for_one_length_are_one_window(short: str, words: tuple[str, ...]) -> None:
    for word in words:
        assert parse_window(word) == parse_window(short)


def test_1d_equals_daily_everywhere() -> None:
    rng = random.Random(5)
    for _ in range(200):
        zone, reset = rng.choice(ZONES), rng.choice(RESETS)
        now = rng.randrange(946_684_800, 2_208_988_800) * 1000
        one, other = parse_window("1d", zone=zone, reset=reset), parse_window("daily", zone=zone, reset=reset)
        assert one is not None
        assert other is not None
        assert one.at(now) == other.at(now)


def local(window: tuple[int, int], zone: str) -> tuple[str, str]:
    start, end = (datetime.fromtimestamp(ms / 1000, ZoneInfo(zone)) for ms in window)
    return f"{start:%Y-%m-%d %H:%M}", f"{end:%Y-%m-%d %H:%M}"


@pytest.mark.parametrize(
    ("spec", "zone", "more", "moment", "expected"),
    [
        ("day", "Europe/Berlin", {}, "2026-03-29 12:00", ("2026-03-29 00:00", "2026-03-30 00:00")),
        ("day", "Europe/Berlin", {"reset": 21600}, "2026-10-25 05:59", ("2026-10-24 06:00", "2026-10-25 06:00")),
        ("week", "UTC", {}, "2026-11-22 23:59", ("2026-11-16 00:00", "2026-11-23 00:00")),
        ("week", "UTC", {"week_start": 6}, "2026-11-22 00:00", ("2026-11-22 00:00", "2026-11-29 00:00")),
        ("month", "America/New_York", {}, "2028-02-29 12:00", ("2028-02-01 00:00", "2028-03-01 00:00")),
        ("6h", "Asia/Tokyo", {}, "2026-01-01 13:00", ("2026-01-01 12:00", "2026-01-01 18:00")),
        ("hour", "Asia/Kolkata", {}, "2026-01-01 13:45", ("2026-01-01 13:00", "2026-01-01 14:00")),
        ("quarter", "UTC", {}, "2026-12-31 23:59", ("2026-10-01 00:00", "2027-01-01 00:00")),
        ("year", "UTC", {}, "2024-12-31 23:59", ("2024-01-01 00:00", "2025-01-01 00:00")),
    ],
)
def test_windows_begin_where_people_expect(
    spec: str, zone: str, more: dict[str, int], moment: str, expected: tuple[str, str]
) -> None:
    window = parse_window(spec, zone=zone, **more)
    assert window is not None
    now = datetime.strptime(moment, "%Y-%m-%d %H:%M").replace(tzinfo=ZoneInfo(zone))
    assert local(window.at(int(now.timestamp() * 1000)), zone) == expected


def test_days_have_23_or_25_hours_where_clocks_change() -> None:
    window = parse_window("day", zone="Europe/Berlin")
    assert window is not None
    lengths = []
    for day in ("2026-03-29", "2026-10-25", "2026-06-01"):
        start, end = window.at(int(datetime.fromisoformat(f"{day}T12:00+01:00").timestamp() * 1000))
        lengths.append((end - start) // 3_600_000)
    assert lengths == [23, 25, 24]


def test_hours_that_come_twice_are_two_windows() -> None:
    window = parse_window("hour", zone="Europe/Berlin")
    assert window is not None
    first = int(datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)
    assert window.at(first)[1] == window.at(first + 3_600_000)[0]


def test_rolling_windows_have_slices_and_no_edges() -> None:
    window = parse_window("rolling 24h")
    assert window is not None
    assert window.rolling
    assert window.at(1_795_469_587_000) == (0, 0)
    assert window.slice_ms * window.slices == 86_400_000
    assert parse_window("minute", rolling=True) == parse_window("rolling 1m")


def test_none_is_no_window() -> None:
    assert parse_window("none") is None


@pytest.mark.parametrize("bad", ["fortnight", "0d", "-1h", "1.5h", "day day", "5 parsecs", "7"])
def test_nonsense_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match=r"window|no time"):
        parse_window(bad)


@pytest.mark.parametrize("word", ["101y", "999999w", "rolling 9999mo"])
def test_no_window_is_longer_than_calendars_can_work_out(word: str) -> None:
    with pytest.raises(ValueError, match="too long; at most 100y"):
        parse_window(word)


@pytest.mark.parametrize("word", ["100y", "1200mo", "5142w", "36000d", "864000h"])
def test_the_longest_windows_can_be_worked_out(word: str) -> None:
    window = parse_window(word, zone="Pacific/Apia", reset=3600, week_start=6)
    assert window is not None
    for year in (1971, 2026, 2099):
        now = int(datetime(year, 3, 1, tzinfo=UTC).timestamp() * 1000)
        start, end = window.at(now)
        assert start <= now < end


def test_weekdays_follow_the_zone_and_the_reset() -> None:
    window = parse_window("day", zone="Asia/Tokyo", reset=6 * 3600)
    assert window is not None
    saturday_5am = int(datetime(2026, 11, 21, 5, tzinfo=ZoneInfo("Asia/Tokyo")).timestamp() * 1000)
    assert window.weekday(saturday_5am) == 4
    assert window.weekday(saturday_5am + 3_600_000) == 5
