"""The values of a report: its rows and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from otel_tokens.ledger.sums import MONEY, Sums


@dataclass(frozen=True, slots=True)
class Row:
    """One line: the calls that agree in the report's dimensions. `key` has their values, None where a call has none.

    Tokens are inclusive totals (`cache_read` and `cache_write` are part of `input`, `reasoning` of `output`);
    `component_input` and `component_output` are billed parts outside of them, such as compaction passes, whose money
    is in `cost`. `cost` is the sum of the known costs in `currency`, None when no call has one. `unpriced`, `estimated`
    and `missing` count calls whose price is unknown, whose usage is (partly) our estimate, or was not reported.
    """

    key: tuple[str | None, ...]
    calls: int
    errors: int
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    component_input: int
    component_output: int
    cost: Decimal | None
    currency: str | None
    unpriced: int
    estimated: int
    missing: int
    share: Decimal | None = None
    sums: Sums = field(default_factory=Sums, repr=False)

    @property
    def total_tokens(self) -> int:
        """Input plus output."""
        return self.input + self.output

    @property
    def cost_parts(self) -> Mapping[str, Decimal]:
        """The cost by component: they add up to `cost`, save calls whose cost only the provider states, as one sum."""
        return {name: self.sums.cost[name] for name in MONEY if name != "total"}


@dataclass(frozen=True, slots=True)
class ReportData:
    """Rows by the dimensions `by`, dearest first (days in their order), and their exact sum.

    `totals` has one row per currency (amounts in different ones are never added), `total` is their sum, with no cost
    when there are several. `notes` are sentences on what is not known. Times are unix seconds.
    """

    ledger: str
    by: tuple[str, ...]
    since: float | None
    until: float | None
    generated: float
    rows: tuple[Row, ...]
    total: Row
    totals: tuple[Row, ...]
    unpriced_models: Mapping[str, int]
    notes: tuple[str, ...]
