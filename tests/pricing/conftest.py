"""Fixtures for pricing: one catalogue for all tests, a moment to price at, and usage in short."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import Pricer
from otel_tokens.pricing.rules import parse_rules
from otel_tokens.values import Cost, Usage

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours fails the test instead of being logged."""
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "1")


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def price(catalog: Catalog) -> Callable[..., Cost]:
    """`price("openai", "gpt-4o", input=1000, output=10, tier="flex", rules=[…])`."""

    def price(
        provider: str | None,
        model: str,
        *,
        at: float = NOW,
        rules: list[dict[str, Any]] | None = None,
        usage: Usage | None = None,
        **given: Any,
    ) -> Cost:
        context = {key: given.pop(key) for key in ("response_model", "tier", "speed", "geo", "address") if key in given}
        used = usage or Usage(**{"origin": "provider", **given})
        chosen = catalog if rules is None else Catalog(parse_rules(rules, "prices.yaml"))
        return Pricer(chosen)(provider, model, used, at=at, **context)

    return price
