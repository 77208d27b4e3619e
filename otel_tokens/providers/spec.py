"""What differs between SDKs, as data: which functions to patch, which requests are billed, where usage stands.

A path is dotted ("choices.0.delta.content"). In a usage map a field is `alternatives` joined by " | " (the first
that is stated wins), each a sum of paths joined by " + "; "@field" stands for what another field adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from otel_tokens import conventions as c

TargetKind = Literal["request", "arequest", "attempt", "aattempt", "stream", "astream", "retry", "native_span"]
"""request/arequest: one HTTP exchange, above the SDK's retries. attempt/aattempt: one attempt of it, for clients with
middleware. stream/astream: the generator of parsed chunks.
retry: called once before each further attempt. native_span: the SDK's own function that starts a span."""


@dataclass(frozen=True, slots=True)
class Target:
    """One patched function: `name` is its path inside `module`. `optional`: absent in some supported versions."""

    module: str
    name: str
    kind: TargetKind
    optional: bool = False


@dataclass(frozen=True, slots=True, eq=False)  # compared and hashed by identity: what is compiled from it is cached
class Endpoint:
    """One billable operation: how to know its request and where its response states what.

    `path` is the end of the URL path. `at` are the places of the usage block in a response or in any chunk.
    `shape` says how its streams look: "choices" (chunks without a type, OpenAI) or "events" (chunks with one);
    `deltas` are the places of output text in a chunk (for "events": by event type), `facts_on` the event types
    that carry facts, `final_on` those after which usage is complete, `last` those that end a stream. A
    request with `background` set may be answered with one of the `pending` finish reasons: its usage is found at
    `poll` + its id later. `asks_usage`: streams state usage only when asked. `cache_write` is the field of `Usage`
    that prompts are written to a cache as without being asked for; `history` are the places of the id of what the
    provider remembers of a conversation.
    `batch` is the key whose list asks for the answers to each of its entries.
    """

    name: str
    operation: str
    path: str
    usage: Mapping[str, str]
    at: tuple[str, ...] = ("usage",)
    shape: Literal["choices", "events"] = "choices"
    deltas: Mapping[str, str] = field(default_factory=dict[str, str])
    facts_on: frozenset[str] = frozenset()
    final_on: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()
    model: tuple[str, ...] = ("model",)
    id: tuple[str, ...] = ("id",)
    finish: tuple[str, ...] = ()
    tier: tuple[str, ...] = ("service_tier",)
    speed: tuple[str, ...] = ()
    geo: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    max_output: tuple[str, ...] = ()
    thinking: tuple[str, ...] = ()
    choices: tuple[str, ...] = ("n",)
    batch: str = ""
    input: tuple[str, ...] = ()
    asks_usage: bool = False
    cache_write: str | None = None
    history: tuple[str, ...] = ()
    background: str | None = None
    pending: frozenset[str] = frozenset()
    poll: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Provider:
    """One SDK: its package, what to patch, what is billed. `id` bills when the host names nobody else.

    `tested` are the (lowest, highest) major.minor versions our tests run on; a newer one is patched with a note.
    `native_switch` is the environment variable that turns the SDK's own spans off. `clients` names who bills the
    calls of a client class (or of the SDK's own name for a cloud) when its host is not known: a proxy before it.
    """

    id: str
    sdk: str
    package: str
    distribution: str
    targets: tuple[Target, ...]
    endpoints: tuple[Endpoint, ...]
    tested: tuple[str, str]
    native_switch: str | None = None
    clients: Mapping[str, str] = field(default_factory=dict[str, str])


def stainless(package: str, *, native_span: bool = False, middleware: bool = False) -> tuple[Target, ...]:
    """The targets that every SDK of the Stainless generator shares."""
    base, streaming = f"{package}._base_client", f"{package}._streaming"
    targets = (
        Target(base, "SyncAPIClient.request", "request"),
        Target(base, "AsyncAPIClient.request", "arequest"),
        Target(streaming, "Stream.__stream__", "stream"),
        Target(streaming, "AsyncStream.__stream__", "astream"),
        Target(base, "SyncAPIClient._sleep_for_retry", "retry", optional=True),
        Target(base, "AsyncAPIClient._sleep_for_retry", "retry", optional=True),
    )
    if middleware:
        targets += (
            Target(base, "SyncAPIClient._attempt_request", "attempt", optional=True),
            Target(base, "AsyncAPIClient._attempt_request", "aattempt", optional=True),
        )
    if native_span:
        targets += (Target(base, "start_api_call_span", "native_span", optional=True),)
    return targets


SAMPLING_ATTRIBUTES: Mapping[str, str] = {
    "temperature": c.REQUEST_TEMPERATURE,
    "top_p": c.REQUEST_TOP_P,
    "top_k": c.REQUEST_TOP_K,
    "frequency_penalty": c.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": c.REQUEST_PRESENCE_PENALTY,
    "seed": c.REQUEST_SEED,
    "stop": c.REQUEST_STOP_SEQUENCES,
    "stop_sequences": c.REQUEST_STOP_SEQUENCES,
    "n": c.REQUEST_CHOICE_COUNT,
    "reasoning_effort": c.REQUEST_REASONING_LEVEL,
}
"""Request keys that the conventions name, as far as OpenAI and Anthropic share them."""
