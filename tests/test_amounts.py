"""Amounts with huge exponents are refused before anything takes their digits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import otel_tokens
from otel_tokens import Budget, ConfigError
from otel_tokens.assemble_guard import declared_budgets
from otel_tokens.pricing.rules import parse_rules
from otel_tokens.settings.load import load_settings

# Ten million digits: enough to be seen, few enough to do no harm where they are made.
HUGE = ("1e9999999", "1e-9999999")


def memory(work: Callable[[], Any]) -> int:
    """The most bytes that `work` held at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("unit", ["usd", "tokens", "calls", "seconds"])
def test_of_a_budget(number: str, unit: str) -> None:
    def declare() -> None:
        with pytest.raises(ConfigError, match="not a believable amount"):
            Budget("cap", **{unit: Decimal(number)})

    assert memory(declare) < 1_000_000


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("budgets: [{name: a, usd: NUMBER}]", "not a believable amount"),
        ("budgets: [{name: a, usd: 1, grace: {usd: NUMBER}}]", "not a believable amount"),
        ("guard: {min_output: NUMBER}", "min_output"),
        ("guard: {lease_seconds: NUMBER}", "lease_seconds"),
    ],
)
@pytest.mark.parametrize("number", ["1e99999999", "1e-99999999"])
def test_of_a_file(number: str, text: str, mistake: str, tmp_path: Path) -> None:
    file = tmp_path / "otel-tokens.yaml"
    file.write_text(text.replace("NUMBER", number) + "\n")

    def declare() -> None:
        with pytest.raises(ConfigError, match=mistake):
            declared_budgets(load_settings(str(file)), ())

    assert memory(declare) < 20_000_000  # reading a file takes 8 MB, the digits would take 40


@pytest.mark.parametrize("number", [*HUGE, "0e9999999", "0e-9999999"])
@pytest.mark.parametrize("key", ["input", "per_request", "web_search"])
def test_of_a_price(number: str, key: str) -> None:
    entry: dict[str, Any] = {"model": "m", "input": 1, "output": 1, key: Decimal(number)}

    def declare() -> None:
        with pytest.raises(ConfigError, match="no believable price"):
            parse_rules([entry], "prices.yaml")

    assert memory(declare) < 1_000_000


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("key", ["prompt_tokens", "cost", "cost_in_usd_ticks"])
def test_of_a_report(number: str, key: str) -> None:
    raw: dict[str, Any] = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11, key: number}

    def read() -> None:
        usage = otel_tokens.normalise("openrouter", raw)
        assert usage.reported_cost is None
        assert usage.input in (0, 10)
        assert f"{otel_tokens.price('gpt-4o', usage).total:f}"

    read()  # loads the prices
    assert memory(read) < 1_000_000


@pytest.mark.parametrize("number", ["0e9999999", "0e-9999999"])
def test_a_zero_is_a_zero(number: str) -> None:
    raw = {"prompt_tokens": 0, "completion_tokens": 0, "cost": number}
    assert str(otel_tokens.normalise("openrouter", raw).reported_cost) == "0"
