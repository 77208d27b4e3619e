"""Prices that the user states."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_tokens.assemble import examined_prices, make_pricer
from otel_tokens.errors import ConfigError
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.rules import PriceRule, parse_rules
from otel_tokens.settings import load_settings, read_yaml
from otel_tokens.settings.entry import Entry
from otel_tokens.values import Cost

Price = Callable[..., Cost]


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


def test_a_stated_price_beats_the_catalogue(price: Price) -> None:
    rules = [{"model": "gpt-4o", "input": 1, "output": 4}]
    cost = price("openai", "gpt-4o", rules=rules, response_model="gpt-4o-2024-08-06", input=1000, output=1000)
    assert (cost.total, cost.status) == (Decimal("0.005"), "priced")
    assert cost.rule == 'file prices.yaml "gpt-4o"'
    assert "rules " in cost.version


def test_it_does_not_leak_to_siblings_nor_to_other_snapshots(price: Price) -> None:
    rules = [{"model": "gpt-4o", "input": 1, "output": 4}]
    assert price("openai", "gpt-4o-mini", rules=rules, input=10**6).total == Decimal("0.15")
    assert price("openai", "gpt-4o-2024-05-13", rules=rules, input=10**6).total == 5


def test_a_float_is_the_number_that_was_written(price: Price) -> None:
    rules = [{"model": "m", "input": 0.1, "output": "0.30"}, {"model": "n", "input": Decimal("0.0700")}]
    assert price("x", "m", rules=rules, input=10**6, output=10**6).total == Decimal("0.4")
    assert price("x", "n", rules=rules, input=10**6).total == Decimal("0.07")


@pytest.mark.parametrize(
    ("model", "rate"),
    [("gpt-4o", "1"), ("gpt-4o-mini", "2"), ("gpt-4o-mini-x", "2"), ("gpt-4.1", "3"), ("gpt-5", "3"), ("GPT-4O", "1")],
)
def test_exact_beats_pattern_and_longer_beats_shorter(price: Price, model: str, rate: str) -> None:
    rules = [
        {"model": "gpt-4o", "input": 1},
        {"pattern": "gpt-4o*", "input": 2},
        {"model": "gpt-?*", "input": 3},
    ]
    assert price("openai", model, rules=rules, input=10**6).total == Decimal(rate)


def test_a_later_rule_beats_an_earlier_equal_one(price: Price) -> None:
    rules = [{"model": "m", "input": 1}, {"model": "m", "input": 2}]
    assert price("x", "m", rules=rules, input=10**6).total == 2


def test_signs_in_a_name_are_no_pattern(price: Price) -> None:
    rules = [{"model": "llama[3].1", "input": 1}]
    assert price("x", "llama[3].1", rules=rules, input=10**6).total == 1
    assert price("x", "llama3x1", rules=rules, input=10**6).status == "unpriced"


def test_a_provider_narrows_a_rule(price: Price) -> None:
    rules = [{"model": "m*", "provider": "vllm", "input": 1}, {"model": "m*", "input": 2}]
    assert price("vllm", "m1", rules=rules, input=10**6).total == 1
    assert price("ollama", "m1", rules=rules, input=10**6).total == 2


@pytest.mark.parametrize(
    ("day", "rate"),
    [("2025-12-31T23:59:59", None), ("2026-01-01T00:00:00", "1"), ("2026-06-30T23:59:59", "1"), ("2026-07-01", "2")],
)
def test_dates_are_days_in_utc_both_inclusive(price: Price, day: str, rate: str | None) -> None:
    rules = [
        {"model": "m", "input": 1, "from": dt.date(2026, 1, 1), "until": "2026-06-30"},
        {"model": "m", "input": 2, "from": "2026-07-01"},
    ]
    total = price("x", "m", rules=rules, input=10**6, at=at(day)).total
    assert total == (None if rate is None else Decimal(rate))


def test_one_catalogue_asked_about_many_days(price: Price) -> None:
    catalog = Catalog(parse_rules([{"model": "m", "input": 1, "until": "2026-06-30"}], "f"))
    cards = [catalog.card("x", "m", at=at(day)) for day in ("2026-06-30", "2026-07-01", "2026-06-01", "2027-01-01")]
    assert [card is not None for card in cards] == [True, False, True, False]


def test_a_tier_of_its_own_and_one_price_for_all_tiers(price: Price) -> None:
    rules = [
        {"model": "m", "input": 4},
        {"model": "m", "tier": "Batch", "input": 1},
        {"model": "m", "tier": "fast", "input": 9},
    ]
    assert price("x", "m", rules=rules, input=10**6).total == 4
    assert price("x", "m", rules=rules, input=10**6, tier="batch").total == 1
    assert price("x", "m", rules=rules, input=10**6, speed="fast").total == 9
    flex = price("x", "m", rules=rules, input=10**6, tier="flex")
    assert (flex.total, flex.status) == (4, "priced")


def test_unstated_cache_rates_are_the_input_rate(price: Price) -> None:
    rules = [{"model": "m", "input": 10, "output": 0}]
    cost = price("x", "m", rules=rules, input=1000, cache_read=500, cache_write=300, output=5)
    assert (cost.total, cost.cache_read, cost.cache_write) == (Decimal("0.01"), Decimal("0.005"), Decimal("0.003"))
    card = Catalog(parse_rules(rules, "f")).card("x", "m")
    assert card is not None
    assert card.notes == ("cache_read and cache_write not stated: charged as input",)


def test_a_rate_that_is_missing_is_told() -> None:
    card = Catalog(parse_rules([{"model": "m", "output": 2}], "f")).card("x", "m")
    assert card is not None
    assert card.notes == ("input not stated: calls with input are unpriced",)


def test_all_rates_can_be_stated(price: Price) -> None:
    rules = [{"model": "m", "input": 1, "cache_read": 0.1, "cache_write": 2, "cache_write_1h": 3, "output": 5,
              "input_audio": 20, "reasoning": 7, "per_request": "0.5",
              "web_search": 0.25, "currency": "usd", "note": "x"}]  # fmt: skip
    cost = price("x", "m", rules=rules, input=10**6 * 4, cache_read=10**6, cache_write=2 * 10**6, cache_write_1h=10**6,
                 input_audio=10**6, output=2 * 10**6, reasoning=10**6, web_searches=2)  # fmt: skip
    assert [cost.input, cost.cache_read, cost.cache_write, cost.output, cost.other] == [
        20, Decimal("0.1"), 5, 12, 1]  # fmt: skip


def test_long_context_by_a_second_entry(price: Price) -> None:
    rules = [{"model": "m", "input": 1, "output": 2}, {"model": "m", "above": 200_000, "input": 3}]
    assert price("x", "m", rules=rules, input=200_000, output=10**6).total == Decimal("2.2")
    assert price("x", "m", rules=rules, input=200_001, output=10**6).total == Decimal("2.600003")


def test_a_local_server_costs_what_the_user_says(price: Price) -> None:
    assert price("vllm", "llama", input=10).status == "unpriced"
    free = price(
        "vllm", "llama", rules=[{"model": "*", "provider": "vllm", "input": 0, "output": 0}], input=10, output=5
    )
    assert (free.total, free.status) == (0, "priced")
    half = price("vllm", "llama", rules=[{"model": "*", "input": 0}], input=10, output=5)
    assert (half.total, half.status) == (None, "unpriced")


def test_a_rule_for_a_bedrock_name_and_for_a_deployment(price: Price) -> None:
    rules = [{"model": "prod-chat", "input": 7}]
    assert price("azure.ai.openai", "prod-chat", response_model="gpt-4o", rules=rules, input=10**6).total == 7


@pytest.mark.parametrize(
    ("entry", "key", "says"),
    [
        ({"model": "m", "input": -1}, "input", "from 0 on"),
        ({"model": "m", "input": "two"}, "input", "not a number"),
        ({"model": "m", "input": "$2"}, "input", "without sign or unit"),
        ({"model": "m", "input": True}, "input", "not a price"),
        ({"model": "m", "input": None}, "input", "0 for free"),
        ({"model": "m", "input": [1]}, "input", "not a price"),
        ({"model": "m", "input": "nan"}, "input", "from 0 on"),
        ({"model": "m", "input": Decimal("1e999")}, "input", "believable"),
        ({"model": "m", "imput": 1}, "imput", "did you mean 'input'"),
        ({"model": "m", "cache-read": 1}, "cache-read", "did you mean 'cache_read'"),
        ({"model": "m"}, "", "states no price"),
        ({"input": 1}, "", "`model` is missing"),
        ({"model": "", "input": 1}, "model", "not a name"),
        ({"model": 4, "input": 1}, "model", "in quotes"),
        ({"model": "m", "pattern": "m*", "input": 1}, "pattern", "keep one"),
        ({"model": "m", "input": 1, "from": "soon"}, "from", "2026-01-31"),
        ({"model": "m", "input": 1, "from": "2026-02-01", "until": "2026-01-01"}, "", "before"),
        ({"model": "m", "input": 1, "currency": "EUR"}, "currency", "USD"),
        ({"model": "m", "input": 1, "above": 0}, "above", "200000"),
        ({"model": "m", "input": 1, "above": 200_000}, "above", "without `above`"),
        ("gpt-4o", "", "not a mapping"),
    ],
)
def test_a_mistake_says_where_and_what_would_be_right(entry: Any, key: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"prices\.yaml") as caught:
        parse_rules([entry], "prices.yaml")
    assert caught.value.where == "prices.yaml"
    assert caught.value.key == f"prices[0]{'.' if key else ''}{key}"
    assert says in caught.value.reason


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules([{"model": "a", "input": -1}, {"model": "b", "output": "x"}, {"model": "c", "input": 1}], "f")
    assert [problem.key for problem in caught.value.problems] == ["prices[0].input", "prices[1].output"]
    with pytest.raises(ConfigError, match="not a list"):
        parse_rules({"model": "m"}, "f")


def test_lines_of_a_real_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(
        "prices:\n  - model: gpt-4o*\n    input: 2.50\n    from: 2026-01-01\n  - model: x\n    input: bad\n"
    )
    root = read_yaml(file)
    entries = [Entry(e.value, "prices.yaml", e.path, e.lines) for e in root.child("prices").children()]
    (rule,) = parse_rules(entries[:1], "unused")
    assert (rule.title, rule.rates["input"], rule.start) == (
        'file prices.yaml:2 "gpt-4o*"', Decimal("2.50"), dt.date(2026, 1, 1))  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        parse_rules(entries, "unused")
    assert (caught.value.where, caught.value.key) == ("prices.yaml:6", "prices[1].input")


def test_a_file_of_prices_as_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    for text in ("prices:\n- {model: a, input: 1}\n", "- {model: a, input: 1}\n"):
        file.write_text(text)
        (rule,) = parse_rules(read_yaml(file, shown="p.yaml"), "p.yaml")
        assert rule.model == "a"
        assert rule.title.startswith("file p.yaml:")
    file.write_text("prices: 3\n")
    with pytest.raises(ConfigError, match="not a list"):
        parse_rules(read_yaml(file, shown="p.yaml"), "p.yaml")


def test_rules_in_python() -> None:
    rule = PriceRule("m", {"input": Decimal(1)}, where="keyword")
    assert parse_rules([rule], "keyword") == (rule,)
    assert rule.title == 'keyword "m"'


@pytest.mark.parametrize(
    ("text", "wheres", "says"),
    [
        ("- {model: m, input: 1}\n- {model: m, above: " + "9" * 5000 + ", input: 2}\n", ["p.yaml:2"], "whole number"),
        ("- {model: m, input: " + "9" * 5000 + "}\n", ["p.yaml:1"], "no believable price"),
        ("pricse: []\nprices:\n- {model: m, input: 1}\n", ["p.yaml:1"], "not known in a file of prices"),
        ("prices:\n  m: {input: 1}\n", ["p.yaml:1"], "not a list"),
        ("hosts: []\n", ["p.yaml:1"], "not a list"),
        ("- {model: m, input: 1, input: 2}\n- {model: n, input: x}\n", ["p.yaml:1", "p.yaml:2"], "given twice"),
    ],
)
def test_a_mistake_in_a_file_of_prices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wheres: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(text)
    _, problems = examined_prices(load_settings(False, prices_file="p.yaml"))
    assert [problem.where for problem in problems] == wheres
    assert says in problems[0].reason
    assert all(len(str(problem)) < 300 for problem in problems)


def test_what_is_right_holds_beside_mistakes_that_are_to_be_ignored(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("- {model: a, input: 1}\n- {model: b, input: x}\n")
    settings = load_settings(False, prices_file=str(file), on_config_error="ignore")
    assert [rule.model for rule in make_pricer(settings).catalog.overrides] == ["a"]
    gone = load_settings(False, prices_file=str(tmp_path / "none.yaml"), on_config_error="ignore")
    assert make_pricer(gone).catalog.overrides == ()
    with pytest.raises(ConfigError):
        make_pricer(load_settings(False, prices_file=str(file)))
