"""A ledger's totals for Prometheus, under the names and labels of the metrics of a running process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

from otel_tokens.conventions import SCOPE
from otel_tokens.telemetry.exporters import DEFAULT_HOST, DEFAULT_PORT, PrometheusZeroFirstReader
from otel_tokens.telemetry.exposition import PrometheusServer, ZeroFirst, listen
from otel_tokens.telemetry.metrics import Metrics
from otel_tokens.values import COST_PARTS, TOKEN_FIELDS, Call, Cost, Record, Usage

if TYPE_CHECKING:
    from prometheus_client import Metric


class LedgerCollector:
    """A ledger's totals under the names and labels of our metrics. `refresh` gives all totals as of now.

    Its keys have the attributes operation, provider, model, response_model, service_tier, server_address,
    server_port, outcome, error_type, origin, missing_reason, cost_status, cost_source and currency. Its values
    have `counts` ("calls", "priced"), `tokens` by field of `Usage` with "component_input" and "component_output",
    and `cost` by part with "total", in Decimal.

    Histograms are not in a ledger, so they are not here. What the first scrape finds is shown as it is: the
    totals outlive this process, and beginning at 0 again would look like an increase. If `refresh` raises, the
    scrape fails, so that Prometheus shows the target as down.
    """

    def __init__(self, refresh: Callable[[], Mapping[Any, Any]], *, resource: Resource | None = None) -> None:
        self._refresh = refresh
        self._reader = PrometheusZeroFirstReader(serve=False)
        self._provider = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
        self.metrics = Metrics(self._provider.get_meter(SCOPE), label_limit=10_000)
        self.zero_first = ZeroFirst(self._families, baseline=True)

    def serve(self, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> PrometheusServer | None:
        """Start serving; None, after an error message, if the address cannot be had."""
        listener = listen(host, port, "choose another port with --port, or another address with --host")
        return None if listener is None else PrometheusServer(self.zero_first, listener)

    def _families(self) -> Iterable[Metric]:
        found = self._refresh()
        totals = self.metrics.totals
        totals.reset()
        for key, sums in found.items():
            totals.add(_sums_as_record(key, sums), sums.counts["calls"])
        return self._reader.families()


def _sums_as_record(key: Any, sums: Any) -> Record:
    """One record that stands for all calls of a key."""
    fields: dict[str, Any] = {name: sums.tokens.get(name, 0) for name in TOKEN_FIELDS}
    fields["input"] += sums.tokens.get("component_input", 0)
    fields["output"] += sums.tokens.get("component_output", 0)
    fields["origin"] = key.origin or "missing"
    known = sums.counts.get("priced", 0) > 0
    parts: dict[str, Any] = {part: sums.cost.get(part) for part in COST_PARTS} if known else {}
    parts["other"] = None  # recomputed as the rest, which also takes totals that came without parts
    parts |= {"status": key.cost_status or "unpriced", "source": key.cost_source or "local"}
    cost = Cost(total=sums.cost["total"] if known else None, currency=key.currency or "USD", **parts)
    outcome: Any = key.outcome or "ok"
    call = Call(
        id="",
        provider=key.provider or "",
        endpoint="",
        operation=key.operation or "",
        model=key.model or "",
        started=0.0,
        server_address=key.server_address,
        server_port=key.server_port,
    )
    return Record(
        call=call,
        usage=Usage(**fields),
        cost=cost,
        outcome=outcome,
        duration=0.0,
        response_model=key.response_model,
        service_tier=key.service_tier,
        error_type=key.error_type,
        missing_reason=key.missing_reason,
    )
