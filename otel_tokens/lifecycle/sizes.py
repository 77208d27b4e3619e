"""What the guard may know of a request before it is sent: lengths and bounds, no content."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import ref

from otel_tokens.lifecycle.state import CallState
from otel_tokens.usage.read import dig, dig_all, first
from otel_tokens.usage.size import measure
from otel_tokens.values import CallSizes, make

SMALLEST_CACHED = 1024
"""Shorter prompts are not cached unless the request marks what is to be (OpenAI's guide on prompt caching)."""


def sizes(active: CallState, model: str | None = None) -> CallSizes:
    """How large the call may become. Keeps the measure on the call, for its report to be compared with."""
    body, call, endpoint = active.body or {}, active.call, active.endpoint
    size = active.size = measure(endpoint, body, model or call.model)
    history = first(body, endpoint.history) if endpoint.history else None
    if isinstance(history, str):
        size.hosted = True  # what the provider puts before this request's own input
        size.extra += active.engine.remembered.get(history, 0)
    expected, upper = active.engine.estimator.request(size)
    thinking = 0
    for path in endpoint.thinking:
        asked = dig(body, path)
        if isinstance(asked, int):
            thinking = asked
            break
    cache_write = size.cache
    if cache_write is None and upper >= SMALLEST_CACHED:
        cache_write = endpoint.cache_write
    # A compaction reads all that is there and writes a summary, before the call itself does.
    passes = 2 if "context_management" in body and _compacts(body) else 1
    values = {
        "input_tokens_estimate": expected,
        "input_upper": upper * passes,
        "output_bound": call.max_output,
        "thinking": thinking,
        "choices": call.choices * passes,
        "cache_write": cache_write,
        "web_searches": size.searches,
        "audio": size.audio,
        "again": partial(_again, ref(active)),
    }
    return make(CallSizes, values)


def _compacts(body: Mapping[str, Any]) -> bool:
    """Whether the provider may shorten the conversation within the call (Anthropic's edits, OpenAI's list)."""
    asked = body.get("context_management")
    if asked is None:
        return False
    kinds = [*dig_all(asked, "edits.*.type"), *dig_all(asked, "*.type")]
    return any(str(kind).startswith("compact") for kind in kinds)


def _again(held: ref[CallState], model: str) -> CallSizes:
    # Not the call itself: it holds its reservation, and a circle would keep a dropped stream's call alive.
    active = held()
    if active is None:
        raise ReferenceError("the call is over")
    return sizes(active, model)


def remember(active: CallState, tokens: int) -> None:
    """Keep the tokens of a conversation that the provider remembers, by the ids that go on with it."""
    history = active.endpoint.history
    if not history:
        return
    body = active.body or {}
    for key in (active.facts.id, *(dig(body, path) for path in history[1:])):
        if isinstance(key, str):
            active.engine.remember(key, tokens)
