"""What a reservation may cost: the lines agree with the pricer, to the nano-USD, wherever they are used."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.guard import Guard
from otel_tokens.guard.options import GuardOptions
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.pricing.bounds import straight
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import Pricer
from otel_tokens.values import Call, CallSizes

PRICER = Pricer(Catalog())
MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-5-mini"),
    ("openai", "gpt-4o-audio-preview"),
    ("openai", "text-embedding-3-small"),
    ("anthropic", "claude-opus-4-1"),
    ("anthropic", "claude-sonnet-4-5"),
    ("gcp.gemini", "gemini-2.5-pro"),
    ("gcp.vertex_ai", "claude-sonnet-4-5@20250929"),
]
SIZES = [
    {},
    {"cache_write": "cache_write_1h"},
    {"cache_write": "cache_write_5m", "web_searches": 3},
    {"audio": True},
    {"input_upper": 400_000},
]


def call_to(provider: str, model: str, **more: Any) -> Call:
    operation = "embeddings" if "embedding" in model else "chat"
    return Call("1", provider, f"{provider}.{operation}", operation, model, time.time(), **more)


def reserved(call: Call, sizes: CallSizes, **options: Any) -> int:
    guard = Guard([Budget("b", usd=1000)], MemoryStore(), price=PRICER, options=GuardOptions(**options))
    lease = guard.admit(call, sizes)
    assert lease is not None
    return lease.values["usd"]


@pytest.mark.parametrize("more", SIZES, ids=str)
@pytest.mark.parametrize("tier", [None, "flex", "priority"])
@pytest.mark.parametrize(("provider", "model"), MODELS)
def test_lines_come_to_what_pricing_comes_to(provider: str, model: str, tier: str | None, more: Any) -> None:
    sizes = CallSizes(**{"input_tokens_estimate": 1000, "input_upper": 12_347, "output_bound": 777, **more})
    call = call_to(provider, model, service_tier=tier)
    assert reserved(call, sizes, straight=partial(straight, PRICER)) == reserved(call, sizes)


def test_lines_are_asked_for_once_per_kind_of_call_and_not_beyond_their_end() -> None:
    asked: list[str] = []

    def counted(*args: Any, **terms: Any) -> Any:
        asked.append(args[1])
        return straight(PRICER, *args, **terms)

    options = GuardOptions(straight=counted)
    guard = Guard([Budget("b", usd=1000)], MemoryStore(), price=PRICER, options=options)
    now = time.time()
    for number, at in enumerate([now, now + 1, now + 59, now + 61]):
        call = Call(str(number), "openai", "openai.chat", "chat", "gpt-4o", at)
        guard.admit(call, CallSizes(100, 100, 100))
        assert len(asked) == (2 if at > now + 60 else 1)


def test_a_regional_endpoint_is_reserved_at_its_own_price() -> None:
    sizes = CallSizes(1000, 1000, 1000)
    for options in ({}, {"straight": partial(straight, PRICER)}):
        world, region = (
            reserved(call_to("gcp.vertex_ai", "claude-sonnet-4-5@20250929", server_address=address), sizes, **options)
            for address in ("aiplatform.googleapis.com", "europe-west1-aiplatform.googleapis.com")
        )
        assert region * 10 == world * 11, options
