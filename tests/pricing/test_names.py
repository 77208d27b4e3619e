"""Which price a name gets: every form of a model's name finds its price, and no sibling's."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from otel_tokens.pricing.catalog import Catalog
from otel_tokens.values import Cost

Price = Callable[..., Cost]

NOW = 1_795_176_000.0  # 2026-11-20
ARN = "arn:aws:bedrock:us-east-1:123456789012:"
SONNET = "claude-sonnet-4-5-20250929"
REGIONAL = f"aws/regional.anthropic.{SONNET}-v1:0"
OLD_SONNET = "anthropic.claude-3-5-sonnet-20241022-v2:0"
PUBLISHER = "projects/p/locations/global/publishers/anthropic/models"


@pytest.mark.parametrize(
    ("provider", "model", "rule"),
    [
        # exact, alias, dated snapshot, unknown snapshot of a known family
        ("openai", "gpt-4o", "openai/gpt-4o"),
        ("openai", "GPT-4o", "openai/gpt-4o"),
        ("openai", "gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("openai", "gpt-4o-2024-05-13", "openai/gpt-4o-2024-05-13"),
        ("openai", "gpt-4o-2031-01-02", "openai/gpt-4o (family of gpt-4o-2031-01-02)"),
        ("openai", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"),
        ("openai", "gpt-5.2-20251211", "openai/gpt-5.2"),
        ("openai", "openai/gpt-4.1-nano", "openai/gpt-4.1-nano"),
        ("openai", "o3-2025-04-16", "openai/o3"),
        ("openai", "text-embedding-3-small", "openai/text-embedding-3-small"),
        ("openai", "gpt-4o-realtime-preview-2025-06-03", "openai/gpt-4o-realtime-preview"),
        ("anthropic", "claude-sonnet-4-5-20250929", "anthropic/claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-5-20250929[1m]", "anthropic/claude-sonnet-4-5"),
        ("anthropic", "claude-3-5-haiku-latest", "anthropic/claude-3-5-haiku-latest"),
        ("anthropic", "claude-opus-4-1-20250805", "anthropic/claude-opus-4-1"),
        ("anthropic", "claude-opus-4-20250514", "anthropic/claude-opus-4-0"),
        ("anthropic", "claude-mythos-5-1", "shipped anthropic/claude-mythos-5-1"),
        # Bedrock: ids, inference profiles, ARNs, addresses of LiteLLM
        ("aws.bedrock", OLD_SONNET, f"aws/regional.{OLD_SONNET}"),
        ("aws.bedrock", f"us.anthropic.{SONNET}-v1:0", REGIONAL),
        ("aws.bedrock", f"global.anthropic.{SONNET}-v1:0", f"aws/global.anthropic.{SONNET}-v1:0"),
        ("aws.bedrock", f"{ARN}inference-profile/us.anthropic.{SONNET}-v1:0", REGIONAL),
        ("aws.bedrock", f"{ARN}foundation-model/amazon.nova-lite-v1:0", "aws/amazon.nova-lite-v1:0"),
        ("aws.bedrock", "bedrock/amazon.nova-pro-v1:0", "aws/amazon.nova-pro-v1:0"),
        ("aws.bedrock", "amazon.nova-lite-v1:0:300k", "aws/amazon.nova-lite-v1:0"),
        ("aws.bedrock", "eu.amazon.nova-micro-v1:0", "aws/amazon.nova-micro-v1:0"),
        ("aws.bedrock", "us.meta.llama3-3-70b-instruct-v1:0", "aws/meta.llama3-3-70b-instruct-v1:0"),
        # Google
        ("gcp.vertex_ai", "claude-sonnet-4-5@20250929", "google/claude-sonnet-4-5"),
        ("gcp.vertex_ai", f"{PUBLISHER}/claude-opus-4-6@default", "google/claude-opus-4-6"),
        ("gcp.vertex_ai", "google/gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("gcp.gemini", "models/gemini-2.5-flash", "google/gemini-2.5-flash"),
        ("gcp.gemini", "gemini-2.5-pro-preview-05-06", "google/gemini-2.5-pro"),
        ("gcp.gemini", "gemini-2.5-flash-lite-preview-06-17", "google/gemini-2.5-flash-lite"),
        ("gcp.gemini", "gemini-2.0-flash-001", "google/gemini-2.0-flash"),
        # Azure sells other vendors' models
        ("azure.ai.openai", "gpt-4o", "openai/gpt-4o"),
        ("azure.ai.openai", "gpt-35-turbo", "openai/gpt-3.5-turbo"),
        ("azure.ai.inference", "phi-4", "azure/phi-4"),
        ("azure.ai.inference", "claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
        # others, also under the names other tools give them
        ("openrouter", "anthropic/claude-sonnet-4.5", "openrouter/anthropic/claude-sonnet-4.5"),
        ("openrouter", "openrouter/anthropic/claude-sonnet-4.5", "openrouter/anthropic/claude-sonnet-4.5"),
        ("mistral_ai", "mistral-large-2512", "mistral/mistral-large-2512"),
        ("moonshot_ai", "kimi-k2-0905-preview", "moonshotai/kimi-k2-0905-preview"),
        ("zai", "GLM-4.5-Air", "zai/GLM-4.5-Air"),
        ("zhipuai", "glm-4.5-air", "zhipuai/GLM-4.5-Air"),
        ("x_ai", "grok-4-fast", "x-ai/grok-4-fast-reasoning"),
        ("xai", "grok-4-0709", "x-ai/grok-4-0709"),
        ("deepseek", "deepseek-v3.2", "deepseek/deepseek-v3.2"),
        ("groq", "llama-3.3-70b-versatile", "groq/llama-3.3-70b-versatile"),
        ("groq", "openai/gpt-oss-120b", "groq/openai/gpt-oss-120b"),
        ("perplexity", "sonar-pro", "perplexity/sonar-pro"),
        ("cohere", "command-a-03-2025", "cohere/command-a"),
        ("cohere", "embed-english-v3.0", "shipped cohere/embed-english-v3.0"),
        ("together", "zai-org/GLM-5.2", "together/zai-org/GLM-5.2"),
        ("fireworks", "accounts/fireworks/models/kimi-k2p5", "fireworks/kimi-k2p5"),
        ("cerebras", "gpt-oss-120b", "cerebras/gpt-oss-120b"),
        ("minimax", "MiniMax-M2.7-highspeed", "minimax/MiniMax-M2.7-highspeed"),
        ("voyage", "voyage-3-large", "voyageai/voyage-3-large"),
        # fine-tunes, where their own price is known
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::AbC123", "shipped openai/ft:gpt-4o-mini-2024-07-18"),
        ("openai", "ft:gpt-4o-mini:acme::AbC123", "shipped openai/ft:gpt-4o-mini"),
        ("openai", "ft:gpt-4.1-mini-2025-04-14:acme:tag:id",
         "shipped openai/ft:gpt-4.1-mini (family of ft:gpt-4.1-mini-2025-04-14)"),
        ("openai", "ft:gpt-3.5-turbo-0125:acme::id", "openai/ft:gpt-3.5-turbo-"),
        ("azure.ai.openai", "gpt-4o-mini-2024-07-18.ft-0123abcd", "openai/gpt-4o-mini-2024-07-18.ft-"),
        # nobody says who bills: the maker
        (None, "gpt-4o", "openai/gpt-4o"),
        (None, "anthropic/claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
        (None, "gemini-2.5-pro", "google/gemini-2.5-pro"),
        (None, "us.anthropic.claude-opus-4-6-v1:0", "aws/regional.anthropic.claude-opus-4-6-v1:0"),
        (None, "glm-5", "zai/GLM-5"),
        (None, "kimi-k3", "moonshotai/kimi-k3"),
        (None, "mistral-large-2512", "mistral/mistral-large-2512"),
    ],
)  # fmt: skip
def test_a_name_finds_its_price(catalog: Catalog, provider: str | None, model: str, rule: str) -> None:
    card = catalog.card(provider, model, at=NOW)
    assert card is not None
    assert card.rule.removeprefix("genai-prices ") == rule


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-9-turbo"),
        ("openai", "gpt-4o-turbo"),
        ("openai", "gpt-4o-ultra"),
        ("openai", "gpt-5-nano-turbo"),
        ("openai", "gpt-4o-mini-large"),
        ("openai", "my-gpt-4o"),
        ("openai", "gpt"),
        ("openai", "anthropic/claude-sonnet-4-5"),
        ("openai", "ft:gpt-9:acme::id"),
        ("openai", "ft:o3:acme::id"),
        ("openai", "gpt-jt-moderation-6b"),
        ("openai", "whisper-1"),  # by the second, not by tokens
        ("openai", ""),
        ("anthropic", "claude-opus-4-10"),
        ("anthropic", "claude-opus-4-5-5"),
        ("anthropic", "claude-haiku-4-5-mini"),
        ("anthropic", "claude-3-haiku-pro"),
        ("anthropic", "claude-opus-4-8-fast"),
        ("gcp.gemini", "gemini-1.5-flash-8b"),
        ("gcp.gemini", "gemini-3.6-flash-lite"),
        ("gcp.gemini", "gemini-2.5-pro-ultra"),
        ("gcp.gemini", "gemini-3.5-flash-8b"),
        ("deepseek", "deepseek-r1-distill-llama-70b"),
        ("deepseek", "deepseek-v4-pro-max"),
        ("moonshot_ai", "kimi-k2.5-fast"),
        ("aws.bedrock", "amazon.nova-lite-plus-v1:0"),
        ("aws.bedrock", "us.anthropic.claude-opus-9-v1:0"),
        ("aws.bedrock", "amazon.nova-pro-v2:0"),
        ("aws.bedrock", "us.amazon.nova-premier-v9:0"),
        ("aws.bedrock", "bedrock/eu-central-1/1-month-commitment/anthropic.claude-v2:1"),
        ("aws.bedrock", ARN + "application-inference-profile/a1b2c3d4"),
        ("aws.bedrock", ARN + "provisioned-model/abc"),
        ("azure.ai.openai", "my-deployment"),
        ("azure.ai.openai", "o4-mini-max"),
        ("alibaba", "qwen-max"),
        # nobody's price list: local servers and unknown hosts, whatever the model is called
        ("vllm", "gpt-4o"),
        ("ollama", "llama3.1"),
        ("lm_studio", "gpt-oss-20b"),
        ("llama_cpp", "deepseek-chat"),
        ("llm.example.com", "gpt-4o"),
        (None, "llama3.1"),
        (None, "some/gpt-4o"),
        (None, "ollama/gpt-4o"),
    ],
)
def test_no_sibling_s_price(catalog: Catalog, provider: str | None, model: str) -> None:
    assert catalog.card(provider, model, at=NOW) is None


SIBLINGS = [
    ("openai", ["gpt-4o", "gpt-4o-mini", "gpt-4", "gpt-4-turbo", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-5",
                "gpt-5-mini", "gpt-5-nano", "gpt-5-pro", "gpt-5.4", "gpt-5.4-mini", "o1", "o1-mini", "o1-pro", "o3",
                "o3-mini", "o3-pro", "o4-mini", "o4-mini-deep-research", "text-embedding-3-large"]),
    ("anthropic", ["claude-opus-4-1", "claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-5",
                   "claude-opus-5-5", "claude-fable-5", "claude-fable-5-1", "claude-3-haiku-20240307"]),
    ("gcp.gemini", ["gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.5-flash-lite", "gemini-2.0-flash",
                    "gemini-2.0-flash-lite", "gemini-3.5-flash", "gemini-3.5-flash-lite"]),
    ("azure.ai.openai", ["o4-mini", "o4-mini-deep-research", "o3", "o3-mini"]),
    ("zai", ["glm-4.5", "glm-4.5-air", "glm-4.5-x", "glm-4.5-airx", "glm-4.7", "glm-4.7-flashx"]),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "models"), SIBLINGS, ids=[provider for provider, _ in SIBLINGS])
def test_siblings_keep_apart(catalog: Catalog, provider: str, models: list[str]) -> None:
    """Each is its own model of the catalogue, and stays it with a date behind its name."""
    found = {}
    for model in models:
        for name in (model, model + "-2031-05-06", model + "-latest"):
            card = catalog.card(provider, name, at=NOW)
            assert card is not None, name
            found.setdefault(model, set()).add(card.model)
    assert all(len(cards) == 1 for cards in found.values()), found
    assert len(set.union(*found.values())) == len(models)


def test_an_azure_deployment_is_priced_by_the_model_that_answered(price: Callable[..., Cost]) -> None:
    cost = price("azure.ai.openai", "prod-chat", response_model="gpt-4o-mini-2024-07-18", input=1_000_000)
    assert cost.rule == "genai-prices openai/gpt-4o-mini"
    assert str(cost.total.normalize()) == "0.15"


def test_what_answered_counts_more_than_what_was_asked_for(price: Callable[..., Cost]) -> None:
    assert price("openai", "gpt-4o", response_model="gpt-4o-mini-2024-07-18", input=10).rule.endswith("/gpt-4o-mini")
    assert price("openai", "gpt-4o", response_model="proxy-model-7", input=10).rule.endswith("/gpt-4o")


def test_bedrock_s_request_tells_the_region_its_response_does_not(price: Callable[..., Cost]) -> None:
    answered = "claude-sonnet-4-5-20250929"
    world = price("aws.bedrock", f"global.anthropic.{answered}-v1:0", response_model=answered, input=10**6)
    region = price("aws.bedrock", f"eu.anthropic.{answered}-v1:0", response_model=answered, input=10**6)
    assert (world.total, region.total) == (3, Decimal("3.3"))
    profile = price("aws.bedrock", ARN + "application-inference-profile/x1", response_model=answered, input=10**6)
    assert profile.status == "estimated"
    assert "region" in profile.rule
    hourly = price("aws.bedrock", ARN + "provisioned-model/x1", response_model=answered, input=10**6)
    assert (hourly.status, hourly.total) == ("unpriced", None)
    assert "by the hour" in hourly.rule


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("us.amazon.nova-pro-v1:0", "priced"),
        ("eu.amazon.nova-pro-v1:0", "estimated"),
        ("apac.amazon.nova-lite-v1:0", "estimated"),
        ("eu.meta.llama3-2-1b-instruct-v1:0", "estimated"),
        (ARN + "inference-profile/eu.amazon.nova-pro-v1:0", "estimated"),
        (f"eu.anthropic.{SONNET}-v1:0", "priced"),
        (f"jp.anthropic.{SONNET}-v1:0", "priced"),
        (f"us-gov.anthropic.{SONNET}-v1:0", "estimated"),
        (ARN + "foundation-model/amazon.nova-pro-v1:0", "priced"),
        (ARN.replace("us-east-1", "eu-west-1") + "foundation-model/amazon.nova-pro-v1:0", "estimated"),
        (ARN.replace("us-east-1", "eu-west-1") + f"foundation-model/anthropic.{SONNET}-v1:0", "priced"),
        ("bedrock/us-west-2/amazon.nova-pro-v1:0", "priced"),
        ("bedrock/eu-west-2/amazon.nova-pro-v1:0", "estimated"),
        ("bedrock/us-gov-east-1/amazon.nova-pro-v1:0", "estimated"),
        ("bedrock/invoke/eu-west-2/amazon.nova-pro-v1:0", "estimated"),
    ],
)
def test_a_bedrock_region_that_is_not_listed_is_an_estimate(
    price: Callable[..., Cost], model: str, status: str
) -> None:
    assert price("aws.bedrock", model, input=10).status == status


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("gpt-4o", "priced"),
        ("claude-sonnet-4-5", "priced"),
        ("gpt-oss-120b", "estimated"),  # open weights: OpenAI's list does not tell Azure's price
        ("azure/eu/o4-mini", "estimated"),  # a data zone costs more
        ("eu/o4-mini-2025-04-16", "estimated"),
    ],
)
def test_azure_sells_at_the_vendor_s_price_what_the_vendor_sells(
    price: Callable[..., Cost], model: str, status: str
) -> None:
    assert price("azure.ai.openai", model, input=10).status == status


def test_what_latest_stands_for_is_an_estimate_unless_a_list_says_it(price: Callable[..., Cost]) -> None:
    assert price("mistral_ai", "ministral-3b-latest", input=10).status == "estimated"
    assert price("anthropic", "claude-3-5-haiku-latest", input=10).status == "priced"


def test_a_fine_tune_is_never_priced_as_its_base(price: Callable[..., Cost]) -> None:
    cost = price("openai", "ft:o3-mini:acme::id", response_model="o3-mini", input=10)
    assert cost.status == "unpriced"


def test_another_cloud_s_resale_is_marked_as_a_guess(price: Callable[..., Cost]) -> None:
    assert price("azure.ai.inference", "grok-3", input=10, output=1).status == "estimated"
    assert price("azure.ai.openai", "gpt-4o", input=10, output=1).status == "priced"


@pytest.mark.parametrize(
    ("model", "total", "status"),
    [
        ("deepseek/deepseek-r1", "0.00095", "priced"),
        ("deepseek/deepseek-r1:free", "0", "priced"),
        ("openrouter/deepseek/deepseek-r1:free", "0", "priced"),
        ("nobody/knows-this:free", "0", "priced"),
        ("openrouter/free", "0", "priced"),
        ("deepseek/deepseek-r1:free:online", "0.02", "estimated"),
        ("deepseek/deepseek-r1:nitro", "0.00095", "estimated"),
        ("deepseek/deepseek-r1:floor", "0.00095", "estimated"),
        ("deepseek/deepseek-r1:exacto", "0.00095", "estimated"),
        ("deepseek/deepseek-r1:extended", "0.00095", "estimated"),
        ("deepseek/deepseek-r1:thinking", "0.00095", "estimated"),
        ("deepseek/deepseek-r1:online", "0.02095", "estimated"),
        ("openai/gpt-6-sol:batch", "0.0015", "priced"),  # in the list
        ("deepseek/deepseek-r1:unheard-of", None, "unpriced"),
        ("nobody/knows-this:nitro", None, "unpriced"),
        ("openrouter/auto", None, "unpriced"),
    ],
)
def test_openrouter_s_suffixes(price: Price, model: str, total: str | None, status: str) -> None:
    cost = price("openrouter", model, input=1000, output=100)
    assert (cost.total, cost.status) == (None if total is None else Decimal(total), status)


def test_a_suffix_that_the_answer_leaves_out_still_counts(price: Price) -> None:
    cost = price("openrouter", "deepseek/deepseek-r1:free", input=1000, response_model="deepseek/deepseek-r1")
    assert cost.total == 0


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("azure/gpt-4o", "priced"),
        ("azure/global/gpt-4o", "priced"),
        ("azure/eu/gpt-4o", "estimated"),
        ("azure/us/gpt-4o-2024-11-20", "estimated"),
        ("azure/swedencentral/gpt-4o", "estimated"),
        ("eu/gpt-4o", "estimated"),
    ],
)
def test_azure_s_places(price: Price, model: str, status: str) -> None:
    cost = price("azure.ai.openai", model, input=1000, output=100)
    assert (cost.total, cost.status) == (Decimal("0.0035"), status)
    assert ("no price for the place" in cost.rule) is (status == "estimated")
