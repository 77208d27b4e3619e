"""The provider of a model when none is stated: the maker of the model, by its name."""

from __future__ import annotations

import re

from otel_tokens.pricing.shipped import PROVIDER_ALIASES, VENDOR_PREFIXES

# The first match wins. The patterns are the vendors' own names: a name that only resembles one has no maker.
_MAKERS: tuple[tuple[str, str], ...] = (
    (r"arn:aws[a-z-]*:bedrock:", "aws.bedrock"),
    (r"(?:[a-z-]+\.)?(?:anthropic|amazon|meta|mistral|cohere|ai21|deepseek|qwen|nvidia|writer)\.", "aws.bedrock"),
    (r"projects/.+/publishers/", "gcp.vertex_ai"),
    (r"claude-.*@", "gcp.vertex_ai"),
    (r"claude-", "anthropic"),
    (r"(?:models/)?(?:gemini|gemma|text-embedding-00|embedding-00)", "gcp.gemini"),
    (r"(?:ft:)?(?:gpt-|o[1-9](?:-|$)|chatgpt-|codex-|computer-use|davinci|babbage|whisper|tts-1)", "openai"),
    (r"(?:text-embedding-(?:3|ada)|omni-moderation|text-moderation|dall-e)", "openai"),
    (r"(?:labs-|open-)?(?:(?:mi|mini|magi|code|dev|pix|vox|mix)(?:stral|tral))", "mistral_ai"),
    (r"(?:kimi|moonshot)-", "moonshot_ai"),
    (r"deepseek-", "deepseek"),
    (r"grok-", "x_ai"),
    (r"glm-", "zai"),
    (r"(?:command|embed|rerank|c4ai)(?:-|$)", "cohere"),
    (r"(?:sonar|r1-1776|pplx-)", "perplexity"),
    (r"(?:minimax|m2-her)", "minimax"),
    (r"voyage-", "voyage"),
    (r"(?:qwen|qwq|qvq)", "alibaba"),
    (r"accounts/fireworks/", "fireworks"),
)

_BY_PREFIX = {"openrouter": "openrouter", "azure": "azure.ai.openai", "vertex_ai": "gcp.vertex_ai"}


def vendor_of(model: str) -> str:
    """The provider that makes `model` ("openai" for "gpt-4o" and "openai/gpt-4o"), or "" if the name does not say."""
    name = model.strip().lower()
    prefix, slash, rest = name.partition("/")
    if slash and rest and prefix not in ("models", "projects", "publishers", "accounts"):
        provider = _BY_PREFIX.get(prefix) or PROVIDER_ALIASES.get(prefix, prefix)
        return provider if prefix in VENDOR_PREFIXES or prefix in PROVIDER_ALIASES else ""
    return next((provider for pattern, provider in _MAKERS if re.match(pattern, name)), "")
