"""The report as a table for a terminal, drawn by rich."""

from __future__ import annotations

import io
import shutil
import sys
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from otel_tokens.reports.data import ReportData, Row
from otel_tokens.reports.text import price

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 110  # columns from which on numbers are written out and no column is left out
_DEFAULT_WIDTH = 120
_NONE = "(none)"

# Heading, field, whether it is left out of a narrow table when there is nothing in it.
_NUMBERS: tuple[tuple[str, str, bool], ...] = (
    ("Calls", "calls", False),
    ("Errors", "errors", True),
    ("Input", "input", False),
    ("Cache read", "cache_read", True),
    ("Cache write", "cache_write", True),
    ("Output", "output", False),
    ("Reasoning", "reasoning", True),
)


def render(report: ReportData, width: int | None, color: bool | None) -> str:
    """The report's table and notes; see `Report.table`."""
    from rich.console import Console  # here and below: rich takes 50 ms to import, most programs draw no table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    if width is None:
        width = shutil.get_terminal_size((_DEFAULT_WIDTH, 24)).columns if terminal else _DEFAULT_WIDTH
    out = _Out()
    console = Console(
        file=out,
        width=width,
        force_terminal=terminal if color is None else color,
        color_system="standard" if (terminal if color is None else color) else None,
        legacy_windows=False,
        highlight=False,
    )
    console.print(Text(_title(report), style="bold"), soft_wrap=True)
    if not report.rows:
        console.print("No calls.")
    else:
        console.print(_table(report, width))
    for note in report.notes:
        console.print(Text(f"* {note}", style="yellow"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


class _Out(io.StringIO):
    """Tells rich what stdout can show: where it isn't UTF-8, lines are drawn in ASCII."""

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def _table(report: ReportData, width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_footer=True, pad_edge=False, padding=(0, 1 if width < _WIDE else 2, 0, 0))
    write = _short if width < _WIDE else _full
    for at, name in enumerate(report.by):
        table.add_column(_heading(name), "Total" if at == 0 else "", overflow="fold", footer_style="bold")
    shown = [
        (heading, field)
        for heading, field, optional in _NUMBERS
        if width >= _WIDE or not optional or getattr(report.total, field)
    ]
    for heading, field in shown:
        total = write(getattr(report.total, field))
        table.add_column(heading, total, justify="right", no_wrap=width >= _WIDE, footer_style="bold")
    table.add_column("Cost", _cost(report.total, _several(report)), justify="right", no_wrap=True, footer_style="bold")
    table.add_column("Share", "", justify="right", no_wrap=True)
    for row in report.rows:
        names = [_NONE if value is None else _printable(value) for value in row.key]
        numbers = [write(getattr(row, field)) for _, field in shown]
        cells = [*names, *numbers, _cost(row), _percent(row.share)]
        table.add_row(*(Text(cell) for cell in cells))  # Text: a name may look like markup
    return table


def _several(report: ReportData) -> str | None:
    """What stands for the cost of a total in several currencies."""
    if len(report.totals) <= 1:
        return None
    return "\n".join(price(row.cost, row.currency) for row in report.totals if row.cost is not None)


def _cost(row: Row, instead: str | None = None) -> str:
    """The cost; a star says that some of it is not known."""
    if instead is not None:
        return instead
    if row.cost is None:
        return "unpriced*" if row.unpriced else "-"
    return price(row.cost, row.currency) + ("*" if row.unpriced or row.missing or row.estimated else "")


def _percent(share: Decimal | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _full(count: int) -> str:
    return f"{count:,}"


def _short(count: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            scaled = count / (size if unit != "k" else 1000)
            return f"{scaled:.3g}{unit}" if scaled < 1000 else f"{scaled:,.0f}{unit}"
    return f"{count:,}"


def _heading(name: str) -> str:
    return name.removeprefix("tag:").replace("_", " ").capitalize()


def _printable(value: str) -> str:
    """A tag may hold anything, also what would steer the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value) or '""'


def _title(report: ReportData) -> str:
    words = f"Calls by {', '.join(report.by)}"
    if report.since is not None:
        words += f" since {_time(report.since)}"
    if report.until is not None:
        words += f" until {_time(report.until)}"
    return words


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")  # noqa: DTZ006  # local, as users think
