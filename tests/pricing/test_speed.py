"""How long pricing takes: printed (`pytest -s`), and bounded only against gross mistakes."""

from __future__ import annotations

import timeit

import pytest

from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import Pricer
from otel_tokens.values import Usage

PLAIN = Usage(input=1000, output=50, cache_read=800, reasoning=20, origin="provider")
WRITES = Usage(input=1100, output=50, cache_read=800, cache_write=200, cache_write_5m=50, cache_write_1h=150,
               origin="provider")  # fmt: skip


@pytest.mark.parametrize(
    ("provider", "model", "usage", "tier"),
    [
        ("openai", "gpt-4o", PLAIN, "default"),
        ("openai", "gpt-6-sol", PLAIN, "flex"),
        ("anthropic", "claude-opus-4-1", WRITES, "standard"),
        ("openai", "gpt-realtime", PLAIN, None),
        ("openai", "gpt-9-turbo", PLAIN, None),
    ],
)
def test_a_call_after_the_first_of_a_model(
    catalog: Catalog, provider: str, model: str, usage: Usage, tier: str | None
) -> None:
    price = Pricer(catalog)

    def call() -> None:
        price(provider, model, usage, response_model=model, tier=tier, at=1_795_176_000.0)

    call()
    best = min(timeit.repeat(call, number=2000, repeat=7)) / 2000 * 1e6
    print(f"\n{provider}/{model}: {best:.1f} µs")
    assert best < 100  # genai-prices' calc_price takes 280 µs; a few is normal


def test_many_model_names_do_not_grow_the_cache_without_bound(catalog: Catalog) -> None:
    fresh = Catalog()
    for number in range(5000):
        fresh.card("openai", f"scanner-{number}", at=1_795_176_000.0)
    assert len(fresh._found) <= 4096
