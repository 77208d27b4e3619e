"""Output of `otel-tokens demo`: each call when it ends, and an excerpt of a scrape."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from otel_tokens import conventions as c
from otel_tokens.demo.workload import Step
from otel_tokens.reports.text import price
from otel_tokens.text import printable
from otel_tokens.values import Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NOTES = {"abandoned": "abandoned", "error": "failed", "cancelled": "cancelled", "cut": "cut"}


class Screen(Protocol):
    """Shows the calls while the demo runs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, step: Step) -> None:
        """A step begins."""
        ...

    def record(self, record: Record) -> None:
        """A call has ended. Called from any thread."""
        ...

    def notice(self, words: str) -> None:
        """A remark about the calls."""
        ...


def cells(record: Record) -> tuple[str, ...]:
    """A record as the cells of a row: agent, model, input, cached, output, cost, remark."""
    usage = record.usage
    known = usage.origin != "missing"
    cost = "unpriced" if known else ""
    if record.cost.total is not None and known:
        cost = price(record.cost.total, record.cost.currency)
    remark = _NOTES.get(record.outcome, "")
    if record.call.asked_model:
        remark = remark or "downgraded"
    return (
        printable(record.tags.get("agent", "")),
        printable(record.call.model),
        f"{usage.input:,}" if known else "",
        f"{usage.cache_read:,}" if usage.cache_read else "",
        f"{usage.output:,}" if known else "",
        cost,
        remark,
    )


class PlainScreen:
    """Prints one line for each step and each call, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def step(self, step: Step) -> None:
        """Prints the description of the step."""
        with self._lock:
            self._console.print(f"{step.agent}: {step.words}", markup=False)

    def record(self, record: Record) -> None:
        """Prints the numbers of the call."""
        _, model, tokens_in, cached, tokens_out, cost, remark = cells(record)
        parts = [f"  {model:<24}"]
        if tokens_in:
            parts.append(f"{tokens_in} in" + (f" ({cached} cached)" if cached else ""))
            parts.append(f"{tokens_out} out")
        parts += [part for part in (cost, remark) if part]
        with self._lock:
            self._console.print("  ".join(parts), markup=False)

    def notice(self, words: str) -> None:
        """Prints the remark."""
        with self._lock:
            self._console.print(f"  {words}", markup=False, style="yellow", soft_wrap=True)


class LiveScreen:
    """Draws a table that grows in place, for terminals."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live  # rich is loaded only where something is drawn

        self._lock = threading.Lock()
        self._rows: list[tuple[str, ...]] = []
        self._words = ""
        self._wide = console.width > _NARROW
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=12)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._words = ""
        self._live.stop()

    def step(self, step: Step) -> None:
        """Shows the description of the step below the table."""
        self._words = f"{step.agent}: {step.words} …"

    def record(self, record: Record) -> None:
        """Adds a row."""
        with self._lock:
            self._rows.append(cells(record))

    def notice(self, words: str) -> None:
        """Shows the remark above the table."""
        self._live.console.print(words, markup=False, style="yellow")

    def _draw(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            rows, words = list(self._rows), self._words
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0) if self._wide else (0, 1, 0, 0))
        table.caption, table.caption_justify = words or None, "left"
        for heading in ("Agent", "Model"):
            table.add_column(heading, no_wrap=True)
        for heading in ("Input", "Cached", "Output", "Cost"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", style="yellow", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        return table


_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)\{(?P<labels>.*)\} (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_UNITS = {"USD": "_USD", "s": "_seconds"}


def _prometheus(metric: c.Metric, suffix: str = "_total") -> str:
    """The name of a metric in Prometheus."""
    return _label(metric.name) + _UNITS.get(metric.unit, "") + suffix


def _label(attribute: str) -> str:
    return attribute.replace(".", "_")


# Metric → the labels that differ between its series.
_SHOWN: dict[str, tuple[str, ...]] = {
    _prometheus(c.TOKENS_INPUT): (_label(c.REQUEST_MODEL),),
    _prometheus(c.COST): (_label(c.REQUEST_MODEL), _label(c.TOKEN_TYPE)),
    _prometheus(c.PRICING_MISSES): (_label(c.REQUEST_MODEL),),
    _prometheus(c.USAGE_MISSING): (_label(c.REQUEST_MODEL), _label(c.REASON)),
    _prometheus(c.BUDGET_USAGE_RATIO, ""): (_label(c.BUDGET_NAME),),
    _prometheus(c.BUDGET_DECISIONS): (_label(c.BUDGET_DECISION),),
    _prometheus(c.DURATION, "_count"): (_label(c.REQUEST_MODEL), _label(c.ERROR_TYPE)),
}
_NARROW = 90  # columns
_MOST = 3  # series shown of each metric


def excerpt(metrics: str, width: int) -> Iterable[str]:
    """An excerpt of a scrape: some metrics, the series that fit the width, with the labels that differ."""
    found: dict[str, list[str]] = {}
    for line in metrics.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is None or sample["name"] not in _SHOWN or float(sample["value"]) == 0:
            continue
        labels: dict[str, Any] = dict(_LABEL.findall(sample["labels"]))
        shown = ",".join(f'{name}="{labels[name]}"' for name in _SHOWN[sample["name"]] if labels.get(name))
        found.setdefault(sample["name"], []).append(f"  {{{shown},…}} {sample['value']}")
    for name in _SHOWN:
        series = sorted(found.get(name, []), key=lambda line: len(line) > width)  # stable: what fits comes first
        if series:
            yield name
            yield from series[:_MOST]
            if len(series) > _MOST:
                yield f"  … {len(series) - _MOST} more"
