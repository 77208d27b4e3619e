"""What differs between SDKs, as data: the functions to patch, the billed requests, the places of usage.

A path is dotted ("choices.0.delta.content"). In a usage map a field is a list of alternatives joined by " | ": the
first that is stated counts. An alternative is a sum of paths joined by " + ". "@field" stands for what another field
adds.
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
    """One billed operation: its request, and the places of facts in its response.

    `path` is the end of the URL path. `at` are the places of the usage block in a response or chunk. `shape` is
    "choices" (chunks without a type, OpenAI) or "events" (chunks with a type). `deltas` are the places of output text
    in a chunk (for "events": by event type). `facts_on` are the event types that carry facts, `final_on` those that
    complete the usage, `last` those that end a stream.

    A request with `background` set may get an answer with one of the `pending` finish reasons. Its usage is at `poll`
    and its id later. `asks_usage`: streams report usage only if the request asks for it. `cache_write` is the field of
    `Usage` for prompts that are written to a cache unasked. `history` are the places of the id of a conversation that
    the provider stores. `batch` is the key whose list has one prompt for each answer.

    `tools` are the places of items of the answer that may be calls of hosted tools, `tools_on` the event types that
    carry one such item. `served` is the list in the usage block that names the model that served. `refused` are the
    places of a refusal's category.
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
    tools: tuple[str, ...] = ()
    tools_on: frozenset[str] = frozenset()
    served: str = ""
    refused: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Provider:
    """One SDK: its package, its targets, its billed operations.

    `id` is the provider that bills, unless the host names another one. `tested` are the lowest and highest major.minor
    versions that the tests run on; a newer version is patched with a note. `native_switch` is the environment variable
    that turns the SDK's own spans off. `clients` has the provider of a client class (or of the SDK's own name for a
    cloud) for a host that is not known, such as a proxy.
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
