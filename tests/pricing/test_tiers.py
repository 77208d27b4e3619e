"""Tiers, speeds and places change the price; so does the date of the call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from random import Random

import pytest

from otel_tokens.pricing.catalog import Catalog
from otel_tokens.values import Component, Cost, Usage

Price = Callable[..., Cost]


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("provider", "model", "given", "total"),
    [
        # listed rates
        ("openai", "gpt-5", {"tier": "flex"}, "5.625"),
        ("openai", "gpt-5", {"tier": "batch"}, "5.625"),
        ("openai", "gpt-5", {"tier": "priority"}, "22.5"),
        ("openai", "gpt-5", {"tier": "fast"}, "22.5"),
        ("anthropic", "claude-sonnet-4-6", {"tier": "batch"}, "9"),
        ("anthropic", "claude-opus-4-8", {"speed": "fast"}, "60"),
        ("mistral_ai", "mistral-large-2512", {"tier": "batch"}, "1"),
        ("gcp.gemini", "gemini-2.5-flash", {"tier": "batch"}, "1.4"),
        # the normal price by all its names
        ("openai", "gpt-5", {"tier": "default"}, "11.25"),
        ("openai", "gpt-5", {"tier": "auto"}, "11.25"),
        ("anthropic", "claude-sonnet-4-6", {"tier": "standard", "speed": "standard", "geo": "global"}, "18"),
        ("anthropic", "claude-sonnet-4-6", {"geo": "not_available"}, "18"),
        ("groq", "llama-3.3-70b-versatile", {"tier": "on_demand"}, "1.38"),
        ("gcp.vertex_ai", "gemini-2.5-flash", {"tier": "ON_DEMAND"}, "2.8"),
        # published factors, where no rates are listed
        ("openai", "gpt-5.3-codex", {"tier": "batch"}, "7.875"),
        ("azure.ai.openai", "gpt-4o", {"tier": "batch"}, "6.25"),
        ("anthropic", "claude-opus-4-1", {"tier": "batch"}, "45"),
        ("anthropic", "claude-opus-4-6", {"speed": "fast"}, "180"),
        ("anthropic", "claude-opus-4-6", {"geo": "us"}, "33"),
        ("anthropic", "claude-opus-4-8", {"geo": "us", "tier": "batch"}, "16.5"),
        ("anthropic", "claude-opus-4-8", {"geo": "us", "speed": "fast"}, "66"),
        ("gcp.gemini", "gemini-2.5-flash", {"tier": "SERVICE_TIER_FLEX"}, "1.4"),
        ("aws.bedrock", "amazon.nova-pro-v1:0", {"tier": "flex"}, "2"),
        ("aws.bedrock", "amazon.nova-pro-v1:0", {"tier": "priority"}, "7"),
        ("groq", "llama-3.3-70b-versatile", {"tier": "flex"}, "1.38"),
        ("openai", "ft:gpt-4.1-mini:acme::id", {"tier": "batch"}, "2"),
        ("openai", "gpt-6.1-sol", {"tier": "ultrafast"}, "72"),
        ("gcp.gemini", "gemini-2.5-flash", {"tier": "priority"}, "5.04"),
    ],
)
def test_a_tier_s_price(price: Price, provider: str, model: str, given: dict[str, str], total: str) -> None:
    cost = price(provider, model, input=1000, output=1000, **given)  # below every long-context threshold
    assert cost.total is not None
    assert (cost.total * 1000, cost.status) == (Decimal(total), "priced")


@pytest.mark.parametrize(
    ("provider", "model", "given"),
    [
        ("openai", "gpt-5.3", {"tier": "priority"}),
        ("openai", "gpt-5", {"tier": "scale"}),
        ("openai", "gpt-5", {"tier": "ultrafast"}),
        ("anthropic", "claude-sonnet-4-6", {"tier": "priority"}),
        ("anthropic", "claude-sonnet-4-6", {"speed": "fast"}),
        ("anthropic", "claude-sonnet-4-5", {"geo": "us"}),
        ("anthropic", "claude-sonnet-4-6", {"geo": "mars"}),
        ("gcp.vertex_ai", "gemini-2.5-flash", {"tier": "some_new_traffic"}),
        ("cohere", "command-a", {"tier": "batch"}),
    ],
)
def test_an_unknown_tier_is_the_standard_price_marked(
    price: Price, provider: str, model: str, given: dict[str, str]
) -> None:
    cost, standard = (
        price(provider, model, input=1000, output=10, **given),
        price(provider, model, input=1000, output=10),
    )
    assert (cost.total, cost.status, standard.status) == (standard.total, "estimated", "priced")
    assert "no known price" in cost.rule


def test_the_tier_s_rates_have_their_own_long_context(price: Price) -> None:
    flex = price("openai", "gpt-5.4", input=300_000, output=1000, tier="flex")
    assert flex.total == Decimal("0.75") + Decimal("0.01125")
    priority = price("openai", "gpt-5.4", input=300_000, output=1000, tier="priority")
    assert priority.total == Decimal("1.5") + Decimal("0.03")


@pytest.mark.parametrize(
    ("model", "address", "total"),
    [
        ("claude-opus-4-5@20251101", "us-east5-aiplatform.googleapis.com", "5.5"),
        ("claude-opus-4-5@20251101", "aiplatform.eu.rep.googleapis.com", "5.5"),
        ("claude-opus-4-5@20251101", "aiplatform.googleapis.com", "5"),
        ("claude-opus-4-5@20251101", "127.0.0.1", "5"),
        ("claude-opus-5", "europe-west1-aiplatform.googleapis.com", "5.5"),
        ("claude-opus-4-1@20250805", "us-east5-aiplatform.googleapis.com", "15"),
        ("gemini-2.5-pro", "us-east5-aiplatform.googleapis.com", "1.25"),
    ],
)
def test_a_regional_endpoint_of_vertex_takes_a_premium_for_claude(
    price: Price, model: str, address: str, total: str
) -> None:
    cost = price("gcp.vertex_ai", model, input=1000, address=address)
    assert (cost.total, cost.status) == (Decimal(total) / 1000, "priced")


def test_components_share_the_call_s_conditions(price: Price) -> None:
    beside = (Component("compaction", None, Usage(input=1000, origin="provider")),)
    cost = price("anthropic", "claude-opus-4-6", input=1000, geo="us", components=beside)
    assert cost.total == Decimal("0.011")


@pytest.mark.parametrize(
    ("moment", "total"), [("2025-06-09T23:59:59", "0.05"), ("2025-06-10T00:00:00", "0.01"), ("2026-11-20", "0.01")]
)
def test_the_price_of_the_day_of_the_call(price: Price, moment: str, total: str) -> None:
    """One pricer, asked in any order: o3 became cheaper on 10 June 2025, at midnight UTC."""
    assert price("openai", "o3", input=1000, output=1000, at=at(moment)).total == Decimal(total)


def test_a_price_that_will_change_is_known_now(price: Price) -> None:
    before = price("gcp.gemini", "gemini-4-argon", input=10**6, at=at("2026-11-30T23:59:59"))
    after = price("gcp.gemini", "gemini-4-argon", input=10**6, at=at("2026-12-01T00:00:00"))
    assert (before.total, after.total) == (2, 4)


@pytest.mark.parametrize(
    ("moment", "rate"),
    [
        ("2025-03-01T00:29:59", "0.135"),  # deepseek-chat's discount by the hour
        ("2025-03-01T00:30:00", "0.27"),
        ("2025-03-01T16:29:59", "0.27"),
        ("2025-03-01T16:30:00", "0.135"),
        ("2025-09-28T12:00:00", "0.27"),
        ("2025-09-29T00:00:00", "0.28"),  # one price from then on
        ("2026-11-20T20:00:00", "0.28"),
    ],
)
def test_prices_by_the_hour_that_ended(price: Price, moment: str, rate: str) -> None:
    assert price("deepseek", "deepseek-chat", input=10**6, at=at(moment)).total == Decimal(rate)


@pytest.mark.parametrize(
    ("moment", "rate"),
    [
        ("2026-07-01T02:00:00", "0.14"),  # before there were peak hours
        ("2026-08-16T23:59:59", "0.14"),
        ("2026-08-17T00:59:59", "0.22"),
        ("2026-11-20T00:59:59", "0.15"),  # a Friday
        ("2026-11-20T01:00:00", "0.3"),
        ("2026-11-20T04:00:00", "0.15"),
        ("2026-11-20T09:59:59", "0.3"),
        ("2026-11-20T10:00:00", "0.15"),
        ("2026-11-21T02:00:00", "0.15"),  # Saturday and Sunday have none
        ("2026-11-22T09:59:59", "0.15"),
        ("2026-11-23T02:00:00", "0.3"),
    ],
)
def test_peak_hours_of_working_days(price: Price, moment: str, rate: str) -> None:
    assert price("deepseek", "deepseek-v4-flash", input=10**6, at=at(moment)).total == Decimal(rate)


def test_a_price_by_the_hour_in_any_order(catalog: Catalog, price: Price) -> None:
    """What is cached for one hour is not taken for another."""
    moments = [at("2026-11-19T00:00:00") + minute * 60 for minute in range(0, 6 * 1440, 30)]
    Random(1).shuffle(moments)
    for moment in moments:
        fresh = Catalog().card("deepseek", "deepseek-flash", at=moment)
        assert fresh is not None
        assert price("deepseek", "deepseek-flash", input=1, at=moment).total == fresh.rates.input


def test_a_tier_listed_later_is_an_estimate_before(price: Price) -> None:
    """The catalogue lists priority rates from October 2026 on, and the standard price was the same before."""
    before = price("openai", "gpt-5", input=10**6, tier="priority", at=at("2026-06-01"))
    assert (before.total, before.status) == (Decimal("2.5"), "estimated")
    assert "listed only from" in before.rule
    after = price("openai", "gpt-5", input=10**6, tier="priority", at=at("2026-11-01"))
    assert (after.total, after.status) == (Decimal("2.5"), "priced")


def test_a_factor_does_not_hold_before_it_was_offered(price: Price) -> None:
    assert price("openai", "gpt-4-0314", input=10**6, tier="flex", at=at("2024-01-01")).status == "estimated"


def test_a_card_says_how_long_it_holds(catalog: Catalog) -> None:
    card = catalog.card("deepseek", "deepseek-flash", at=at("2026-11-20T12:00:00"))
    assert card is not None
    assert (card.valid_from, card.valid_until) == (at("2026-11-20T10:00:00"), at("2026-11-21T00:00:00"))


@pytest.mark.parametrize(("tier", "total"), [("priority", "22.5"), ("flex", "5.625"), ("odd", "11.25")])
def test_a_tier_at_another_cloud_is_likeliest_what_its_maker_takes(price: Price, tier: str, total: str) -> None:
    cost = price("azure.ai.openai", "gpt-5", input=1000, output=1000, tier=tier)
    assert (cost.total, cost.status) == (Decimal(total) / 1000, "estimated")


def test_gemini_s_flex_leaves_cached_tokens_at_the_standard_rate_as_its_batch_does(price: Price) -> None:
    usage = {"input": 1000, "cache_read": 1000}
    flex, batch, standard = (
        price("gcp.gemini", "gemini-2.5-flash", tier=tier, **usage) for tier in ("flex", "batch", None)
    )
    assert flex.total == batch.total == standard.total
    assert {flex.status, batch.status} == {"priced"}


@pytest.mark.parametrize(
    ("model", "day", "factor"),
    [
        ("gpt-6-sol", "2026-11-20", "1.1"),
        ("gpt-5.4-pro", "2026-11-20", "1.1"),
        ("gpt-5.4", "2026-03-05", "1.1"),
        ("gpt-image-2", "2026-11-20", "1.1"),
        ("gpt-5.3", "2026-11-20", "1"),
        ("gpt-4.1-mini", "2026-11-20", "1"),
        ("o3", "2026-11-20", "1"),
        ("text-embedding-3-small", "2026-11-20", "1"),
    ],
)
@pytest.mark.parametrize("region", ["us", "eu", "au", "in", "jp", "ae", "gb", "kr"])
def test_openai_s_regional_hosts(price: Price, model: str, day: str, factor: str, region: str) -> None:
    at = datetime.fromisoformat(day).replace(hour=12, tzinfo=UTC).timestamp()
    here = price("openai", model, input=1000, output=0, at=at, address=f"{region}.api.openai.com")
    there = price("openai", model, input=1000, output=0, at=at, address="api.openai.com")
    assert there.total
    assert (here.total, here.status) == (there.total * Decimal(factor), "priced")


def test_a_region_and_a_tier_multiply(price: Price) -> None:
    # flex: 1,000 x 1 per million, times 1.1
    cost = price("openai", "gpt-6-sol", input=1000, tier="flex", address="eu.api.openai.com")
    assert (cost.total, cost.status) == (Decimal("0.0011"), "priced")


def test_who_looks_like_a_regional_host_is_none(price: Price) -> None:
    for address in ("eu.api.openai.com.evil.example", "europe.api.openai.com", "api.openai.com"):
        assert price("openai", "gpt-6-sol", input=1000, address=address).total == Decimal("0.002")


def test_provisioned_throughput_costs_nothing_by_token(price: Price) -> None:
    cost = price("gcp.vertex_ai", "gemini-2.5-flash", input=1000, output=10, tier="PROVISIONED_THROUGHPUT")
    assert (cost.total, cost.status) == (0, "priced")
    assert "paid for in advance" in cost.rule
    # a price of one's own for the tier wins
    rule = {"model": "gemini-2.5-flash", "tier": "provisioned_throughput", "input": 1, "output": 1}
    own = price("gcp.vertex_ai", "gemini-2.5-flash", input=1000, tier="PROVISIONED_THROUGHPUT", rules=[rule])
    assert own.total == Decimal("0.001")
