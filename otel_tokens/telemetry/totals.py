"""Cumulative totals of this process: what the asynchronous counters report, and the hot path of every call.

Adding a record is one dictionary lookup and some additions under a lock. Money is Decimal; nothing is rounded
before an exporter asks for a float.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from otel_tokens import conventions as names
from otel_tokens.telemetry.cells import CostCell, Count, TokenCell
from otel_tokens.telemetry.labels import Cap, Labels, folded
from otel_tokens.values import Call, Component, Record

Points = list[tuple[Mapping[str, Any], int]]
Decided = tuple[str, str, str, str, str]
"""Budget, decision, provider, model."""
Cell = TypeVar("Cell", Count, TokenCell, CostCell)

SERIES_LIMIT = 1900
"""Points per metric. The OpenTelemetry SDK folds what is beyond 2,000 into one nameless series."""
MAX_ROWS = 20_000
"""Combinations of facts remembered for speed; further ones are resolved anew for each call."""
POINTS_PER_SET = {"tokens": 4, "cost": 5}
INPUT, OUTPUT = "input", "output"
CURRENCY = names.COST.unit
"""The cost counter's: money in another currency is not added to it."""


class Row:
    """Where the records of one combination of facts are added. `duration` and `common` are ready attributes."""

    __slots__ = ("calls", "common", "cost", "duration", "estimated", "inference", "missed", "missing", "tokens")

    def __init__(self) -> None:
        self.inference = True
        self.common: dict[str, Any] = {}
        self.duration: dict[str, Any] = {}
        self.tokens: TokenCell
        self.calls: Count
        self.cost: CostCell | None = None
        self.missed: Count | None = None
        self.missing: Count | None = None
        self.estimated: tuple[Count, Count] | None = None


class Totals:
    """Totals by label set. All methods may be called from any thread.

    `metric_attributes` are the tags that become labels of `otel_tokens.*` metrics. Beyond `label_limit` values of
    a label, or `series_limit` points of a metric, further label sets are added up as `__other__`.
    """

    def __init__(
        self, *, metric_attributes: tuple[str, ...] = (), label_limit: int = 1000, series_limit: int = SERIES_LIMIT
    ) -> None:
        self._tags = tuple(metric_attributes)
        self._label_limit = label_limit
        self._series_limit = series_limit
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a forked child, whose parent reports what was counted so far."""
        # Reentrant: a signal handler of the application may make a call of its own on this thread.
        self._lock = threading.RLock()
        self._cap = Cap(self._label_limit)
        self._rows: dict[tuple[Any, ...], Row] = {}
        self._cells: dict[str, dict[Labels, Any]] = {}
        self._told: dict[Decided, int] = {}

    def configure(self, *, metric_attributes: tuple[str, ...], label_limit: int, series_limit: int) -> None:
        """Change the labels from now on; what is counted stays, under the labels it was counted with."""
        with self._lock:
            self._tags = tuple(metric_attributes)
            self._label_limit, self._series_limit = label_limit, series_limit
            self._cap.limit = label_limit
            self._rows = {}

    # ---- adding -----------------------------------------------------------------------------------------------
    def add(self, record: Record, calls: int = 1) -> Row:
        """Count a record; returns its row, whose attributes serve for histograms.

        With `calls` the record stands for so many calls with the same labels, its numbers being their sums.
        """
        call, usage, cost = record.call, record.usage, record.cost
        key = (
            call.operation,
            call.provider,
            call.model,
            record.response_model,
            call.server_address,
            call.server_port,
            record.service_tier,
            record.error_type,
            record.outcome,
            record.missing_reason,
            usage.origin,
            cost.source,
            cost.status,
        )
        if self._tags:
            key += tuple(map(call.tags.get, self._tags))
        with self._lock:
            row = self._rows.get(key) or self._remember(key, record)
            row.calls.value += calls
            if row.missing is not None:
                row.missing.value += calls
            if usage.origin == "provider":
                row.tokens.add(usage)
            elif usage.origin != "missing":
                self._add_estimate(row, record)
            if cost.total is not None and cost.currency == CURRENCY:
                self._add_cost(row, record, cost.total)
            elif usage.origin != "missing":
                self._miss(row, call).value += calls
            if usage.components:
                for part in usage.components:
                    self._component(record, part).add(part.usage)
            return row

    def _remember(self, key: tuple[Any, ...], record: Record) -> Row:
        row = self._resolve(record)
        if len(self._rows) < MAX_ROWS:
            self._rows[key] = row
        return row

    def _miss(self, row: Row, call: Call) -> Count:
        if row.missed is None:
            row.missed = self._cell("misses", Count, self._who(call))
        return row.missed

    def _add_estimate(self, row: Row, record: Record) -> None:
        """Of a partial report the input is the provider's; the rest is ours, and counted apart."""
        usage = record.usage
        if row.estimated is None:
            common = self._short(record.call)
            row.estimated = (
                self._cell("estimated", Count, (*common, (names.TOKEN_TYPE, INPUT))),
                self._cell("estimated", Count, (*common, (names.TOKEN_TYPE, OUTPUT))),
            )
        given, made = row.estimated
        if usage.origin == "partial" and (INPUT in usage.reported or not usage.reported):
            row.tokens.add_input(usage)
        else:
            given.value += usage.input
        made.value += usage.output

    def _add_cost(self, row: Row, record: Record, total: Decimal) -> None:
        cell = row.cost
        if cell is None:
            cost = record.cost
            status = cost.status if cost.status != "priced" else None
            pairs = [
                *self._models(record.call, record.call.model, record.response_model),
                (names.COST_SOURCE, cost.source),
                (names.PRICING_STATUS, status),
                *self._tag_pairs(record.call),
            ]
            cell = row.cost = self._cell("cost", CostCell, self._cap.labels(pairs))
        cell.add(record.cost, total)

    def decided(
        self, budget: str, decision: str, provider: str, model: str, reason: str = "", *, count: int = 1
    ) -> None:
        """Count `count` decisions of the guard."""
        with self._lock:
            pairs = [
                (names.BUDGET_NAME, budget),
                (names.BUDGET_DECISION, decision),
                (names.PROVIDER, provider),
                (names.REQUEST_MODEL, model),
                (names.REASON, reason or None),
            ]
            self._cell("decisions", Count, self._cap.labels(pairs)).value += count

    def take_decisions(self, rows: Iterable[tuple[str, str, str, str, str, int]], *, anew: bool = False) -> None:
        """Count what is new in the totals that a guard keeps: (budget, decision, provider, model, reason,
        count).

        `anew`: it is another guard, which began at 0. One that has fallen back has begun at 0 by itself.
        """
        sums: dict[Decided, int] = {}
        for budget, decision, provider, model, reason, count in rows:
            key = (budget, decision, provider, model, reason)
            sums[key] = sums.get(key, 0) + count
        with self._lock:
            told = {} if anew else self._told
            for key, count in sums.items():
                before = told.get(key, 0)
                new = count - before if count >= before else count
                if new:
                    self.decided(*key, count=new)
            self._told = sums

    def fault(self, where: str) -> None:
        """Count a contained fault of ours at `where`, one of our own places."""
        with self._lock:
            self._cell("faults", Count, self._cap.labels([(names.REASON, where)])).value += 1

    def ledger_error(self, count: int = 1) -> None:
        """Count records that the ledger could not keep."""
        with self._lock:
            self._cell("ledger_errors", Count, ()).value += count

    # ---- reading ----------------------------------------------------------------------------------------------
    def tokens(self, field: str) -> Points:
        """The points of one token counter: "input", "output", "cache_read", "cache_write" or "reasoning".

        Operations that are no inference (embeddings) have input only.
        """
        with self._lock:
            cells: list[TokenCell] = list(self._cells.get("tokens", {}).values())
            return [point for cell in cells if cell.inference or field == INPUT for point in cell.values(field)]

    def costs(self) -> list[tuple[Mapping[str, Any], Decimal]]:
        """The points of the cost counter in USD, by component, exact."""
        with self._lock:
            cells: list[CostCell] = list(self._cells.get("cost", {}).values())
            return [point for cell in cells for point in cell.values()]

    def counts(self, family: str) -> Points:
        """The points of a plain counter: calls, missing, misses, estimated, decisions, faults, ledger_errors."""
        with self._lock:
            cells: list[Count] = list(self._cells.get(family, {}).values())
            return [(cell.attributes, cell.value) for cell in cells]

    # ---- resolving labels -------------------------------------------------------------------------------------
    def _resolve(self, record: Record) -> Row:
        call = record.call
        row = Row()
        row.inference = call.operation in names.INFERENCE_OPERATIONS
        common = self._common(record, call.model, record.response_model)
        row.tokens = self._cell("tokens", TokenCell, common)
        failed = self._cap.labels([(names.ERROR_TYPE, record.error_type)])
        row.common = self._cell("common", Count, common).attributes
        row.duration = self._cell("duration", Count, (*common, *failed)).attributes
        row.calls = self._cell("calls", Count, (*self._short(call), (names.OUTCOME, record.outcome)))
        if _is_gap(record):
            row.missing = self._cell("missing", Count, (*self._who(call), (names.REASON, record.missing_reason)))
        return row

    def _cell(self, family: str, kind: type[Cell], labels: Labels) -> Cell:
        cells = self._cells.setdefault(family, {})
        cell = cells.get(labels)
        if cell is None:
            if len(cells) >= max(1, self._series_limit // POINTS_PER_SET.get(family, 1)):
                labels = folded(labels)
                cell = cells.get(labels)
                if cell is not None:
                    return cell
            cell = cells[labels] = kind(labels)
        return cell

    def _models(self, call: Call, model: str, answered: str | None) -> list[tuple[str, Any]]:
        return [
            (names.OPERATION, call.operation),
            (names.PROVIDER, call.provider),
            (names.REQUEST_MODEL, model),
            (names.RESPONSE_MODEL, answered),
        ]

    def _common(self, record: Record, model: str, answered: str | None) -> Labels:
        call = record.call
        return self._cap.labels(
            [
                *self._models(call, model, answered),
                (names.SERVER_ADDRESS, call.server_address),
                (names.SERVER_PORT, call.server_port if call.server_address else None),
                (names.SERVICE_TIER, record.service_tier if call.provider in names.OPENAI_TIERS else None),
            ]
        )

    def _component(self, record: Record, part: Component) -> TokenCell:
        """Tokens billed beside the call's own total, under the model that used them."""
        call = record.call
        labels = self._common(record, part.model or call.model, part.model or record.response_model)
        return self._cell("tokens", TokenCell, labels)

    def _who(self, call: Call) -> Labels:
        return self._cap.labels([(names.PROVIDER, call.provider), (names.REQUEST_MODEL, call.model)])

    def _short(self, call: Call) -> Labels:
        return self._cap.labels(
            [
                (names.OPERATION, call.operation),
                (names.PROVIDER, call.provider),
                (names.REQUEST_MODEL, call.model),
                *self._tag_pairs(call),
            ]
        )

    def _tag_pairs(self, call: Call) -> list[tuple[str, Any]]:
        return [(names.tag_attribute(tag), call.tags.get(tag)) for tag in self._tags]


def _is_gap(record: Record) -> bool:
    """Whether usage is missing where the provider owed it: not for a call that failed before any answer."""
    reason = record.missing_reason
    return reason is not None and not (reason == "error" and record.usage.origin == "missing")
