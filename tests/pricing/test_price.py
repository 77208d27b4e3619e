"""The arithmetic: exact, complete, honest about what it does not know."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import NO_USAGE, Pricer
from otel_tokens.values import COST_PARTS, TOKEN_FIELDS, Component, Cost, Usage

NOW = 1_795_176_000.0
MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-6-sol"),
    ("openai", "gpt-realtime"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-5-5"),
    ("gcp.gemini", "gemini-2.5-flash"),
    ("perplexity", "sonar-deep-research"),
    ("deepseek", "deepseek-chat"),
]
Price = Callable[..., Cost]


def parts(cost: Cost) -> list[Decimal]:
    return [getattr(cost, name) for name in COST_PARTS]


# ---- by hand -------------------------------------------------------------------------------------------------


def test_openai_cached_and_reasoning_tokens(price: Price) -> None:
    cost = price("openai", "gpt-4o", input=1000, cache_read=800, output=50, reasoning=20)
    assert parts(cost) == [Decimal("0.0005"), Decimal("0.001"), 0, Decimal("0.0005"), 0]
    assert (cost.total, cost.status, cost.source) == (Decimal("0.002"), "priced", "local")
    assert cost.rule == "genai-prices openai/gpt-4o"
    assert cost.version.startswith("genai-prices 0.")


def test_anthropic_cache_writes_by_lifetime(price: Price) -> None:
    usage = {"input": 1100, "cache_read": 800, "cache_write": 250, "cache_write_5m": 50, "cache_write_1h": 150}
    cost = price("anthropic", "claude-opus-4-1", output=50, **usage)
    # 50 left over for 5 minutes: 100 at 18.75, 150 at 30
    assert parts(cost) == [Decimal(s) for s in ("0.00075", "0.0012", "0.006375", "0.00375", "0")]
    assert cost.status == "priced"


def test_a_one_hour_write_of_a_claude_costs_twice_the_input_where_a_list_omits_it(price: Price) -> None:
    usage = {"input": 10**6, "cache_write": 10**6, "cache_write_1h": 10**6}
    cost = price("gcp.vertex_ai", "claude-opus-4-1", **usage)
    assert (cost.cache_write, cost.status) == (30, "priced")


def test_openai_cache_writes_by_lifetime(price: Price) -> None:
    half_hour = price("openai", "gpt-6-sol", input=1000, cache_write=1000, cache_write_30m=1000)
    assert (half_hour.cache_write, half_hour.status) == (Decimal("0.0025"), "priced")
    half_a_day = price("openai", "gpt-6-sol", input=1000, cache_write=1000, cache_write_12h=1000)
    assert (half_a_day.cache_write, half_a_day.status) == (Decimal("0.005"), "priced")
    usage = {"input": 300_000, "cache_write": 300_000, "cache_write_12h": 100_000, "cache_write_30m": 200_000}
    assert price("openai", "gpt-6-sol", tier="flex", **usage).cache_write == Decimal("1.0")  # 5 and 2.5 per million


def test_a_lifetime_that_nobody_prices_is_an_estimate(price: Price) -> None:
    long = price("azure.ai.openai", "gpt-6-sol", input=1000, cache_write=1000, cache_write_12h=1000)
    assert (long.cache_write, long.status) == (Decimal("0.0025"), "estimated")
    assert "lifetime" in long.rule


def test_perplexity_s_fee_is_an_estimate_unless_it_is_reported(price: Price) -> None:
    assert price("perplexity", "sonar", input=1000).status == "estimated"
    told = price("perplexity", "sonar", input=1000, reported_cost=Decimal("0.006"))
    assert (told.total, told.status, told.source) == (Decimal("0.006"), "priced", "provider")


def test_audio_has_its_own_rates(price: Price) -> None:
    cost = price("openai", "gpt-4o-audio-preview", input=1000, input_audio=600, output=100, output_audio=90)
    assert cost.input == Decimal("0.025")  # 400 at 2.5, 600 at 40
    assert cost.output == Decimal("0.0073")  # 10 at 10, 90 at 80


def test_what_we_know_better_holds_where_another_cloud_sells_the_model(price: Price) -> None:
    usage = {"input": 1000, "input_audio": 600, "output": 100, "output_audio": 90}
    azure = price("azure.ai.openai", "my-deployment", response_model="gpt-4o-audio-preview-2024-12-17", **usage)
    assert (azure.total, azure.status) == (price("openai", "gpt-4o-audio-preview", **usage).total, "priced")


def test_cached_audio_is_part_of_the_cached_and_of_the_audio_tokens(price: Price) -> None:
    usage = {"input": 1000, "cache_read": 500, "input_audio": 400, "cache_read_audio": 300}
    cost = price("openai", "gpt-4o-realtime-preview", output=1, **usage)
    assert cost.input == Decimal("0.006")  # 100 audio at 40, 400 text at 5
    assert cost.cache_read == Decimal("0.00125")  # 300 audio and 200 text at 2.5


def test_long_context_reprices_every_token_by_the_whole_input(price: Price) -> None:
    at_the_mark = price("anthropic", "claude-sonnet-4-5", input=200_000, cache_read=150_000, output=10)
    above = price("anthropic", "claude-sonnet-4-5", input=200_001, cache_read=150_000, output=10)
    assert parts(at_the_mark)[:4] == [Decimal(s) for s in ("0.15", "0.045", "0", "0.00015")]
    assert parts(above)[:4] == [Decimal(s) for s in ("0.300006", "0.09", "0", "0.000225")]


def test_web_searches_are_priced_per_search(price: Price) -> None:
    cost = price("anthropic", "claude-opus-4-6", input=100, output=10, web_searches=3)
    assert cost.other == Decimal("0.03")
    unknown = price("groq", "llama-3.3-70b-versatile", input=100, output=10, web_searches=3)
    assert (unknown.other, unknown.status) == (0, "estimated")
    assert "web searches" in unknown.rule


def test_a_fee_per_request(price: Price) -> None:
    assert price("perplexity", "sonar-pro", input=1, output=1).other == Decimal("0.014")


def test_embeddings_have_no_output_price_and_need_none(price: Price) -> None:
    assert price("openai", "text-embedding-3-small", input=10**6).total == Decimal("0.02")
    odd = price("openai", "text-embedding-3-small", input=10, output=5)
    assert odd.total is None
    assert "output" in odd.rule


# ---- what is not known ---------------------------------------------------------------------------------------


def test_an_unknown_model_is_unpriced_never_free(price: Price) -> None:
    cost = price("openai", "gpt-9-turbo", input=10, output=10)
    assert (cost.status, cost.total, parts(cost)) == ("unpriced", None, [None] * 5)
    assert cost.rule == "no price for 'gpt-9-turbo' of openai"


def test_a_call_without_usage_is_not_a_pricing_miss(price: Price) -> None:
    cost = price("openai", "gpt-4o", usage=Usage())
    assert (cost.status, cost.total, cost.rule) == ("unpriced", None, NO_USAGE)


def test_usage_made_by_hand_is_priced(price: Price) -> None:
    cost = price("openai", "gpt-4o", usage=Usage(input=1000))
    assert (cost.total, cost.status) == (Decimal("0.0025"), "priced")


@pytest.mark.parametrize("origin", ["partial", "estimated"])
def test_estimated_tokens_make_an_estimate(price: Price, origin: str) -> None:
    cost = price("openai", "gpt-4o", input=1000, output=1, origin=origin)
    assert cost.status == "estimated"
    assert f"tokens {origin}" in cost.rule


@pytest.mark.parametrize(
    ("flag", "status"),
    [
        ("missing:output", "estimated"),
        ("absurd:input", "estimated"),
        ("unaccounted:total", "estimated"),
        ("exceeds:cache_read", "priced"),
        ("negative:cache_read", "priced"),
    ],
)
def test_a_report_with_a_gap_makes_an_estimate(price: Price, flag: str, status: str) -> None:
    assert price("openai", "gpt-4o", input=10, output=1, flags=(flag,)).status == status


def test_a_stated_zero_is_a_price(price: Price) -> None:
    cost = price("zai", "glm-4.7-flash", input=1000, output=10)
    assert (cost.total, cost.status) == (0, "priced")


# ---- the provider's own number -------------------------------------------------------------------------------


def test_the_provider_s_cost_wins_and_the_difference_is_other(price: Price) -> None:
    cost = price("openai", "gpt-4o", input=1000, output=100, reported_cost=Decimal("0.005"))
    assert (cost.total, cost.source, cost.status) == (Decimal("0.005"), "provider", "priced")
    assert (cost.provider_total, cost.local_total) == (Decimal("0.005"), Decimal("0.0035"))
    assert parts(cost) == [Decimal("0.0025"), 0, 0, Decimal("0.001"), Decimal("0.0015")]


def test_a_provider_s_cost_below_ours_is_not_split(price: Price) -> None:
    cost = price("openai", "gpt-4o", input=1000, output=100, reported_cost=Decimal("0.003"))
    assert parts(cost) == [0, 0, 0, 0, Decimal("0.003")]
    assert cost.local_total == Decimal("0.0035")


def test_the_same_number_keeps_our_parts(price: Price) -> None:
    cost = price("openai", "gpt-4o", input=1000, output=100, reported_cost=Decimal("0.0035"))
    assert parts(cost) == [Decimal("0.0025"), 0, 0, Decimal("0.001"), 0]


@pytest.mark.parametrize("usage", [Usage(reported_cost=Decimal("0.01")), Usage(1, 1, origin="provider",
                                   reported_cost=Decimal("0.01"))])  # fmt: skip
def test_a_reported_cost_prices_even_what_we_cannot(price: Price, usage: Usage) -> None:
    cost = price("openrouter", "some/new-model", usage=usage)
    assert (cost.status, cost.source, cost.total) == ("priced", "provider", Decimal("0.01"))
    assert (cost.local_total, cost.other) == (None, Decimal("0.01"))


def test_a_reported_zero_is_believed_where_it_can_be_right(price: Price) -> None:
    zero = Decimal(0)
    for model in ("x/y:free", "openrouter/free"):
        cost = price("openrouter", model, input=1, output=1, reported_cost=zero)
        assert (cost.total, cost.status, cost.source) == (0, "priced", "provider")
    cached = price("openrouter", "openai/gpt-6-sol", reported_cost=zero)
    assert (cached.total, cached.status, cached.source) == (0, "priced", "provider")
    assert price("zai", "glm-4.7-flash", input=1, output=1, reported_cost=zero).source == "provider"


def test_a_reported_zero_beside_tokens_of_a_paid_model_is_not(price: Price) -> None:
    # 1,000 x 2 + 100 x 10 USD per million
    cost = price("openrouter", "openai/gpt-6-sol", input=1000, output=100, reported_cost=Decimal(0))
    assert (cost.total, cost.status, cost.source) == (Decimal("0.003"), "estimated", "local")
    assert cost.provider_total == 0
    assert "reports 0 USD beside tokens" in cost.rule
    assert price("openrouter", "x/y", input=1, output=1, reported_cost=Decimal(0)).status == "unpriced"


@pytest.mark.parametrize(
    ("flag", "day", "billed"),
    [
        ("refused", "2026-11-20", False),
        ("refused:cyber", "2026-11-20", False),
        ("refused:bio", "2026-11-20", True),
        ("refused:bio", "2026-09-23", False),  # before these were billed again
        ("refused", "2026-06-08", True),  # before any was free
    ],
)
def test_refusals_by_day_and_category(price: Price, flag: str, day: str, *, billed: bool) -> None:
    at = datetime.fromisoformat(day).replace(hour=12, tzinfo=UTC).timestamp()
    usage = Usage(input=500, output=1, origin="provider", flags=(flag,))
    for provider, model in (("anthropic", "claude-sonnet-4-6"), ("aws.bedrock", "anthropic.claude-sonnet-4-6")):
        cost = price(provider, model, usage=usage, at=at)
        assert cost.status == "priced"
        assert (cost.total != 0) is billed
    # other makers behind the same API state no such rule
    assert price("deepseek", "deepseek-chat", usage=usage, at=at).total != 0


def test_a_negative_cost_is_no_cost(price: Price) -> None:
    assert price("openrouter", "x/y", input=1, output=1, reported_cost=Decimal(-1)).status == "unpriced"


# ---- components ----------------------------------------------------------------------------------------------


def component(kind: str, model: str | None, **tokens: int) -> Component:
    return Component(kind, model, Usage(**tokens, origin="provider"))


def test_components_are_priced_by_their_own_model(price: Price) -> None:
    beside = (
        component("compaction", None, input=180_000, output=3_500),
        component("advisor_message", "claude-haiku-4-5", input=1000, output=100, cache_read=500),
    )
    cost = price("anthropic", "claude-opus-4-6", input=1100, output=50, components=beside)
    assert cost.input == Decimal("0.9060") and cost.output == Decimal("0.08925")  # noqa: PT018
    assert cost.cache_read == Decimal("0.00005")
    assert cost.rule == "genai-prices anthropic/claude-opus-4-6 + genai-prices anthropic/claude-haiku-4-5"


def test_half_a_price_is_none(price: Price) -> None:
    cost = price("openai", "gpt-6-sol", input=10, output=1, components=(component("image_gen", "unnamed", input=1),))
    assert (cost.status, cost.total) == ("unpriced", None)
    assert cost.rule.startswith("image_gen: no price")


def test_a_component_has_its_own_context_length(price: Price) -> None:
    beside = (component("compaction", None, input=300_000),)
    cost = price("anthropic", "claude-sonnet-4-5", input=1000, components=beside)
    assert cost.input == Decimal("0.003") + Decimal("1.8")


# ---- invariants ----------------------------------------------------------------------------------------------

TOKENS = st.integers(0, 10**12) | st.integers(0, 1000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    given = draw(st.dictionaries(st.sampled_from([*TOKEN_FIELDS]), TOKENS))
    return Usage(**given, origin="provider")


@given(usages(), st.sampled_from(MODELS), st.sampled_from([None, "batch", "priority"]))
@settings(deadline=None, max_examples=300)
def test_parts_add_up_exactly_and_are_never_negative(usage: Usage, model: tuple[str, str], tier: str | None) -> None:
    """For any numbers, consistent or not."""
    cost = Pricer(Catalog())(*model, usage, tier=tier, at=NOW)
    assert cost.total is not None
    with decimal.localcontext(prec=100):
        assert sum(parts(cost)) == cost.total
    assert min(parts(cost)) >= 0


@given(usages(), st.sampled_from(["input", "output", "cache_write_1h", "web_searches"]), st.integers(1, 10**6))
@settings(deadline=None, max_examples=200)
def test_more_tokens_never_cost_less(usage: Usage, name: str, more: int) -> None:
    price = Pricer(Catalog())
    for model in MODELS:
        fewer = price(*model, usage, at=NOW).total
        grown = price(*model, Usage(**{f: getattr(usage, f) + (more if f == name else 0) for f in TOKEN_FIELDS},
                                    origin="provider"), at=NOW).total  # fmt: skip
        assert fewer is not None and grown is not None and grown >= fewer  # noqa: PT018


@given(st.decimals("0.000000001", 1000, allow_nan=False), usages())
@settings(deadline=None, max_examples=100)
def test_a_reported_cost_is_always_the_total(reported: Decimal, usage: Usage) -> None:
    with_cost = Usage(**{f: getattr(usage, f) for f in TOKEN_FIELDS}, origin="provider", reported_cost=reported)
    cost = Pricer(Catalog())("openai", "gpt-4o", with_cost, at=NOW)
    assert cost.total == reported
    with decimal.localcontext(prec=100):
        assert sum(parts(cost)) == reported
    assert min(parts(cost)) >= 0


def test_the_application_s_decimal_context_does_not_matter(price: Price) -> None:
    with decimal.localcontext(prec=2) as context:
        context.traps[decimal.Inexact] = True
        cost = price("openai", "gpt-4o-mini", input=123_456_789, output=987_654)
    assert cost.total == Decimal("18.51851835") + Decimal("0.5925924")


@pytest.mark.parametrize(("model", "tier", "speed", "geo"), [
    ("claude-opus-4-6", "batch", "fast", "us"), ("claude-opus-4-6", "priority", None, "us"),
    ("gpt-5.4", "flex", None, "eu"),
])  # fmt: skip
def test_nor_when_rates_are_compiled_in_it(model: str, tier: str | None, speed: str | None, geo: str | None) -> None:
    usage = Usage(input=1234567, output=7654, cache_read=4321, origin="provider")
    maker = "openai" if model.startswith("gpt") else "anthropic"
    usual = Pricer(Catalog())(maker, model, usage, tier=tier, speed=speed, geo=geo, at=NOW)
    with decimal.localcontext(decimal.Context(prec=1, traps=[decimal.Inexact, decimal.Rounded])):
        assert Pricer(Catalog())(maker, model, usage, tier=tier, speed=speed, geo=geo, at=NOW) == usual
    assert usual.total


@pytest.mark.parametrize("at", [nan, inf, -inf, -1.0, 1e20])
def test_an_odd_time_is_no_fault(price: Price, at: float) -> None:
    assert price("openai", "o3", input=10, at=at).status == "priced"
