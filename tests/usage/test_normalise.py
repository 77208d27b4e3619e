"""Counts to usage: each provider's rule, the invariants for any input, and odd payloads."""

from __future__ import annotations

import decimal
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tokens.providers.registry import endpoint_named, route
from otel_tokens.usage.normalise import ABSURD, endpoint_of, normalise_block
from otel_tokens.values import TOKEN_FIELDS, Usage


def read(endpoint: str, raw: Any) -> Usage:
    found = endpoint_named(endpoint)
    assert found is not None
    return normalise_block(raw, found)


CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (
        "openai with cache and reasoning",
        "openai.chat",
        {
            "prompt_tokens": 2600,
            "completion_tokens": 50,
            "total_tokens": 2650,
            "prompt_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 400},
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
        {"input": 2600, "output": 50, "cache_read": 2000, "cache_write": 400, "reasoning": 20, "total": 2650},
    ),
    (
        "responses with ttl split",
        "openai.responses",
        {
            "input_tokens": 900,
            "output_tokens": 10,
            "total_tokens": 910,
            "input_tokens_details": {
                "cached_tokens": 100,
                "cache_write_tokens": 300,
                "cache_write_tokens_details": {"ttl_30m_tokens": 100, "ttl_12h_tokens": 200},
            },
        },
        {"input": 900, "cache_read": 100, "cache_write": 300, "cache_write_30m": 100, "cache_write_12h": 200},
    ),
    (
        "anthropic excludes the cache, we include it",
        "anthropic.messages",
        {
            "input_tokens": 100,
            "output_tokens": 50,
            "cache_read_input_tokens": 800,
            "cache_creation_input_tokens": 200,
            "cache_creation": {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 150},
            "output_tokens_details": {"thinking_tokens": 30},
            "server_tool_use": {"web_search_requests": 2},
        },
        {
            "input": 1100,
            "output": 50,
            "cache_read": 800,
            "cache_write": 200,
            "cache_write_5m": 50,
            "cache_write_1h": 150,
            "reasoning": 30,
            "web_searches": 2,
        },
    ),
    (
        "deepseek",
        "openai.chat",
        {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "total_tokens": 105,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        },
        {"input": 100, "cache_read": 64, "output": 5},
    ),
    (
        "moonshot",
        "openai.chat",
        {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "cached_tokens": 70},
        {"input": 100, "cache_read": 70},
    ),
    (
        "xai counts reasoning beside completion tokens",
        "openai.chat",
        {
            "prompt_tokens": 30,
            "completion_tokens": 10,
            "total_tokens": 340,
            "completion_tokens_details": {"reasoning_tokens": 300},
            "cost_in_usd_ticks": 12345678,
        },
        {"input": 30, "output": 310, "reasoning": 300, "reported_cost": Decimal("0.0012345678")},
    ),
    (
        "openrouter states its cost",
        "openai.chat",
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cost": 0.00014},
        {"reported_cost": Decimal("0.00014")},
    ),
    (
        "perplexity states a block of costs",
        "openai.chat",
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "num_search_queries": 3,
            "cost": {"input_tokens_cost": 0.1, "total_cost": 0.5},
        },
        {"reported_cost": Decimal("0.5"), "web_searches": 3},
    ),
    (
        "embeddings",
        "openai.embeddings",
        {"prompt_tokens": 8, "total_tokens": 8},
        {"input": 8, "output": 0, "total": 8},
    ),
]


@pytest.mark.parametrize(("endpoint", "raw", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_each_providers_rule(endpoint: str, raw: dict[str, Any], expected: dict[str, Any]) -> None:
    usage = read(endpoint, raw)
    assert usage.origin == "provider"
    assert usage.flags == ()
    assert {name: getattr(usage, name) for name in expected} == expected


def test_an_object_reads_like_a_dict() -> None:
    raw = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    block = SimpleNamespace(**{**raw, "prompt_tokens_details": SimpleNamespace(cached_tokens=4)})
    assert read("openai.chat", block) == read("openai.chat", raw)


def test_compaction_is_a_component_and_declined_hops_are_not() -> None:
    usage = read(
        "anthropic.messages",
        {
            "input_tokens": 1100,
            "output_tokens": 50,
            "iterations": [
                {"type": "compaction", "input_tokens": 180000, "output_tokens": 3500},
                {"type": "message", "model": "claude-opus-4-1", "input_tokens": 7, "output_tokens": 1},
                {"type": "fallback_message", "model": "claude-sonnet-4-5", "input_tokens": 1100, "output_tokens": 50},
                {"type": "advisor_message", "model": "claude-haiku-4-5", "input_tokens": 5, "output_tokens": 2},
            ],
        },
    )
    assert (usage.input, usage.output) == (1100, 50)
    assert [(part.kind, part.model, part.usage.input) for part in usage.components] == [
        ("compaction", None, 180000),
        ("advisor_message", "claude-haiku-4-5", 5),
    ]


@pytest.mark.parametrize("raw", ["12 tokens", 7, ["prompt_tokens"], b"x", True])
def test_what_is_no_block_is_missing(raw: Any) -> None:
    usage = read("openai.chat", raw)
    assert (usage.origin, usage.input) == ("missing", 0)


def test_no_block_is_missing_without_a_flag() -> None:
    assert read("openai.chat", None) == Usage()


@pytest.mark.parametrize(
    ("given_value", "tokens", "flag"),
    [
        ("120", 120, None),
        (120.0, 120, None),
        (-5, 0, "negative:input"),
        (10.5, 10, "fraction:input"),
        ("many", 0, "not_a_number:input"),
        (float("nan"), 0, "not_a_number:input"),
        (10**15, 0, "absurd:input"),
    ],
)
def test_odd_numbers(given_value: Any, tokens: int, flag: str | None) -> None:
    usage = read("openai.chat", {"prompt_tokens": given_value, "completion_tokens": 3})
    assert usage.input == tokens
    assert usage.output == 3
    assert (flag in usage.flags) if flag else usage.flags == ()


@pytest.mark.parametrize(
    ("endpoint", "raw", "flags"),
    [
        ("openai.chat", {"prompt_tokens": True, "completion_tokens": 3}, ("missing:input",)),
        ("openai.chat", {"prompt_tokens": 9, "completion_tokens": None}, ("missing:output",)),
        ("anthropic.messages", {"output_tokens": 3}, ("missing:input",)),
        ("openai.embeddings", {"prompt_tokens": 9, "total_tokens": 9}, ()),
        # Gemini's compatible endpoint bills thoughts that only its total counts.
        ("openai.chat", {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 99}, ("unaccounted:total",)),
    ],
)
def test_tokens_that_no_number_tells_are_flagged(endpoint: str, raw: dict[str, Any], flags: tuple[str, ...]) -> None:
    assert read(endpoint, raw).flags == flags


def test_a_detail_beyond_its_total_is_cut_and_flagged() -> None:
    usage = read(
        "openai.chat",
        {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 99}},
    )
    assert (usage.input, usage.cache_read) == (10, 10)
    assert "exceeds:cache_read" in usage.flags


numbers = st.one_of(
    st.none(),
    st.integers(-10, 2 * ABSURD),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
KEYS = sorted(
    {
        key.split(".")[0]
        for name in ("openai.chat", "openai.responses", "anthropic.messages")
        if (endpoint := endpoint_named(name))
        for text in endpoint.usage.values()
        for key in text.replace("|", "+").split(" + ")
    }
)
blocks = st.recursive(
    numbers,
    lambda inner: st.dictionaries(
        st.one_of(
            st.sampled_from([key.strip() for key in KEYS]),
            st.sampled_from(["cached_tokens", "reasoning_tokens", "audio_tokens", "ephemeral_1h_input_tokens"]),
        ),
        inner,
        max_size=8,
    ),
    max_leaves=12,
)


@given(blocks, st.sampled_from(["openai.chat", "openai.responses", "openai.embeddings", "anthropic.messages"]))
def test_invariants_hold_for_any_block(raw: Any, endpoint: str) -> None:
    usage = read(endpoint, raw)
    assert all(0 <= getattr(usage, name) < 4 * ABSURD for name in TOKEN_FIELDS)
    assert usage.cache_read + usage.cache_write <= usage.input
    assert usage.reasoning <= usage.output
    ttl = usage.cache_write_5m + usage.cache_write_30m + usage.cache_write_1h + usage.cache_write_12h
    assert ttl <= usage.cache_write
    assert usage.origin in ("provider", "missing")
    assert usage.origin == "provider" or (usage.input, usage.output) == (0, 0)
    assert usage.reported_cost is None or usage.reported_cost >= 0


def test_routes() -> None:
    def name(sdk: str, url: str) -> str | None:
        found = route(sdk, url)
        return found.name if found else None

    assert name("openai", "/chat/completions") == "openai.chat"
    assert name("openai", "https://host/v1/chat/completions?x=1") == "openai.chat"
    assert name("openai", "/responses?beta=true") == "openai.responses"
    assert name("openai", "/responses/compact") == "openai.responses.compact"
    assert name("openai", "/responses/resp_1/cancel") is None
    assert name("openai", "/responses/input_tokens") is None
    assert name("openai", "/completions") == "openai.completions"
    assert name("anthropic", "/v1/messages?beta=true") == "anthropic.messages"
    assert name("anthropic", "/v1/messages/count_tokens") is None
    assert name("anthropic", "/v1/messages/batches") is None


def test_the_endpoint_of_a_block_is_found() -> None:
    assert endpoint_of("openai", {"prompt_tokens": 1}).name == "openai.chat"
    assert endpoint_of("openai", {"input_tokens": 1}).name == "openai.responses"
    assert endpoint_of("anthropic", {"input_tokens": 1}).name == "anthropic.messages"
    assert endpoint_of("zai", {"input_tokens": 1, "cache_read_input_tokens": 0}).name == "anthropic.messages"
    with pytest.raises(ValueError, match=r"known are .*openai.chat"):
        endpoint_of("openai", {}, "openai.chatt")


def test_a_reported_cost_is_exact_in_any_decimal_context() -> None:
    raw = {"prompt_tokens": 10, "completion_tokens": 5, "cost_in_usd_ticks": 123456789}
    endpoint = endpoint_of("x_ai", raw)
    with decimal.localcontext(decimal.Context(prec=2, traps=[decimal.Inexact, decimal.Rounded])):
        usage = normalise_block(raw, endpoint)
    assert usage.reported_cost == Decimal("0.0123456789")
    assert usage.flags == ()
