"""Why a model costs what it costs."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.explain import EACH, PER_MILLION, PricedRate, explain
from otel_tokens.pricing.rules import parse_rules

NOW = datetime(2026, 11, 20, tzinfo=UTC).timestamp()


def test_a_listed_model() -> None:
    found = explain("claude-sonnet-4-5-20250929", at=NOW)
    assert (found.priced, found.provider) == (True, "anthropic")
    assert found.rule == "genai-prices anthropic/claude-sonnet-4-5"
    assert "anthropic" in found.source or "claude" in found.source
    assert found.version == Catalog().version
    assert PricedRate("input", Decimal(3)) in found.rates
    assert PricedRate("input", Decimal(6), PER_MILLION, 200_000) in found.rates
    assert PricedRate("cache_write_1h", Decimal(6)) in found.rates
    assert PricedRate("web_search", Decimal("0.01"), EACH) in found.rates
    assert "cache_write_5m" not in [rate.name for rate in found.rates]  # the plain cache write is that


def test_a_tier_and_a_provider() -> None:
    found = explain("gpt-5", provider="openai", tier="flex", at=NOW)
    assert found.rates[0] == PricedRate("input", Decimal("0.625"))
    assert found.rule == "genai-prices openai/gpt-5 service_tier=flex"
    assert explain("gpt-4o", provider="azure", tier="priority", at=NOW).estimated


def test_a_shipped_model_and_a_rule_of_the_user_s() -> None:
    shipped = explain("claude-mythos-5", at=NOW)
    assert shipped.source.startswith("https://")
    catalog = Catalog(parse_rules([{"model": "gpt-4o", "input": 1, "output": 2, "note": "contract 7"}], "p.yaml:3"))
    ruled = explain("gpt-4o", catalog=catalog, at=NOW)
    assert (ruled.rule, ruled.source) == ('file p.yaml:3 "gpt-4o"', 'file p.yaml:3 "gpt-4o"')
    assert ruled.notes[0] == "contract 7"


def test_an_unknown_model_has_a_reason_and_near_misses() -> None:
    found = explain("gpt-4oo", provider="openai", at=NOW)
    assert not found.priced
    assert found.reason == "no price for 'gpt-4oo' of openai"
    assert "gpt-4o" in found.near
    assert found.rates == ()


def test_a_model_that_another_provider_prices() -> None:
    found = explain("gpt-4o", provider="vllm", at=NOW)
    assert not found.priced
    assert "no price list of this provider" in found.reason
    assert {"openai", "azure.ai.openai"} <= set(found.elsewhere)


def test_a_rule_of_the_user_s_for_another_provider() -> None:
    catalog = Catalog(parse_rules([{"model": "acme-1", "provider": "opnai", "input": 1, "output": 2}], "p.yaml"))
    found = explain("acme-1", provider="openai", catalog=catalog, at=NOW)
    assert (found.priced, found.near, found.elsewhere) == (False, (), ("opnai",))


def test_a_price_that_will_change_says_when() -> None:
    peak = datetime(2026, 11, 20, 7, tzinfo=UTC)
    found = explain("deepseek-v4-flash", at=peak.timestamp())
    assert found.until == peak.replace(hour=10).timestamp()
    assert explain("o3", at=NOW).until is None


def test_now_is_the_default() -> None:
    assert explain("o3").rates[0] == PricedRate("input", Decimal(2))
