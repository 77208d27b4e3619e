"""Prices that genai-prices lacks: data only, each entry with its date and source.

The table is small: a price that is not certain is left out. USD per million tokens, as text, so that no digit is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

AS_OF = "2026-11-30"
"""Date of this table; part of the catalogue's version."""

ANTHROPIC = "https://platform.claude.com/docs/en/about-claude/pricing"
OPENAI = "https://developers.openai.com/api/docs/pricing"

# Our provider names → price lists of genai-prices. A provider that is not here has no public price list that is
# known: local servers, unknown hosts, vendors who bill in another currency or by region (alibaba, volcengine).
PRICE_LISTS: dict[str, str] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "aws.bedrock": "aws",
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "gcp.gen_ai": "google",
    "azure.ai.openai": "azure",
    "azure.ai.inference": "azure",
    "mistral_ai": "mistral",
    "moonshot_ai": "moonshotai",
    "x_ai": "x-ai",
    "deepseek": "deepseek",
    "groq": "groq",
    "perplexity": "perplexity",
    "cohere": "cohere",
    "zai": "zai",
    "zhipuai": "zhipuai",
    "minimax": "minimax",
    "meta": "meta",
    "openrouter": "openrouter",
    "together": "together",
    "fireworks": "fireworks",
    "cerebras": "cerebras",
    "cloudflare": "cloudflare",
    "databricks": "databricks",
    "baseten": "baseten",
    "novita": "novita",
    "ovhcloud": "ovhcloud",
    "voyage": "voyageai",
    "avian": "avian",
    "doubleword": "doubleword",
    "arcee": "arcee",
}

# (list, vendor): the vendor's models (a regular expression, from the name's start) that a cloud sells at the vendor's
# own price. Prices of other models are guesses: who serves open weights sets a price of its own.
SOLD_AT_OWN_PRICE: dict[tuple[str, str], str] = {
    ("azure", "openai"): r"(?!gpt-oss)",
    ("azure", "anthropic"): "",
    ("google", "anthropic"): "",
}

# Names of the providers in other instrumentations and libraries.
PROVIDER_ALIASES: dict[str, str] = {
    "azure": "azure.ai.openai",
    "azure_openai": "azure.ai.openai",
    "az.ai.openai": "azure.ai.openai",
    "az.ai.inference": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "aws": "aws.bedrock",
    "amazon_bedrock": "aws.bedrock",
    "google": "gcp.gemini",
    "gemini": "gcp.gemini",
    "google_genai": "gcp.gemini",
    "google_generativeai": "gcp.gemini",
    "google_ai_studio": "gcp.gemini",
    "vertexai": "gcp.vertex_ai",
    "vertex_ai": "gcp.vertex_ai",
    "google_vertexai": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "moonshot": "moonshot_ai",
    "moonshotai": "moonshot_ai",
    "kimi": "moonshot_ai",
    "xai": "x_ai",
    "x-ai": "x_ai",
    "z-ai": "zai",
    "z.ai": "zai",
    "zhipu": "zhipuai",
    "bigmodel": "zhipuai",
    "dashscope": "alibaba",
    "qwen": "alibaba",
    "together_ai": "together",
    "togetherai": "together",
    "fireworks_ai": "fireworks",
    "voyageai": "voyage",
    "aws_bedrock": "aws.bedrock",
    "lmstudio": "lm_studio",
    "llamacpp": "llama_cpp",
}

_GOOGLE = frozenset({"gcp.gemini", "gcp.vertex_ai", "gcp.gen_ai"})
_AZURE = frozenset({"azure.ai.openai", "azure.ai.inference"})

# `vendor/model`: the providers for which the vendor is only an address. Elsewhere it is part of the model's name.
VENDOR_PREFIXES: dict[str, frozenset[str]] = {
    "openai": frozenset({"openai"}) | _AZURE,
    "azure": _AZURE,
    "azure_ai": _AZURE,
    "anthropic": frozenset({"anthropic"}) | _GOOGLE | _AZURE,
    "bedrock": frozenset({"aws.bedrock"}),
    "converse": frozenset({"aws.bedrock"}),
    "google": _GOOGLE,
    "gemini": _GOOGLE,
    "vertex_ai": _GOOGLE,
    "models": _GOOGLE,
    "publishers": frozenset(),
    "mistral": frozenset({"mistral_ai"}),
    "mistralai": frozenset({"mistral_ai"}),
    "moonshot": frozenset({"moonshot_ai"}),
    "moonshotai": frozenset({"moonshot_ai"}),
    "xai": frozenset({"x_ai"}),
    "x-ai": frozenset({"x_ai"}),
    "deepseek": frozenset({"deepseek"}),
    "groq": frozenset({"groq"}),
    "perplexity": frozenset({"perplexity"}),
    "cohere": frozenset({"cohere"}),
    "zai": frozenset({"zai"}),
    "z-ai": frozenset({"zai"}),
    "zai-org": frozenset({"zai"}),
    "minimax": frozenset({"minimax"}),
    "openrouter": frozenset({"openrouter"}),
    "together_ai": frozenset({"together"}),
    "fireworks_ai": frozenset({"fireworks"}),
    "cerebras": frozenset({"cerebras"}),
    "voyage": frozenset({"voyage"}),
}


@dataclass(frozen=True, slots=True)
class Shipped:
    """Prices of some models of one price list.

    `first` entries win over genai-prices from the day `since` on (UTC): it has them incompletely, or not up to date.
    """

    provider: str
    models: tuple[str, ...]
    rates: dict[str, str]
    source: str
    date: str
    first: bool = False
    since: str = "1970-01-01"
    requests: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Fee:
    """A price for each call of a hosted tool, in USD, of the models whose name `models` (a regular expression) matches
    from its start. `tool` is a kind of `Component`, or "web_search"; a price list's own fee wins."""

    provider: str
    tool: str
    price: str
    source: str
    models: str = ""


XAI_TOOLS = "https://docs.x.ai/developers/pricing"

FEES: tuple[Fee, ...] = (
    # The older search tool costs 25 USD per 1,000 on models that do not reason, 15 more than the newer one.
    Fee("openai", "web_search_preview", "0.015", OPENAI, r"gpt-4"),
    Fee("openai", "web_search_preview", "0", OPENAI),
    # Searches on X are billed by the posts they fetch as well, so they have no row.
    Fee("x-ai", "web_search", "0.005", XAI_TOOLS),
    Fee("x-ai", "code_interpreter", "0.005", XAI_TOOLS),
    Fee("x-ai", "file_search", "0.0025", XAI_TOOLS),
)

ALWAYS_SEARCHES: tuple[Fee, ...] = (
    # Models that search for each request; their answers do not count the searches.
    Fee("openai", "web_search", "0.025", OPENAI, r"gpt-4o(?:-mini)?-search-preview"),
    Fee("openai", "web_search", "0.01", OPENAI, r"gpt-5-search-api"),
)

SEARCH_ONCE: tuple[tuple[str, str], ...] = (("google", r"gemini-[12]"),)
"""(list, models) that bill a request with searches once, however many they are:
https://ai.google.dev/gemini-api/docs/pricing"""

PREPAID: dict[str, frozenset[str]] = {
    "google": frozenset(
        {"provisioned_throughput"}
    ),  # https://cloud.google.com/vertex-ai/generative-ai/docs/provisioned-throughput
}
"""Tiers by price list whose tokens are paid for with the capacity, in advance:
https://cloud.google.com/vertex-ai/generative-ai/docs/provisioned-throughput"""

# OpenRouter's suffixes of a model's name, where its list has no price for them: why the model's own is an estimate.
# https://openrouter.ai/docs/guides/routing/model-variants/overview
FREE_VARIANT, FREE_ROUTER = "free", "openrouter/free"
ROUTED_VARIANTS: dict[str, str] = {
    "nitro": "the fastest provider is chosen, which may cost more",
    "floor": "the cheapest provider is chosen, which may cost less",
    "exacto": "the provider is chosen by quality, which may cost more",
    "extended": "the variant with a long context may cost more",
    "thinking": "the variant that reasons may cost more",
    "online": "searches are assumed to cost 0.02 USD",
}
ONLINE_FEE = "0.02"
"""USD for the five results that OpenRouter's web plugin fetches by default, at 4 USD per 1,000:
https://openrouter.ai/docs/guides/features/plugins/web-search"""

REFUSALS_FREE = "2026-06-09"
"""First day on which Anthropic does not bill a request that is refused before any output, on all platforms:
https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback#how-refusals-are-billed"""
REFUSALS_BILLED_AGAIN = "2026-09-24"
"""First day on which refusals of the categories below are billed again, by its release notes."""
REFUSALS_BILLED = frozenset({"bio", "frontier_llm", "reasoning_extraction"})


PRICES: tuple[Shipped, ...] = (
    # Fine-tunes: genai-prices knows some, without the cached rate, and only under dated names.
    Shipped(
        "openai",
        ("ft:gpt-4o", "ft:gpt-4o-2024-08-06", "ft:gpt-4o-2024-11-20"),
        {"input": "3.75", "cache_read": "1.875", "output": "15"},
        OPENAI,
        "2025-10-01",
        first=True,
    ),
    Shipped(
        "openai",
        ("ft:gpt-4o-mini", "ft:gpt-4o-mini-2024-07-18"),
        {"input": "0.3", "cache_read": "0.15", "output": "1.2"},
        OPENAI,
        "2025-10-01",
        first=True,
    ),
    Shipped("openai", ("ft:gpt-4.1",), {"input": "3", "cache_read": "0.75", "output": "12"}, OPENAI, "2025-10-01"),
    Shipped(
        "openai", ("ft:gpt-4.1-mini",), {"input": "0.8", "cache_read": "0.2", "output": "3.2"}, OPENAI, "2025-10-01"
    ),
    Shipped(
        "openai", ("ft:gpt-4.1-nano",), {"input": "0.2", "cache_read": "0.05", "output": "0.8"}, OPENAI, "2025-10-01"
    ),
    Shipped("openai", ("ft:o4-mini",), {"input": "4", "cache_read": "1", "output": "16"}, OPENAI, "2025-10-01"),
    Shipped("openai", ("ft:davinci-002",), {"input": "12", "output": "12"}, OPENAI, "2025-10-01"),
    Shipped("openai", ("ft:babbage-002",), {"input": "1.6", "output": "1.6"}, OPENAI, "2025-10-01"),
    # Audio previews: genai-prices has the text rates only.
    Shipped(
        "openai",
        ("gpt-4o-audio-preview", "gpt-4o-audio-preview-2024-12-17", "gpt-4o-audio-preview-2025-06-03"),
        {"input": "2.5", "output": "10", "input_audio": "40", "output_audio": "80"},
        OPENAI,
        "2025-10-01",
        first=True,
    ),
    Shipped(
        "openai",
        ("gpt-4o-mini-audio-preview", "gpt-4o-mini-audio-preview-2024-12-17"),
        {"input": "0.15", "output": "0.6", "input_audio": "10", "output_audio": "20"},
        OPENAI,
        "2025-10-01",
        first=True,
    ),
    # "Moderation is free": a stated zero, not an unknown price.
    Shipped(
        "openai",
        ("omni-moderation-latest", "omni-moderation-2024-09-26", "text-moderation-latest", "text-moderation-stable"),
        {"input": "0", "output": "0"},
        OPENAI,
        "2025-10-01",
        first=True,
    ),
    # genai-prices has the rates of the year before, with a discount by the hour that ended then.
    Shipped(
        "deepseek",
        ("deepseek-chat", "deepseek-reasoner"),
        {"input": "0.28", "cache_read": "0.028", "output": "0.42"},
        "https://api-docs.deepseek.com/quick_start/pricing",
        "2025-10-01",
        first=True,
        since="2025-09-29",
    ),
    # genai-prices has `-latest` at the model of 2024.
    Shipped(
        "mistral",
        ("mistral-large-latest",),
        {"input": "0.5", "cache_read": "0.05", "output": "1.5"},
        "https://mistral.ai/pricing#api",
        "2026-11-23",
        first=True,
        since="2025-12-02",
    ),
    Shipped(
        "anthropic",
        ("claude-mythos-5-1",),
        {"input": "10", "cache_write": "12.5", "cache_write_1h": "20", "cache_read": "0.25", "output": "50"},
        ANTHROPIC,
        "2026-10-01",
    ),
    Shipped(
        "anthropic",
        ("claude-mythos-5",),
        {"input": "10", "cache_write": "12.5", "cache_write_1h": "20", "cache_read": "1", "output": "50"},
        ANTHROPIC,
        "2026-10-01",
    ),
    Shipped("anthropic", ("claude-2.0", "claude-2.1"), {"input": "8", "output": "24"}, ANTHROPIC, "2025-07-01"),
    Shipped(
        "cohere", ("command-r-03-2024",), {"input": "0.5", "output": "1.5"}, "https://cohere.com/pricing", "2025-10-01"
    ),
    Shipped(
        "cohere",
        ("command-r-plus-04-2024",),
        {"input": "3", "output": "15"},
        "https://cohere.com/pricing",
        "2025-10-01",
    ),
    Shipped(
        "cohere",
        (
            "embed-english-v3.0",
            "embed-multilingual-v3.0",
            "embed-english-light-v3.0",
            "embed-multilingual-light-v3.0",
        ),
        {"input": "0.1"},
        "https://cohere.com/pricing",
        "2025-10-01",
    ),
    # Listed as free, so a stated zero.
    Shipped(
        "zai",
        ("glm-4.5-flash", "glm-4.6v-flash", "glm-4.7-flash"),
        {"input": "0", "cache_read": "0", "output": "0"},
        "https://docs.z.ai/guides/overview/pricing",
        "2026-03-01",
    ),
)


@dataclass(frozen=True, slots=True)
class Multiplier:
    """A published factor on all token rates, for a tier, speed or place that has no rates of its own.

    `models` is a regular expression that the model's name must match from its start. `since` is the first day it
    was offered (UTC), before which there is no known price.
    """

    provider: str
    what: str
    value: str
    factor: str
    source: str
    since: str = "2024-01-01"
    models: str = ""


MULTIPLIERS: tuple[Multiplier, ...] = (
    Multiplier("openai", "tier", "batch", "0.5", "https://developers.openai.com/api/docs/guides/batch", "2024-04-15"),
    Multiplier(
        "openai", "tier", "flex", "0.5", "https://developers.openai.com/api/docs/guides/flex-processing", "2025-04-16"
    ),
    Multiplier("openai", "tier", "ultrafast", "6", OPENAI, "2026-11-01", r"gpt-6(?:-astra|\.1-sol)$"),
    Multiplier(
        "azure",
        "tier",
        "batch",
        "0.5",
        "https://learn.microsoft.com/azure/ai-services/openai/how-to/batch",
        "2024-08-01",
    ),
    Multiplier("anthropic", "tier", "batch", "0.5", ANTHROPIC, "2024-10-08"),
    Multiplier("anthropic", "speed", "fast", "6", ANTHROPIC + "#fast-mode", "2026-02-05", r"claude-opus-4[-.][67]\b"),
    # US-only inference, from Opus 4.6 on; older models refuse the parameter.
    Multiplier(
        "anthropic",
        "geo",
        "us",
        "1.1",
        "https://platform.claude.com/docs/en/build-with-claude/data-residency",
        "2026-02-05",
        r"(?!claude-(?:v?[123]\b|instant|opus-4(?:[-.@]?$|[-.][0135]\b|[-.@]20)|sonnet-4(?:[-.@]?$|[-.][05]\b|[-.@]20)|haiku-4|4-))",
    ),
    # OpenAI's data residency: the endpoints of a region cost more for models released on or after 2026-03-05.
    Multiplier(
        "openai",
        "geo",
        "regional",
        "1.1",
        "https://developers.openai.com/api/docs/guides/data-residency",
        "2026-03-05",
        r"gpt-(?:5\.[4-9]|[6-9]|\d\d)|(?:gpt-)?chat-latest|gpt-(?:image|realtime)-[2-9]|gpt-(?:transcribe|rosalind)",
    ),
    Multiplier("openai", "geo", "regional", "1", "https://developers.openai.com/api/docs/guides/data-residency"),
    # Regional and multi-region endpoints of Vertex AI, from Sonnet 4.5 on.
    Multiplier(
        "google",
        "geo",
        "regional",
        "1.1",
        "https://cloud.google.com/vertex-ai/generative-ai/pricing#claude-models",
        "2025-09-29",
        r"claude-(?:(?:opus|sonnet|haiku)-4-[5-9]|[a-z]+-[5-9])",
    ),
    Multiplier(
        "google", "geo", "regional", "1", "https://cloud.google.com/vertex-ai/generative-ai/pricing#claude-models"
    ),
    Multiplier("google", "tier", "batch", "0.5", "https://ai.google.dev/gemini-api/docs/optimization", "2025-07-07"),
    Multiplier(
        "google",
        "tier",
        "flex",
        "0.5",
        "https://ai.google.dev/gemini-api/docs/optimization",
        "2026-04-01",
        r"gemini-",
    ),
    Multiplier(
        "google",
        "tier",
        "priority",
        "1.8",
        "https://ai.google.dev/gemini-api/docs/optimization",
        "2026-04-01",
        r"gemini-",
    ),
    Multiplier("aws", "tier", "batch", "0.5", "https://aws.amazon.com/bedrock/pricing/", "2024-08-01"),
    Multiplier("aws", "tier", "flex", "0.5", "https://aws.amazon.com/bedrock/pricing/", "2025-11-18"),
    Multiplier("aws", "tier", "priority", "1.75", "https://aws.amazon.com/bedrock/pricing/", "2025-11-18"),
    Multiplier("groq", "tier", "flex", "1", "https://console.groq.com/docs/flex-processing", "2024-12-01"),
    Multiplier("groq", "tier", "batch", "0.5", "https://console.groq.com/docs/batch", "2025-04-01"),
    Multiplier("mistral", "tier", "batch", "0.5", "https://docs.mistral.ai/capabilities/batch/", "2024-11-07"),
)

# Words for the normal price, per kind; "auto" says that the provider chose and not what.
STANDARD: dict[str, frozenset[str]] = {
    "tier": frozenset(
        {"", "auto", "default", "standard", "standard_only", "on_demand", "unspecified", "traffic_type_unspecified"}
    ),
    "speed": frozenset({"", "standard", "default", "normal"}),
    "geo": frozenset({"", "global", "default", "not_available", "unspecified"}),
}

# Lists that give their rates for batch and charge another tier by the same.
AS_BATCH: frozenset[tuple[str, str]] = frozenset({("google", "flex")})

OPENAI_WRITE_12H = "2"
"""A twelve-hour cache write of OpenAI costs twice its half-hour one (OPENAI); genai-prices has no word for it."""

CLAUDE_WRITE_1H = "2"
"""A one-hour cache write of any Claude model costs twice its input rate (ANTHROPIC), where a list omits it."""

CLAUDE_WEB_SEARCH = "10"
"""USD per 1,000 web searches of any Claude model (ANTHROPIC), where a list omits it."""

DEEPSEEK_PEAKS = "2026-08-17"
"""First day of DeepSeek's prices by the hour, which genai-prices cannot tell: it knows clocks or days."""

DEEPSEEK_WEEKENDS = "2026-08-23"
"""First day from which its peak prices leave out Saturdays and Sundays."""
