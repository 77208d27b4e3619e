"""Our rate cards against genai-prices' own arithmetic, over its whole corpus of models."""

from __future__ import annotations

import random
import re
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices.data_snapshot import get_snapshot

from otel_tokens.pricing.card import charge
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.compile import listed_card
from otel_tokens.pricing.price import Pricer
from otel_tokens.pricing.shipped import PRICE_LISTS, PRICES, SEARCH_ONCE
from otel_tokens.values import Usage

PROVIDERS = {theirs: ours for ours, theirs in reversed(PRICE_LISTS.items())}
NOT_BY_TOKEN = {
    "audio_hours",
    "input_audio_hours",
    "input_mchars",
    "input_document_kpages",
    "input_annotated_document_kpages",
    "input_text_messages_kcount",
    "output_citation_mtok",
    "storage_searches_kcount",
}
CORRECTED = {name for entry in PRICES if entry.first for name in entry.models}


def random_usage(rng: random.Random, *, modal: bool) -> tuple[Usage, TheirUsage]:
    """The same tokens in our and in their words."""
    size = rng.choice((10, 5_000, 150_000, 300_000, 900_000))
    read, write, fresh = (rng.randrange(size) for _ in range(3))
    longer = rng.randrange(write + 1)
    output = rng.randrange(1, 20_000)
    ours: dict[str, int] = {
        "input": fresh + read + write,
        "output": output,
        "cache_read": read,
        "cache_write": write,
        "cache_write_1h": longer,
        "cache_write_5m": write - longer,
        "reasoning": rng.randrange(output),
        "web_searches": rng.randrange(3),
    }
    theirs = {
        "input_tokens": ours["input"],
        "output_tokens": output,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "cache_write_1h_tokens": longer,
        "cache_write_5m_tokens": write - longer,
        "output_reasoning_tokens": ours["reasoning"],
        "web_searches": ours["web_searches"],
    }
    if modal:
        for share, name in enumerate(("audio", "image", "video"), 4):
            cached = ours[f"cache_read_{name}"] = theirs[f"cache_{name}_read_tokens"] = read // share
            ours[f"input_{name}"] = theirs[f"input_{name}_tokens"] = cached + fresh // share
            ours[f"output_{name}"] = theirs[f"output_{name}_tokens"] = (output - ours["reasoning"]) // share
    return Usage(**ours, origin="provider"), TheirUsage(**theirs)


def stated(prices: Any) -> set[str]:
    return {key for key, value in vars(prices).items() if value is not None}


def test_every_card_charges_what_genai_prices_charges() -> None:
    """Every ModelPrice of every list, dated ones and variants included, tiers and modalities, to the last digit."""
    rng = random.Random(1)
    compared = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            listed = model.prices if isinstance(model.prices, list) else [model]
            moment = datetime(2030, 1, 1, tzinfo=UTC)
            contexts = [None, *(variant.when for variant in model.price_variants or ())]
            for prices in [*(item.prices for item in listed), *(model.get_prices(moment, when) for when in contexts)]:
                keys = stated(prices)
                card = listed_card("x", "a model", prices, "rule")
                if not keys & {"input_mtok", "output_mtok"}:
                    continue
                assert card is not None
                modal = any(word in key for key in keys for word in ("audio", "image", "video"))
                for _ in range(3):
                    ours, theirs = random_usage(rng, modal=modal)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        try:
                            expected = prices.calc_price(theirs)["total_price"]
                        except ValueError:
                            continue  # they refuse the usage, e.g. cached audio where none is priced
                    parts = charge(card, ours)
                    if isinstance(parts, str):
                        assert parts == "output"
                        assert "output_mtok" not in keys
                        continue  # we call that unpriced, they charge nothing for it
                    assert sum(parts) == expected, (provider.id, model.id, keys)
                    compared += 1
    assert compared > 6000


def searches_differ(provider: str, name: str) -> bool:
    """Fees of searches that we know otherwise: once a request, or not in their list."""
    return provider == "x-ai" or "search" in name or any(provider == p and re.match(m, name) for p, m in SEARCH_ONCE)


@pytest.mark.parametrize("provider", sorted(set(PROVIDERS) - {"novita"}))
def test_a_priced_call_equals_calc_price(provider: str, catalog: Catalog) -> None:
    """The whole way: names found as they find them, prices by date, over their own names of models."""
    from genai_prices import calc_price

    rng = random.Random(provider)
    price = Pricer(catalog)
    ours = PROVIDERS[provider]
    index = catalog.price_list(provider)
    assert index is not None
    names = [name for name in index.exact if name not in CORRECTED]
    compared = 0
    for name in rng.sample(sorted(names), min(len(names), 40)):
        model = index.exact[name]
        if isinstance(model.prices, list):
            keys = set().union(*(stated(item.prices) for item in model.prices))
        else:
            keys = stated(model.prices)
        modal = any(word in key for key in keys for word in ("audio", "image", "video"))
        for _ in range(3):
            moment = datetime(2024, 6, 1, tzinfo=UTC) + timedelta(hours=rng.randrange(3 * 365 * 24))
            mine, theirs = random_usage(rng, modal=modal)
            if searches_differ(provider, name):
                mine, theirs.web_searches = replace(mine, web_searches=0), 0
            cost = price(ours, name, mine, at=moment.timestamp())
            try:
                expected = calc_price(theirs, name, provider_id=provider, genai_request_timestamp=moment)
            except ValueError:
                continue
            now = stated(expected.model_price)
            if "output_mtok" not in now:
                free = provider == "openrouter" and name.endswith(":free")
                assert cost.total == (0 if free else None), name
                continue
            if now & NOT_BY_TOKEN or ("claude" in name and not {"cache_write_1h_mtok", "web_searches_kcount"} <= now):
                continue  # what they have no word or no rate for, and we do
            assert cost.total == expected.total_price, (name, cost)
            compared += 1
    assert compared > 0 or provider == "voyageai"
