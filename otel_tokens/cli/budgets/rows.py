"""Budgets as a table, in words and as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.reporting.administration import Status, status
from otel_tokens.guard.store.base import Store
from otel_tokens.text import printable

if TYPE_CHECKING:
    from rich.table import Table

_NEAR, _FULL = 0.9, 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """A budget in one scope; without `status` it is declared and has not been used yet."""

    name: str
    scope: str
    unit: str
    limit: Decimal
    status: Status | None = None

    @property
    def ratio(self) -> float:
        """The share that is used."""
        return self.status.ratio if self.status is not None else 0.0


def lines(store: Store, declared: Sequence[Budget], name: str | None = None, scope: str | None = None) -> list[Line]:
    """What the store holds, and what is declared beside it. Raises StoreError."""
    found = [Line(row.name, row.scope, row.unit, row.limit, row) for row in status(store, name, scope)]
    used = {(line.name, line.unit) for line in found}
    for budget in declared:
        for limit in budget.limits:
            if (budget.name, limit.unit) not in used and name in (None, budget.name) and not scope:
                whose = f"per {', '.join(budget.scope_keys)}" if budget.scope_keys else ""
                found.append(Line(budget.name, whose, limit.unit, units.from_smallest(limit.unit, limit.amount)))
    return sorted(found, key=lambda line: (line.name, line.scope, line.unit))


def table(found: Sequence[Line]) -> Table:
    """For people."""
    from rich import box  # rich is loaded where something is drawn
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE, pad_edge=False)
    made.add_column("Budget", overflow="fold")
    made.add_column("Scope", overflow="fold")
    with_reserved = any(line.status is not None and line.status.reserved for line in found)
    for heading in ("Used", *(["Reserved"] if with_reserved else []), "Limit"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("", no_wrap=True)
    made.add_column("Used", justify="right", no_wrap=True)
    made.add_column("State")
    for line in found:
        style = "red" if line.ratio >= _FULL else "yellow" if line.ratio >= _NEAR else ""
        row = line.status
        numbers = [_amount(line.unit, row.used), _amount(line.unit, row.reserved)] if row else ["-", "-"]
        numbers = [*numbers[: 1 + with_reserved], _amount(line.unit, line.limit), _unit(line)]
        percent = Text(f"{line.ratio:.0%}" if row else "", style=style)
        names = (printable(line.name), printable(line.scope) or "all")
        made.add_row(*map(Text, (*names, *numbers)), percent, Text(state(line)))
    return made


def sentence(line: Line) -> str:
    """A used budget in a line."""
    name = printable(line.name)
    whose = f" ({printable(line.scope)})" if line.scope else ""
    row = line.status
    used = _amount(line.unit, row.used) if row is not None else "0"
    said = f", {text}" if (text := state(line)) else ""
    return f"budget {name}{whose}: {used} of {_amount(line.unit, line.limit)} {_unit(line)} used{said}"


def state(line: Line, now: float | None = None) -> str:
    """What else there is to say: when it begins anew, who waits, what is owed."""
    row = line.status
    if row is None:
        return "not used yet"
    now = time.time() if now is None else now
    said: list[str] = []
    if row.finished:
        said.append("finished")
    if row.paused_until:  # by the clock of the store, which need not be ours
        said.append("a call waits")
    if row.review_until:
        said.append("in review")
    if row.overdraft:
        said.append(f"overdraft {_amount(row.unit, row.overdraft)}")
    if row.limit != row.declared:
        said.append(f"declared {_amount(row.unit, row.declared)}")
    if row.end is not None:
        said.append(f"resets {_when(row.end, now)}")
    elif row.window_seconds is not None:
        said.append(f"last {_length(row.window_seconds)}")
    return ", ".join(said)


def details(line: Line) -> list[str]:
    """A budget in one scope, in words."""
    name = f"{printable(line.name)}, {printable(line.scope) or 'everything'}"
    row = line.status
    if row is None:
        return [f"{name}: {_amount(line.unit, line.limit)} {_unit(line)}, not used yet"]
    rest = _amount(line.unit, row.remaining)
    return [
        name,
        f"  used      {_amount(line.unit, row.used)} of {_amount(line.unit, row.limit)} {_unit(line)}"
        f" ({line.ratio:.1%})",
        f"  reserved  {_amount(line.unit, row.reserved)} by calls under way",
        f"  left      {rest}",
        *([f"  state     {said}"] if (said := state(line)) else []),
    ]


def as_json(found: Sequence[Line]) -> list[dict[str, Any]]:
    """For programs."""
    return [
        line.status.to_dict()
        if line.status is not None
        else {"name": line.name, "scope": line.scope, "unit": line.unit, "limit": str(line.limit), "used": None}
        for line in found
    ]


def _unit(line: Line) -> str:
    return printable(units.name(line.unit))


def _amount(unit: str, amount: Decimal) -> str:
    return units.show(unit, units.to_smallest(unit, amount) if amount >= 0 else 0)


def _when(moment: float, now: float) -> str:
    at = datetime.fromtimestamp(moment)  # noqa: DTZ006 (local, as the reader's clock)
    near = moment - now < 20 * 3600
    return f"{at:%H:%M}" if near else f"{at:%a %d %b %H:%M}"


def _length(seconds: float) -> str:
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {word}"
    return f"{seconds:g} s"
