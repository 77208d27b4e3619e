"""Names of all attributes, metrics, labels, units and bucket lists. Data only.

`gen_ai.*` follows OpenTelemetry's GenAI conventions (semantic-conventions-genai, after the split of
`token.usage` into counters); everything they do not define lives under `otel_tokens.*`, our stable API.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCOPE = "otel_tokens"
"""Name of our one meter and one tracer."""

# ---- attributes: OpenTelemetry -------------------------------------------------------------------------------
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
REQUEST_REASONING_LEVEL = "gen_ai.request.reasoning.level"
REQUEST_ENCODING_FORMATS = "gen_ai.request.encoding_formats"
EMBEDDINGS_DIMENSIONS = "gen_ai.embeddings.dimension.count"
OUTPUT_TYPE = "gen_ai.output.type"
CONVERSATION_ID = "gen_ai.conversation.id"
PREVIOUS_RESPONSE_ID = "gen_ai.request.previous_response.id"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
RESPONSE_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
SERVICE_TIER = "openai.response.service_tier"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"
TOKEN_MODALITY = "gen_ai.token.modality"
TOKEN_TYPE_141 = "gen_ai.token.type"  # removed from the conventions after 1.41
RESEND_COUNT = "http.request.resend_count"

USAGE_INPUT = "gen_ai.usage.input_tokens"
USAGE_OUTPUT = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE = "gen_ai.usage.cache_write.input_tokens"
USAGE_CACHE_CREATION_141 = "gen_ai.usage.cache_creation.input_tokens"
USAGE_REASONING = "gen_ai.usage.reasoning.output_tokens"
USAGE_MODALITY: dict[str, str] = {
    "input_text": "gen_ai.usage.text.input_tokens",
    "input_audio": "gen_ai.usage.audio.input_tokens",
    "input_image": "gen_ai.usage.image.input_tokens",
    "cache_read_text": "gen_ai.usage.text.cache_read.input_tokens",
    "cache_read_audio": "gen_ai.usage.audio.cache_read.input_tokens",
    "cache_read_image": "gen_ai.usage.image.cache_read.input_tokens",
    "output_text": "gen_ai.usage.text.output_tokens",
    "output_audio": "gen_ai.usage.audio.output_tokens",
    "output_image": "gen_ai.usage.image.output_tokens",
}

# ---- attributes: ours ----------------------------------------------------------------------------------------
NAMESPACE = "otel_tokens"
COST_TOTAL = "otel_tokens.cost.total"
COST_CURRENCY = "otel_tokens.cost.currency"
COST_SOURCE = "otel_tokens.cost.source"
COST_PART_PREFIX = "otel_tokens.cost."
COST_LOCAL = "otel_tokens.cost.local_total"
PRICING_STATUS = "otel_tokens.pricing.status"
PRICING_VERSION = "otel_tokens.pricing.version"
PRICING_RULE = "otel_tokens.pricing.rule"
USAGE_ORIGIN = "otel_tokens.usage.origin"
USAGE_FLAGS = "otel_tokens.usage.flags"
USAGE_TTL: dict[str, str] = {
    "cache_write_5m": "otel_tokens.usage.cache_write_5m.input_tokens",
    "cache_write_30m": "otel_tokens.usage.cache_write_30m.input_tokens",
    "cache_write_1h": "otel_tokens.usage.cache_write_1h.input_tokens",
    "cache_write_12h": "otel_tokens.usage.cache_write_12h.input_tokens",
}
USAGE_WEB_SEARCHES = "otel_tokens.usage.web_searches"
USAGE_WEB_FETCHES = "otel_tokens.usage.web_fetches"
USAGE_COMPONENTS_INPUT = "otel_tokens.usage.components.input_tokens"
USAGE_COMPONENTS_OUTPUT = "otel_tokens.usage.components.output_tokens"
OUTCOME = "otel_tokens.outcome"
ATTEMPTS = "otel_tokens.attempts"
CALL_ID = "otel_tokens.call.id"
TOKEN_TYPE = "otel_tokens.token.type"
REASON = "otel_tokens.reason"
TAG_PREFIX = "otel_tokens.tag."
USAGE_ESTIMATED_INPUT = "otel_tokens.usage.estimated.input_tokens"
USAGE_ESTIMATED_OUTPUT = "otel_tokens.usage.estimated.output_tokens"
USAGE_MISSING_REASON = "otel_tokens.usage.missing_reason"
RESPONSE_TIER = "otel_tokens.response.service_tier"  # of providers other than OpenAI, whose own name is SERVICE_TIER
RESPONSE_SPEED = "otel_tokens.response.speed"
RESPONSE_GEO = "otel_tokens.response.geo"
RESPONSE_CHUNKS = "otel_tokens.response.chunks"
SERVICE_INSTANCE = "service.instance.id"
BUDGET_NAME = "otel_tokens.budget.name"
BUDGET_SCOPE = "otel_tokens.budget.scope"
BUDGET_DECISION = "otel_tokens.budget.decision"
BUDGET_EVENT = "otel_tokens.budget.event"
BUDGET_RATIO = "otel_tokens.budget.usage_ratio"
BUDGET_EXCEEDED_EVENT = "otel_tokens.budget.exceeded"
BUDGET_THRESHOLD_EVENT = "otel_tokens.budget.threshold"
VERSION = "otel_tokens.version"

# The tags that tags() names; a tag of the application's own becomes TAG_PREFIX + its name.
TAGS: dict[str, str] = {
    "session": "otel_tokens.session",
    "task": "otel_tokens.task",
    "tenant": "otel_tokens.tenant",
    "user": "otel_tokens.user",
    "agent": "otel_tokens.agent",
    "feature": "otel_tokens.feature",
}


def tag_attribute(name: str) -> str:
    """The attribute that carries the tag `name`."""
    return TAGS.get(name) or TAG_PREFIX + name


# Names under which other backends look for a call's cost (opt-in, OTEL_TOKENS_COST_ALIASES).
COST_ALIASES = (
    "gen_ai.usage.cost",  # Langfuse, OpenLIT, LiteLLM
    "operation.cost",  # Logfire
    "llm.cost.total",  # Phoenix
    "gen_ai.usage.cost.amount",  # proposal; breaks Langfuse's totals
)
# An attribute cannot be a leaf and a namespace at once.
COST_ALIASES_EXCLUSIVE = ("gen_ai.usage.cost", "gen_ai.usage.cost.amount")
COST_ALIAS_CURRENCY = "gen_ai.usage.cost.currency"
COST_ALIAS_SOURCE = "gen_ai.usage.cost.source"

# ---- metrics -------------------------------------------------------------------------------------------------
Kind = Literal["counter", "histogram", "gauge"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name, instrument kind, UCUM unit and description."""

    name: str
    kind: Kind
    unit: str
    description: str


SECONDS_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKEN_BUCKETS = tuple(float(4**n) for n in range(14))
COST_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

_TOKEN = "{token}"
TOKENS_INPUT = Metric(
    "gen_ai.client.inference.usage.input_tokens", "counter", _TOKEN, "Input tokens, cached ones included."
)
TOKENS_OUTPUT = Metric(
    "gen_ai.client.inference.usage.output_tokens", "counter", _TOKEN, "Output tokens, reasoning included."
)
TOKENS_CACHE_READ = Metric(
    "gen_ai.client.inference.usage.cache_read.input_tokens", "counter", _TOKEN, "Input tokens read from a cache."
)
TOKENS_CACHE_WRITE = Metric(
    "gen_ai.client.inference.usage.cache_write.input_tokens", "counter", _TOKEN, "Input tokens written to a cache."
)
TOKENS_REASONING = Metric(
    "gen_ai.client.inference.usage.reasoning.output_tokens", "counter", _TOKEN, "Output tokens spent on reasoning."
)
DURATION = Metric("gen_ai.client.inference.duration", "histogram", "s", "Duration of an inference call.")
OPERATION_DURATION = Metric("gen_ai.client.operation.duration", "histogram", "s", "Duration of a GenAI operation.")
FIRST_CHUNK = Metric(
    "gen_ai.client.inference.time_to_first_chunk", "histogram", "s", "Time from request to the first chunk of a stream."
)
PER_CHUNK = Metric(
    "gen_ai.client.inference.time_per_output_chunk", "histogram", "s", "Mean time between the chunks of a stream."
)
CALL_INPUT_TOKENS = Metric(
    "gen_ai.client.inference.operation.input_tokens", "histogram", _TOKEN, "Input tokens of one call."
)
CALL_OUTPUT_TOKENS = Metric(
    "gen_ai.client.inference.operation.output_tokens", "histogram", _TOKEN, "Output tokens of one call."
)
TOKEN_USAGE_141 = Metric("gen_ai.client.token.usage", "histogram", _TOKEN, "Tokens used, by type.")
FIRST_CHUNK_141 = Metric(
    "gen_ai.client.operation.time_to_first_chunk", "histogram", "s", "Time to the first chunk of a stream."
)
PER_CHUNK_141 = Metric(
    "gen_ai.client.operation.time_per_output_chunk", "histogram", "s", "Mean time between the chunks of a stream."
)
COST = Metric("otel_tokens.cost", "counter", "USD", "Money spent on LLM calls, by component.")
CALL_COST = Metric("otel_tokens.operation.cost", "histogram", "USD", "Money spent on one call.")
CALLS = Metric("otel_tokens.calls", "counter", "{call}", "Calls that have ended, by outcome.")
ESTIMATED_TOKENS = Metric(
    "otel_tokens.usage.estimated_tokens", "counter", _TOKEN, "Tokens we estimated; never part of the gen_ai counters."
)
USAGE_MISSING = Metric(
    "otel_tokens.usage.missing", "counter", "{operation}", "Calls whose usage the provider did not (fully) report."
)
PRICING_MISSES = Metric("otel_tokens.pricing.misses", "counter", "{operation}", "Calls whose price is unknown.")
LEDGER_ERRORS = Metric("otel_tokens.ledger.errors", "counter", "{error}", "Records the ledger could not keep.")
FAULTS = Metric("otel_tokens.faults", "counter", "{fault}", "Faults of otel_tokens itself that were contained.")
BUILD_INFO = Metric("otel_tokens.build_info", "gauge", "1", "Always 1; the version is its attribute.")
BUDGET_COST_LIMIT = Metric("otel_tokens.budget.cost.limit", "gauge", "USD", "Limit of a money budget.")
BUDGET_COST_USED = Metric("otel_tokens.budget.cost.used", "gauge", "USD", "Used of a money budget in this window.")
BUDGET_TOKEN_LIMIT = Metric("otel_tokens.budget.token.limit", "gauge", _TOKEN, "Limit of a token budget.")
BUDGET_TOKEN_USED = Metric("otel_tokens.budget.token.used", "gauge", _TOKEN, "Used of a token budget in this window.")
BUDGET_USAGE_RATIO = Metric("otel_tokens.budget.usage_ratio", "gauge", "1", "Used share of a budget, 1 = exhausted.")
BUDGET_DECISIONS = Metric("otel_tokens.budget.decisions", "counter", "{decision}", "Decisions of the guard.")

OTHER_LABEL = "__other__"
"""What a label value becomes once a label has too many values."""

SEMCONV_MODES = ("latest", "1.41", "both")

# ---- sets --------------------------------------------------------------------------------------------------------
OPENAI_TIERS = frozenset({"openai", "azure.ai.openai"})
"""Providers whose service tier is told under OpenAI's own name, SERVICE_TIER."""

INFERENCE_OPERATIONS = frozenset({"chat", "generate_content", "text_completion"})
"""Operations whose calls are inferences; the others (embeddings …) have `OPERATION_DURATION` and no output."""

# ---- what other instrumentations call the same things, for spans that they made ---------------------------------
# First name found counts. OTel GenAI in its versions, OpenLLMetry and OpenLIT (gen_ai.usage.prompt_tokens,
# llm.usage.*), OpenInference (llm.token_count.*).
FOREIGN_NAMES: dict[str, tuple[str, ...]] = {
    "provider": (PROVIDER, "gen_ai.system", "llm.provider", "llm.vendor", "llm.system"),
    "operation": (OPERATION, "llm.request.type", "openinference.span.kind"),
    "model": (REQUEST_MODEL, "llm.request.model", "llm.model_name", "embedding.model_name"),
    "response_model": (RESPONSE_MODEL, "llm.response.model"),
    "tier": (SERVICE_TIER, RESPONSE_TIER, "gen_ai.openai.response.service_tier", "gen_ai.response.service_tier"),
    "speed": (RESPONSE_SPEED,),
    "geo": (RESPONSE_GEO,),
    "input": (USAGE_INPUT, "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens", "llm.token_count.prompt"),
    "output": (
        USAGE_OUTPUT,
        "gen_ai.usage.completion_tokens",
        "llm.usage.completion_tokens",
        "llm.token_count.completion",
    ),
    "cache_read": (
        USAGE_CACHE_READ,
        "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.input_tokens.cached",
        "llm.usage.cache_read_input_tokens",
        "llm.token_count.prompt_details.cache_read",
    ),
    "cache_write": (
        USAGE_CACHE_WRITE,
        USAGE_CACHE_CREATION_141,
        "gen_ai.usage.cache_creation_input_tokens",
        "llm.usage.cache_creation_input_tokens",
        "llm.token_count.prompt_details.cache_write",
    ),
    "reasoning": (
        USAGE_REASONING,
        "gen_ai.usage.reasoning_tokens",
        "llm.usage.reasoning_tokens",
        "llm.token_count.completion_details.reasoning",
    ),
    "input_audio": (USAGE_MODALITY["input_audio"], "llm.token_count.prompt_details.audio"),
    "output_audio": (USAGE_MODALITY["output_audio"], "llm.token_count.completion_details.audio"),
    "input_image": (USAGE_MODALITY["input_image"],),
    "output_image": (USAGE_MODALITY["output_image"],),
    "cache_read_audio": (USAGE_MODALITY["cache_read_audio"],),
    "cache_read_image": (USAGE_MODALITY["cache_read_image"],),
    **{name: (attribute,) for name, attribute in USAGE_TTL.items()},
    "web_searches": (USAGE_WEB_SEARCHES,),
}

FOREIGN_OPERATIONS: dict[str, str] = {
    "chat": "chat",
    "completion": "text_completion",
    "text_completion": "text_completion",
    "generate_content": "generate_content",
    "embedding": "embeddings",
    "embeddings": "embeddings",
    "llm": "chat",
}
"""Operations of one billed call by other names, lower case. Agents, chains and tools are not among them."""
