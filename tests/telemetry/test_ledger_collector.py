"""A ledger's totals look as a process's own metrics do."""

from __future__ import annotations

import urllib.error
import urllib.request
from decimal import Decimal

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client.parser import text_string_to_metric_families as parse

from otel_tokens.ledger.ledger import Ledger
from otel_tokens.ledger.totals import LedgerTotals
from otel_tokens.telemetry.exporters import PrometheusZeroFirstReader
from otel_tokens.telemetry.ledger_collector import LedgerCollector
from otel_tokens.telemetry.metrics import Metrics
from otel_tokens.values import UNPRICED, Component, Cost, Usage


def series(families):
    """Counter series by name and labels, without the histograms, which a ledger does not have."""
    return {
        (sample.name, frozenset((k, v) for k, v in sample.labels.items() if v)): sample.value
        for family in families
        if family.type == "counter"
        for sample in family.samples
    }


def scrape(zero_first):
    families, arrived = zero_first.scrape()
    arrived()
    return series(families)


@pytest.fixture
def records(make_record, failed, estimated, partial):
    component = Component("compaction", None, Usage(input=500, output=5, origin="provider"))
    made = [
        make_record(),
        make_record(),
        make_record(service_tier="flex"),
        make_record(cost=UNPRICED),
        make_record(cost=Cost(total=Decimal("0.25"), status="priced", source="provider")),
        make_record(usage=Usage(input=100, input_audio=30, output=4, origin="provider")),
        make_record(usage=Usage(input=100, output=4, origin="provider", components=(component,))),
        make_record(operation="embeddings", usage=Usage(input=8, origin="provider")),
        failed,
        estimated,
        partial,
    ]
    for number, record in enumerate(made):
        object.__setattr__(record.call, "id", f"c{number}")
    return made


def test_the_same_names_labels_and_values(records, tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    reader = PrometheusZeroFirstReader(serve=False)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    live = Metrics(provider.get_meter("otel_tokens"), version="1")
    for record in records:
        ledger.write(record)
        live(record)
    ledger.close()
    scrape(reader.zero_first)
    expected = scrape(reader.zero_first)
    found = scrape(LedgerCollector(LedgerTotals(path).refresh).zero_first)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key
    provider.shutdown()


def test_what_comes_later_begins_at_zero_and_a_restart_does_not(make_record, tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.write(make_record())
    collector = LedgerCollector(LedgerTotals(path).refresh)

    def tokens(model):
        return sum(
            value
            for (name, labels), value in scrape(collector.zero_first).items()
            if name == "gen_ai_client_inference_usage_input_tokens_total" and ("gen_ai_request_model", model) in labels
        )

    assert tokens("gpt-4o") == 1000
    ledger.write(make_record(id="c2", model="later"))
    assert tokens("later") == 0
    assert tokens("later") == 1000
    ledger.write(make_record(id="c3"))
    assert tokens("gpt-4o") == 2000
    ledger.close()


def test_over_http(make_record, tmp_path):
    path = tmp_path / "ledger.db"
    server = LedgerCollector(LedgerTotals(path).refresh).serve("127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.port}/metrics"
    try:
        with pytest.raises(urllib.error.HTTPError, match="503") as down:
            urllib.request.urlopen(address, timeout=300)  # no ledger yet: Prometheus shows the target as down
        down.value.close()
        ledger = Ledger(path)
        ledger.write(make_record())
        ledger.close()
        found = urllib.request.urlopen(address, timeout=300).read().decode()
        assert {family.name for family in parse(found)} >= {"otel_tokens_cost_USD", "otel_tokens_calls", "target_info"}
    finally:
        server.close()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.delenv("OTEL_TOKENS_STRICT", raising=False)  # the missing ledger of the last test is on purpose
