"""Records as metrics: totals through asynchronous counters, durations through histograms.

Nothing here depends on a span or on sampling. One meter scope for everything, as the Prometheus exporter mixes
up the labels of equal names from two scopes.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal

from opentelemetry.metrics import Histogram, Meter, Observation

from otel_tokens import conventions as names
from otel_tokens.conventions import Metric
from otel_tokens.telemetry.board import Board, Show, board_of
from otel_tokens.telemetry.budgets import BudgetRow, budget_points
from otel_tokens.telemetry.totals import SERIES_LIMIT, Points, Row, Totals
from otel_tokens.values import Record

TOKEN_COUNTERS = (
    (names.TOKENS_INPUT, "input"),
    (names.TOKENS_OUTPUT, "output"),
    (names.TOKENS_CACHE_READ, "cache_read"),
    (names.TOKENS_CACHE_WRITE, "cache_write"),
    (names.TOKENS_REASONING, "reasoning"),
)
PLAIN_COUNTERS = (
    (names.CALLS, "calls"),
    (names.ESTIMATED_TOKENS, "estimated"),
    (names.USAGE_MISSING, "missing"),
    (names.PRICING_MISSES, "misses"),
    (names.BUDGET_DECISIONS, "decisions"),
    (names.FAULTS, "faults"),
    (names.LEDGER_ERRORS, "ledger_errors"),
)
BUDGET_GAUGES = (
    names.BUDGET_COST_LIMIT,
    names.BUDGET_COST_USED,
    names.BUDGET_TOKEN_LIMIT,
    names.BUDGET_TOKEN_USED,
    names.BUDGET_USAGE_RATIO,
)
BUDGETS_FRESH = 0.5
"""Seconds for which one reading of the budgets serves: a collection asks once per gauge."""

_BUCKETS = {"s": names.SECONDS_BUCKETS, names.TOKENS_INPUT.unit: names.TOKEN_BUCKETS, "USD": names.COST_BUCKETS}


Decided = tuple[str, str, str, str, str, int]
"""(budget, decision, provider, model, how often since the guard's start)."""


class Metrics:
    """A sink of records: `metrics(record)`.

    `metric_attributes` are the tags allowed as labels of `otel_tokens.*` metrics. `semconv` is one of
    `conventions.SEMCONV_MODES`. Beyond `label_limit` values of a label, or `series_limit` points of a metric,
    the rest is added up as `__other__`. `version` is what `otel_tokens.build_info` says.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        semconv: str = "latest",
        metric_attributes: Iterable[str] = (),
        token_histograms: bool = False,
        cost_histogram: bool = False,
        chunk_histogram: bool = False,
        label_limit: int = 1000,
        series_limit: int = SERIES_LIMIT,
        version: str = "",
    ) -> None:
        self._tags = tuple(metric_attributes)
        self._latest = semconv in ("latest", "both")
        self._old = semconv in ("1.41", "both")
        self._foreign = False
        self._version = version
        self._budgets: Callable[[], Iterable[BudgetRow]] | None = None
        self._decisions: Callable[[], Iterable[Decided]] | None = None
        self._budget_points: dict[str, list[Observation]] = {}
        self._budgets_read = 0.0
        self._budgets_lock = threading.Lock()
        self._board: Board = board_of(meter)
        self.totals: Totals = self._board.totals
        self.totals.configure(metric_attributes=self._tags, label_limit=label_limit, series_limit=series_limit)
        self._create_histograms(meter, token_histograms, cost_histogram, chunk_histogram)
        self._create_observables(meter)

    # ---- instruments ------------------------------------------------------------------------------------------
    def _create_histograms(self, meter: Meter, tokens: bool, cost: bool, chunks: bool) -> None:
        def create(metric: Metric, wanted: bool = True) -> Histogram | None:
            if not wanted:
                return None
            made = meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=_BUCKETS[metric.unit],
            )
            self._board.keep([made])
            return made

        latest, old = self._latest, self._old
        self._duration = create(names.DURATION, latest)
        self._operation_duration = create(names.OPERATION_DURATION)
        self._first_chunk = create(names.FIRST_CHUNK, latest)
        self._first_chunk_141 = create(names.FIRST_CHUNK_141, old)
        self._per_chunk = create(names.PER_CHUNK, latest and chunks)
        self._per_chunk_141 = create(names.PER_CHUNK_141, old and chunks)
        self._call_input = create(names.CALL_INPUT_TOKENS, latest and tokens)
        self._call_output = create(names.CALL_OUTPUT_TOKENS, latest and tokens)
        self._token_usage_141 = create(names.TOKEN_USAGE_141, old)
        self._call_cost = create(names.CALL_COST, cost)
        self._extras = bool(tokens or cost or chunks or old)

    def _create_observables(self, meter: Meter) -> None:
        board, totals = self._board, self.totals
        shown: dict[str, Show] = {names.COST.name: self._costs, names.BUILD_INFO.name: self._build_info}
        if self._latest:
            for metric, field in TOKEN_COUNTERS:
                shown[metric.name] = functools.partial(_ints, functools.partial(totals.tokens, field))
        for metric, family in PLAIN_COUNTERS:
            shown[metric.name] = functools.partial(_ints, functools.partial(totals.counts, family))
        shown[names.BUDGET_DECISIONS.name] = self._decision_points
        for metric in BUDGET_GAUGES:
            shown[metric.name] = functools.partial(self._budget, metric.name)
        metrics = (*(metric for metric, _ in TOKEN_COUNTERS + PLAIN_COUNTERS), names.COST, names.BUILD_INFO)
        for metric in (*metrics, *BUDGET_GAUGES):
            create = meter.create_observable_gauge if metric.kind == "gauge" else meter.create_observable_counter
            made = create(metric.name, [board.callback(metric)], metric.unit, metric.description)
            board.keep([made])
        board.shown, board.owner = shown, self

    # ---- the hot path -----------------------------------------------------------------------------------------
    def __call__(self, record: Record) -> None:
        """Count one ended call."""
        row = self.totals.add(record)
        duration = self._duration if row.inference else self._operation_duration
        if duration is not None and (row.inference or not self._foreign):
            duration.record(record.duration, row.duration)
        if record.first_chunk is not None and self._first_chunk is not None:
            self._first_chunk.record(record.first_chunk, row.common)
        if self._extras:
            self._record_extras(record, row)

    def _record_extras(self, record: Record, row: Row) -> None:
        """What is opt-in or belongs to the older names."""
        usage = record.usage
        reported = usage.origin == "provider"
        failed = record.error_type is not None and usage.origin == "missing"
        if self._call_input is not None and self._call_output is not None and (reported or failed):
            self._call_input.record(usage.input, row.duration)
            if row.inference:
                self._call_output.record(usage.output, row.duration)
        if self._call_cost is not None and record.cost.total is not None:
            keep = (names.OPERATION, names.PROVIDER, names.REQUEST_MODEL)
            short = {name: value for name, value in row.common.items() if name in keep}
            self._call_cost.record(float(record.cost.total), short)
        gap = None
        if record.first_chunk is not None and record.chunks > 1:
            gap = max(record.duration - record.first_chunk, 0.0) / (record.chunks - 1)
            if self._per_chunk is not None:
                self._per_chunk.record(gap, row.common)
        if self._old and not self._foreign:
            self._record_old(record, row, gap)

    def _record_old(self, record: Record, row: Row, gap: float | None) -> None:
        usage = record.usage
        if self._operation_duration is not None and row.inference:
            self._operation_duration.record(record.duration, row.duration)
        if self._token_usage_141 is not None and usage.origin == "provider":
            self._token_usage_141.record(usage.input, {**row.common, names.TOKEN_TYPE_141: "input"})
            if row.inference:
                self._token_usage_141.record(usage.output, {**row.common, names.TOKEN_TYPE_141: "output"})
        if self._first_chunk_141 is not None and record.first_chunk is not None:
            self._first_chunk_141.record(record.first_chunk, row.common)
        if self._per_chunk_141 is not None and gap is not None:
            self._per_chunk_141.record(gap, row.common)

    # ---- from the other rooms ---------------------------------------------------------------------------------
    def fault(self, where: str) -> None:
        """Count a contained fault of ours."""
        self.totals.fault(where)

    def ledger_error(self, count: int = 1) -> None:
        """Count records that the ledger could not keep."""
        self.totals.ledger_error(count)

    def observe_budgets(self, callback: Callable[[], Iterable[BudgetRow]] | None) -> None:
        """Ask `callback` for the state of all budgets whenever metrics are collected. None stops that."""
        with self._budgets_lock:
            self._budgets, self._budgets_read, self._budget_points = callback, 0.0, {}

    def observe_decisions(self, callback: Callable[[], Iterable[Decided]] | None) -> None:
        """Ask `callback` for the guard's decisions whenever metrics are collected: totals since its start."""
        self.totals.take_decisions((), anew=True)
        self._decisions = callback

    def beside_foreign(self, active: bool) -> None:
        """Whether another instrumentation reports the same calls: then leave out the names it uses as well."""
        self._foreign = active

    def shutdown(self) -> None:
        """Show nothing any more. The totals stay with the meter, for a later `Metrics` on it."""
        if self._board.owner is self:
            self._board.shown, self._board.owner = {}, None

    # ---- what the callbacks show ------------------------------------------------------------------------------
    def _costs(self) -> Iterable[Observation]:
        return [Observation(_money(value), attributes) for attributes, value in self.totals.costs()]

    def _build_info(self) -> Iterable[Observation]:
        if not self._version:
            from importlib.metadata import PackageNotFoundError, version  # reads files: not before it is needed

            try:
                self._version = version("otel-tokens")
            except PackageNotFoundError:
                self._version = "unknown"
        return [Observation(1, {names.VERSION: self._version})]

    def _decision_points(self) -> Iterable[Observation]:
        if self._decisions is not None:
            self.totals.take_decisions(self._decisions())
        return _ints(functools.partial(self.totals.counts, "decisions"))

    def _budget(self, name: str) -> Iterable[Observation]:
        with self._budgets_lock:
            if self._budgets is None:
                return ()
            now = time.monotonic()
            if not self._budgets_read or now - self._budgets_read > BUDGETS_FRESH:
                self._budget_points = budget_points(self._budgets(), self._tags)
                self._budgets_read = now
            return self._budget_points.get(name, ())


def _ints(points: Callable[[], Points]) -> Iterable[Observation]:
    return [Observation(value, attributes) for attributes, value in points()]


def _money(value: Decimal) -> float:
    """The one place where money becomes a float."""
    return float(value)
