"""Anthropic's SDK: its own API, Bedrock, Vertex, Foundry and the like, and Anthropic-compatible hosts."""

from __future__ import annotations

from otel_tokens import conventions as c
from otel_tokens.providers.spec import Endpoint, Provider, stainless

MESSAGES_USAGE = {
    # Anthropic's input_tokens excludes the cache; ours includes it.
    "input": "input_tokens + cache_read_input_tokens + @cache_write",
    "cache_read": "cache_read_input_tokens",
    "cache_write": "cache_creation_input_tokens"
    " | cache_creation.ephemeral_5m_input_tokens + cache_creation.ephemeral_1h_input_tokens",
    "cache_write_5m": "cache_creation.ephemeral_5m_input_tokens",
    "cache_write_1h": "cache_creation.ephemeral_1h_input_tokens",
    "output": "output_tokens",
    "reasoning": "output_tokens_details.thinking_tokens",
    "web_searches": "server_tool_use.web_search_requests",
    "web_fetches": "server_tool_use.web_fetch_requests",
    "components": "iterations",
    "cost": "cost",
}

MESSAGES = Endpoint(
    name="anthropic.messages",
    operation="chat",
    path="/v1/messages",
    usage=MESSAGES_USAGE,
    at=("usage", "message.usage"),
    shape="events",
    deltas={"content_block_delta": "delta.text"},
    facts_on=frozenset({"message_start", "message_delta", "error"}),
    final_on=frozenset({"message_delta"}),
    last=frozenset({"message_stop"}),
    model=("model", "message.model"),
    id=("id", "message.id"),
    finish=("stop_reason", "delta.stop_reason"),
    tier=("usage.service_tier", "message.usage.service_tier"),
    speed=("usage.speed", "message.usage.speed"),
    geo=("usage.inference_geo", "message.usage.inference_geo"),
    output=("content", "delta"),
    tools=("content.*", "content_block"),
    tools_on=frozenset({"content_block_start"}),
    served="iterations",
    refused=("stop_details.category", "delta.stop_details.category"),
    max_output=("max_tokens",),
    thinking=("thinking.budget_tokens",),
    choices=(),
    input=("messages", "system", "tools", "output_config", "output_format"),
    attributes={
        "temperature": c.REQUEST_TEMPERATURE,
        "top_p": c.REQUEST_TOP_P,
        "top_k": c.REQUEST_TOP_K,
        "stop_sequences": c.REQUEST_STOP_SEQUENCES,
        "output_config.effort": c.REQUEST_REASONING_LEVEL,
    },
)

PROVIDER = Provider(
    id="anthropic",
    sdk="anthropic",
    package="anthropic",
    distribution="anthropic",
    targets=stainless("anthropic", native_span=True, middleware=True),
    endpoints=(MESSAGES,),
    tested=("1.0", "2.14"),
    native_switch="ANTHROPIC_OPEN_TELEMETRY",
    clients={
        f"{prefix}{name}": provider
        for name, provider in {
            "AnthropicBedrock": "aws.bedrock",
            "AnthropicBedrockMantle": "aws.bedrock",
            "AnthropicVertex": "gcp.vertex_ai",
            "AnthropicGoogleCloud": "gcp.vertex_ai",
            "AnthropicFoundry": "azure.ai.inference",
            "AnthropicAWS": "anthropic",  # Anthropic's own platform, sold through AWS
        }.items()
        for prefix in ("", "Async")
    },
)
