"""Upper bounds for the guard."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from otel_tokens.pricing.bounds import Dearest, max_output, straight
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import Pricer
from otel_tokens.values import Usage

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("model", "bound"),
    [
        ("gpt-4o-mini-2024-07-18", 16_384),
        ("openai/gpt-5.4-mini", 128_000),
        ("gpt-5-chat-latest", 16_384),
        ("gpt-4", 8_192),
        ("gpt-4-0613", 8_192),
        ("o3-mini", 100_000),
        ("somebody-elses-model", None),
    ],
)
def test_known_maxima(model: str, bound: int | None) -> None:
    assert max_output("openai", model) == bound


def test_the_dearest_model_bounds_all_others_of_its_vendor() -> None:
    catalog = Catalog()
    pricer = Pricer(catalog)
    dearest, usage, now = Dearest(pricer), Usage(input=10_000, output=2_000, origin="provider"), time.time()
    bound = dearest("openai", usage, now).total
    assert bound is not None
    for model in ("gpt-4o", "gpt-5", "gpt-4.1-nano", "o1"):
        total = pricer("openai", model, usage, at=now).total
        assert total is not None
        assert total <= bound
    assert dearest("nobody.example", usage, now).total is None


@pytest.mark.parametrize(
    ("provider", "model", "address", "line"),
    [
        # pico-USD for a token of input and of output, and for a search
        ("openai", "gpt-6-sol", "api.openai.com", (2_000_000, 10_000_000, 10**10, 0)),
        ("openai", "gpt-6-sol", "eu.api.openai.com", (2_200_000, 11_000_000, 10**10, 0)),
        ("openai", "gpt-4o", "eu.api.openai.com", (2_500_000, 10_000_000, 10**10, 0)),
        ("openai", "gpt-4o-search-preview", "api.openai.com", (2_500_000, 10_000_000, 0, 25 * 10**9)),
        ("openrouter", "deepseek/deepseek-r1:free", "openrouter.ai", (0, 0, 0, 0)),
    ],
)
def test_the_line_that_reservations_are_made_by(provider: str, model: str, address: str, line: tuple[int, ...]) -> None:
    given, output = Usage(input=1), Usage(output=1)
    found = straight(Pricer(Catalog()), provider, model, given, output, at=NOW, address=address)
    assert found is not None
    assert (found.input, found.output, found.search, found.fixed) == line
