"""The report as a table for a terminal, drawn by rich. Numbers are never cut; what doesn't fit is left out whole."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from otel_tokens.reports.data import ReportData, Row
from otel_tokens.reports.text import price
from otel_tokens.text import printable

_DEFAULT_WIDTH = 120
_NAME, _NAME_AT_LEAST = 30, 14  # columns that a name should have, and must have
_GAP = 2
_NONE = "(none)"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers. `always`: shown even when all its numbers are 0. The higher `rank`, the later left out."""

    heading: str
    field: str
    rank: int
    always: bool = False


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which columns to show, how to write their numbers, how wide a name and the whole may be."""

    columns: list[_Column]
    write: Callable[[int], str]
    name: int
    width: int


_NUMBERS = (
    _Column("Calls", "calls", 9, always=True),
    _Column("Errors", "errors", 4),
    _Column("Input", "input", 7, always=True),
    _Column("Cache read", "cache_read", 3),
    _Column("Cache write", "cache_write", 2),
    _Column("Output", "output", 8, always=True),
    _Column("Reasoning", "reasoning", 1),
    _Column("Cost", "cost", 10, always=True),
    _Column("Share", "share", 5),
)


def render(report: ReportData, width: int | None, color: bool | None) -> str:
    """The report's table and notes; see `Report.table`."""
    from rich.console import Console  # here and below: rich takes 50 ms to import, most programs draw no table
    from rich.text import Text

    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: it was closed when we began
    if width is None:
        width = shutil.get_terminal_size((_DEFAULT_WIDTH, 24)).columns if terminal else _DEFAULT_WIDTH
    colored = terminal if color is None else color
    layout = _plan(report, width - 1) if report.rows else None
    out = _Out()
    console = Console(
        file=out,
        width=max(width, layout.width + 1) if layout else width,  # rather too wide than numbers cut off
        force_terminal=colored,
        color_system="standard" if colored else None,
        legacy_windows=False,
        highlight=False,
    )
    console.print(Text(_title(report), style="bold"), soft_wrap=True)
    if layout:
        _draw(console.print, report, layout)
    else:
        console.print("No calls.")
    for note in report.notes:
        console.print(Text(f"* {note}", style="yellow"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


class _Out(io.StringIO):
    """Tells rich what stdout can show: where it isn't UTF-8, lines are drawn in ASCII."""

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def _draw(show: Callable[..., None], report: ReportData, layout: _Layout) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_footer=True, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for at, name in enumerate(report.by):
        table.add_column(Text(_heading(name)), "Total" if at == 0 else "", footer_style="bold", overflow="fold")
    for column in layout.columns:
        heading = column.heading.replace(" ", "\n")
        total = _cell(report.total, column, layout.write, report)
        table.add_column(heading, total, justify="right", no_wrap=True, footer_style="bold", vertical="top")
    for row in report.rows:
        cells = [_broken(_name(value), layout.name) for value in row.key]
        cells += [_cell(row, column, layout.write) for column in layout.columns]
        table.add_row(*(Text(cell) for cell in cells))  # Text: a name may look like markup
    show(table)


def _plan(report: ReportData, width: int) -> _Layout:
    """The fullest layout that fits into `width`."""
    shown = [column for column in _NUMBERS if column.always or any(getattr(row, column.field) for row in report.rows)]
    longest = max(len(_name(value)) for row in report.rows for value in row.key)
    plans: list[tuple[list[_Column], Callable[[int], str], int]] = [
        (list(_NUMBERS), _full, _NAME),
        (shown, _full, _NAME),
        (shown, _short, _NAME_AT_LEAST),
    ]
    for column in sorted(shown, key=lambda column: column.rank)[:-2]:
        plans.append(([one for one in plans[-1][0] if one is not column], _short, _NAME_AT_LEAST))
    columns, write, name = plans[-1]
    for columns, write, wanted in plans:
        used = sum(_GAP + _width(report, column, write) for column in columns)
        name = (width - used) // len(report.by) - _GAP
        if name >= min(longest, wanted):
            return _Layout(columns, write, name, width)
    return _Layout(columns, write, _NAME_AT_LEAST, width + (_NAME_AT_LEAST - name) * len(report.by))


def _width(report: ReportData, column: _Column, write: Callable[[int], str]) -> int:
    cells = [_cell(row, column, write) for row in report.rows]
    cells += [*_cell(report.total, column, write, report).split("\n"), *column.heading.split()]
    return max(len(cell) for cell in cells)


def _name(value: str | None) -> str:
    return _NONE if value is None else printable(value) or '""'


def _cell(row: Row, column: _Column, write: Callable[[int], str], whole: ReportData | None = None) -> str:
    """What a row has in a column; `whole` is given for the row of the totals."""
    if column.field == "share":
        return _percent(row.share)
    if column.field != "cost":
        return write(getattr(row, column.field))
    if whole is not None and len(whole.totals) > 1:
        return "\n".join(price(total.cost, total.currency) for total in whole.totals if total.cost is not None)
    if row.cost is None:
        return "unpriced*" if row.unpriced else "-"
    # The star says that some of it is not known, or not for certain.
    return price(row.cost, row.currency) + ("*" if row.unpriced or row.missing or row.estimated else "")


def _percent(share: Decimal | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _full(count: int) -> str:
    return f"{count:,}"


def _short(count: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size and count >= 10_000:
            scaled = count / size
            return f"{scaled:.3g}{unit}" if scaled < 999.5 else f"{scaled:,.0f}{unit}"
    return f"{count:,}"


def _heading(name: str) -> str:
    return printable(name.removeprefix("tag:")).replace("_", " ").capitalize()


def _broken(name: str, width: int) -> str:
    """A name on lines of at most `width`, broken where its parts end if possible."""
    lines = [""]
    for part in re.findall(r"[^-/:._@ ]*[-/:._@ ]?", name):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(lines)


def _title(report: ReportData) -> str:
    words = f"Calls by {', '.join(printable(name) for name in report.by)}"
    if report.since is not None:
        words += f" since {_time(report.since)}"
    if report.until is not None:
        words += f" until {_time(report.until)}"
    return words


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")  # noqa: DTZ006  # local, as users think
