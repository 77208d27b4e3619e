"""OpenAI's SDK, and every OpenAI-compatible host called through it."""

from __future__ import annotations

from otel_tokens import conventions as c
from otel_tokens.providers.spec import SAMPLING_ATTRIBUTES, Endpoint, Provider, stainless

_IN, _OUT = "prompt_tokens_details", "completion_tokens_details"

# What the provider itself charged: USD (OpenRouter, DeepInfra), a block of USD (Perplexity), ticks of 1e-10 USD (xAI).
# OpenRouter with the user's own key (BYOK): `cost` is its fee, and the provider behind it bills `upstream_cost`.
COST = {
    "cost": "cost | cost.total_cost | estimated_cost",
    "cost_ticks": "cost_in_usd_ticks",
    "upstream_cost": "cost_details.upstream_inference_cost",
    "own_key": "is_byok",
}

TOOLS = "server_side_tool_usage_details"
"""xAI's calls of hosted tools, by name: `x_search_calls`, `code_interpreter_calls` …"""

# Compatible hosts add fields and keep OpenAI's, so one map reads them all. Alternatives, in order:
# OpenAI; DeepSeek (prompt_cache_hit_tokens); Moonshot (cached_tokens); Databricks and proxies (cache_*_input_tokens).
CHAT_USAGE = {
    "input": "prompt_tokens | input_tokens | prompt_cache_hit_tokens + prompt_cache_miss_tokens",
    "cache_read": f"{_IN}.cached_tokens | prompt_cache_hit_tokens | cached_tokens | cache_read_input_tokens"
    " | num_cached_tokens",
    "cache_write": f"{_IN}.cache_write_tokens | {_IN}.cache_creation_input_tokens | cache_write_tokens"
    " | cache_creation_input_tokens",
    "cache_write_5m": f"{_IN}.cache_creation.ephemeral_5m_input_tokens",
    "cache_write_1h": f"{_IN}.cache_creation.ephemeral_1h_input_tokens",
    "cache_write_30m": f"{_IN}.cache_write_tokens_details.ttl_30m_tokens",
    "cache_write_12h": f"{_IN}.cache_write_tokens_details.ttl_12h_tokens",
    "output": "completion_tokens | output_tokens",
    "reasoning": f"{_OUT}.reasoning_tokens",
    "reasoning_beside": "reasoning_tokens",
    "input_text": f"{_IN}.text_tokens",
    "input_audio": f"{_IN}.audio_tokens",
    "input_image": f"{_IN}.image_tokens",
    "input_video": f"{_IN}.video_tokens",
    "output_text": f"{_OUT}.text_tokens",
    "output_audio": f"{_OUT}.audio_tokens",
    "output_image": f"{_OUT}.image_tokens",
    "web_searches": "num_search_queries | server_tool_use.web_search_requests"
    " | server_side_tool_usage_details.web_search_calls",
    "total": "total_tokens",
    **COST,
    "tools": TOOLS,
}

_RIN = "input_tokens_details"
RESPONSES_USAGE = {
    "input": "input_tokens | prompt_tokens",
    "cache_read": f"{_RIN}.cached_tokens",
    "cache_write": f"{_RIN}.cache_write_tokens",
    "cache_write_30m": f"{_RIN}.cache_write_tokens_details.ttl_30m_tokens",
    "cache_write_12h": f"{_RIN}.cache_write_tokens_details.ttl_12h_tokens",
    "output": "output_tokens | completion_tokens",
    "reasoning": "output_tokens_details.reasoning_tokens",
    "input_text": f"{_RIN}.text_tokens",
    "input_audio": f"{_RIN}.audio_tokens",
    "input_image": f"{_RIN}.image_tokens",
    "output_text": "output_tokens_details.text_tokens",
    "output_audio": "output_tokens_details.audio_tokens",
    "output_image": "output_tokens_details.image_tokens",
    "total": "total_tokens",
    "web_searches": "tool_usage.web_search.num_requests | server_side_tool_usage_details.web_search_calls",
    "components": "tool_usage.image_gen",
    **COST,
    "tools": TOOLS,
}

_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})

CHAT = Endpoint(
    name="openai.chat",
    operation="chat",
    path="/chat/completions",
    usage=CHAT_USAGE,
    # Moonshot puts usage into the choice of the last chunk, Groq into x_groq.
    at=("usage", "choices.0.usage", "x_groq.usage"),
    deltas={"": "delta.content"},
    finish=("choices.*.finish_reason",),
    # Vertex AI names the kind of traffic, which is its tier.
    tier=("service_tier", "usage.extra_properties.google.traffic_type"),
    output=("choices.*.message.content", "choices.*.delta", "choices.*.message"),
    # Groq lists the tools that its compound systems ran, Gemini the searches that ground an answer.
    tools=(
        "choices.*.message.executed_tools.*",
        "choices.*.delta.executed_tools.*",
        "choices.*.grounding_metadata",
        "choices.*.message.extra_content.google.grounding_metadata",
        "choices.*.delta.extra_content.google.grounding_metadata",
    ),
    max_output=("max_completion_tokens", "max_tokens"),
    input=("messages", "tools", "functions", "response_format"),
    asks_usage=True,
    cache_write="cache_write_30m",
    attributes={**SAMPLING_ATTRIBUTES, "response_format.type": c.OUTPUT_TYPE},
)
COMPLETIONS = Endpoint(
    name="openai.completions",
    operation="text_completion",
    path="/completions",
    usage=CHAT_USAGE,
    deltas={"": "text"},
    finish=("choices.*.finish_reason",),
    output=("choices.*.text",),
    max_output=("max_tokens",),
    choices=("best_of", "n"),
    batch="prompt",
    input=("prompt", "suffix"),
    asks_usage=True,
    attributes=SAMPLING_ATTRIBUTES,
)
RESPONSES = Endpoint(
    name="openai.responses",
    operation="chat",
    path="/responses",
    usage=RESPONSES_USAGE,
    # tool_usage is billed beside usage: web searches by request, image generation by tokens of its own.
    at=("usage", "response.usage", "tool_usage=tool_usage.", "response.tool_usage=tool_usage."),
    shape="events",
    deltas={
        "response.output_text.delta": "delta",
        "response.refusal.delta": "delta",
        "response.reasoning_text.delta": "delta",
        "response.reasoning_summary_text.delta": "delta",
        "response.function_call_arguments.delta": "delta",
        "response.custom_tool_call_input.delta": "delta",
    },
    facts_on=_TERMINAL | {"response.created", "response.queued", "error"},
    final_on=_TERMINAL,
    last=_TERMINAL,
    model=("model", "response.model"),
    id=("id", "response.id"),
    finish=("status", "response.status"),
    tier=("service_tier", "response.service_tier"),
    output=("output",),
    tools=("output.*", "response.output.*", "item"),
    tools_on=frozenset({"response.output_item.done"}),
    max_output=("max_output_tokens",),
    choices=(),
    input=("input", "instructions", "tools", "text", "prompt"),
    cache_write="cache_write_30m",
    history=("previous_response_id", "conversation.id", "conversation"),
    background="background",
    pending=frozenset({"queued", "in_progress"}),
    poll="/responses/",
    attributes={
        **SAMPLING_ATTRIBUTES,
        "reasoning.effort": c.REQUEST_REASONING_LEVEL,
        "previous_response_id": c.PREVIOUS_RESPONSE_ID,
        "conversation": c.CONVERSATION_ID,
        "text.format.type": c.OUTPUT_TYPE,
    },
)
COMPACT = Endpoint(
    name="openai.responses.compact",
    operation="chat",
    path="/responses/compact",
    usage=RESPONSES_USAGE,
    choices=(),
    input=("input", "instructions"),
)
EMBEDDINGS = Endpoint(
    name="openai.embeddings",
    operation="embeddings",
    path="/embeddings",
    usage=CHAT_USAGE,
    choices=(),
    input=("input",),
    attributes={"dimensions": c.EMBEDDINGS_DIMENSIONS, "encoding_format": c.REQUEST_ENCODING_FORMATS},
)

PROVIDER = Provider(
    id="openai",
    sdk="openai",
    package="openai",
    distribution="openai",
    targets=stainless("openai"),
    endpoints=(CHAT, COMPLETIONS, RESPONSES, COMPACT, EMBEDDINGS),
    tested=("2.0", "3.57"),
    clients={
        "AzureOpenAI": "azure.ai.openai",
        "AsyncAzureOpenAI": "azure.ai.openai",
        "BedrockOpenAI": "aws.bedrock",
        "AsyncBedrockOpenAI": "aws.bedrock",
        "bedrock": "aws.bedrock",
        "vertex": "gcp.vertex_ai",
    },
)
