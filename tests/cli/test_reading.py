"""The commands that read: report, prices, exporter."""

from __future__ import annotations

import csv
import io
import json
import signal
import urllib.request
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otel_tokens.cli.group import cli
from otel_tokens.ledger.ledger import Ledger
from otel_tokens.values import Call, Cost, Record, Usage

NOW = 1_795_000_000.0


def record(number: int, model: str = "gpt-5.4", cost: str | None = "0.001", **tags: str) -> Record:
    call = Call(
        f"call-{number}", "openai", "openai.chat", "chat", model, NOW + number, server_address="llm.example", tags=tags
    )
    total = None if cost is None else Decimal(cost)
    zero = None if cost is None else Decimal(0)
    price = Cost(total, total, zero, zero, zero, zero, status="unpriced" if cost is None else "priced")
    usage = Usage(input=100, output=10, origin="provider", reported=frozenset({"input", "output"}))
    return Record(call, usage, price, "ok", 0.5)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A ledger with these records; commands see an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("OTEL_TOKENS_CONFIG", "OTEL_TOKENS_LEDGER"):
        monkeypatch.delenv(name, raising=False)

    def make(*records: Record) -> str:
        book = Ledger(tmp_path / "ledger.db")
        for item in records:
            book.write(item)
        book.close()
        return str(tmp_path / "ledger.db")

    return make


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="otel-tokens")


# ---- report


def test_report_adds_up_and_filters(ledger: Callable[..., str]) -> None:
    path = ledger(
        record(1, agent="a", run="r1"),
        record(2, agent="b", run="r1"),
        record(3, "other", "0.0000000012", agent="a", run="r2"),
    )

    def total(*args: str) -> dict[str, Any]:
        done = invoke("report", "--ledger", path, "--json", *args)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)["total"]

    assert (total()["calls"], total()["cost"]) == (3, "0.0020000012")
    assert total("--where", "agent=a")["calls"] == 2
    assert total("--where", "agent=a", "--where", "model=other")["calls"] == 1
    assert total("--run", "r1")["calls"] == 2
    assert total("--since", str(NOW + 2), "--until", str(NOW + 3))["calls"] == 1


def test_report_forms(ledger: Callable[..., str]) -> None:
    path = ledger(record(1, agent="a"), record(2, agent="b"), record(3, "mystery", None, agent="b"))
    table = invoke("report", "--ledger", path).stdout
    assert "gpt-5.4" in table
    assert "mystery" in table
    assert "unpriced" in table
    rows = list(csv.DictReader(io.StringIO(invoke("report", "--ledger", path, "--by", "agent,model", "--csv").stdout)))
    assert [(row["agent"], row["model"], row["calls"]) for row in rows] == [
        ("a", "gpt-5.4", "1"),
        ("b", "gpt-5.4", "1"),
        ("b", "mystery", "1"),
    ]
    twice = invoke("report", "--ledger", path, "--by", "agent", "--by", "model", "--json")
    assert json.loads(twice.stdout)["by"] == ["agent", "model"]


def test_report_finds_the_ledger_of_the_settings(ledger: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = ledger(record(1))
    monkeypatch.setenv("OTEL_TOKENS_LEDGER", path)
    assert json.loads(invoke("report", "--json").stdout)["total"]["calls"] == 1
    monkeypatch.delenv("OTEL_TOKENS_LEDGER")
    Path("otel-tokens.yaml").write_text("ledger: ledger.db\n")
    assert json.loads(invoke("report", "--json").stdout)["total"]["calls"] == 1


# ---- prices


def test_prices_names_rates_rule_and_source() -> None:
    done = invoke("prices", "gpt-4o", "--provider", "openai", "--config", "off")
    assert done.exit_code == 0
    assert "gpt-4o (openai)" in done.stdout
    assert "USD per million tokens" in done.stdout
    assert "rule       genai-prices openai/gpt-4o" in done.stdout
    assert "source     https://" in done.stdout
    found = json.loads(invoke("prices", "gpt-4o", "--config", "off", "--json").stdout)
    rates = {rate["name"]: rate["amount"] for rate in found["rates"] if rate["above"] is None}
    assert (rates["input"], rates["output"], rates["cache_read"]) == ("2.50", "10.00", "1.25")


def test_prices_of_the_user_win(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("prices:\n  - {model: 'gpt-4o*', input: 1, output: 0.000005}\n")
    done = invoke("prices", "gpt-4o", "--config", str(config))
    assert "0.000005" in done.stdout
    assert "mine.yaml:2" in done.stdout


def test_prices_of_the_unknown() -> None:
    done = invoke("prices", "gtp-4o", "--config", "off")
    assert done.exit_code == 1
    assert "unpriced" in done.stdout
    assert "gpt-4o" in done.stdout
    found = json.loads(invoke("prices", "acme-1", "--provider", "acme", "--json", "--config", "off").stdout)
    assert (found["priced"], found["rates"]) == (False, [])
    assert found["reason"]


def test_prices_of_a_day_and_of_a_tier() -> None:
    def first(*args: str) -> Decimal:
        found = json.loads(invoke("prices", *args, "--config", "off", "--json").stdout)
        return Decimal(found["rates"][0]["amount"])

    assert first("gpt-5.4", "--tier", "flex") == first("gpt-5.4") / 2
    assert first("o3", "--at", "2025-05-01") == 5 * first("o3")  # its price fell in June 2025


# ---- exporter


def scrape(url: str) -> dict[str, float]:
    text = urllib.request.urlopen(url, timeout=300).read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_exporter_serves_the_totals(workshop: Any) -> None:
    book = Ledger(workshop.ledger)
    book.write(record(1))
    process = workshop.start("exporter", "--ledger", str(workshop.ledger), "--port", "0")
    url = process.stderr.readline().split(" on ")[1].split()[0]
    found = scrape(url)
    assert sum(value for name, value in found.items() if name.startswith("otel_tokens_cost_USD_total")) == 0.001
    book.write(record(2))
    book.write(record(3, "new-model"))
    book.close()
    scrape(url)
    found = scrape(url)
    assert sum(value for name, value in found.items() if name.startswith("otel_tokens_calls_total")) == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0


def test_exporter_may_start_before_the_first_call(workshop: Any) -> None:
    process = workshop.start("exporter", "--ledger", str(workshop.ledger), "--port", "0")
    assert "no ledger" in process.stderr.readline()
    url = process.stderr.readline().split(" on ")[1].split()[0]
    assert not [name for name in scrape(url) if name.startswith("otel_tokens_calls")]
    book = Ledger(workshop.ledger)
    book.write(record(1))
    book.close()
    scrape(url)
    assert sum(v for name, v in scrape(url).items() if name.startswith("otel_tokens_calls_total")) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0


def test_exporter_refuses_what_is_no_ledger_and_a_taken_port(workshop: Any) -> None:
    (workshop.folder / "notes.txt").write_text("no database" * 100)
    done = workshop("exporter", "--ledger", "notes.txt")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    port = workshop.server.url.rpartition(":")[2]
    done = workshop("exporter", "--ledger", "x.db", "--port", port)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said == (
        f"otel-tokens: cannot serve Prometheus metrics on 127.0.0.1:{port} (Address already in use); "
        "choose another port with --port, or another address with --host"
    )
    assert "Traceback" not in done.stderr
