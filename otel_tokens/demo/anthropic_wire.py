"""Builds Anthropic's wire format from plain numbers: messages, streams, token counts and errors.

`usage` is our own `Usage` (inclusive totals), or any raw usage block, which is sent unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from otel_tokens.demo.openai_wire import AnyUsage, new_id, pieces
from otel_tokens.demo.wire import Event, Json, Reply
from otel_tokens.values import Component, Usage

_SERVED = "message"  # the kind of an iteration that the top-level numbers already contain


def text(words: str) -> Json:
    """A text block."""
    return {"type": "text", "text": words, "citations": None}


def thinking(words: str) -> Json:
    """A block of visible reasoning."""
    return {"type": "thinking", "thinking": words, "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}


def tool_use(name: str, arguments: Mapping[str, Any]) -> Json:
    """A block that asks the caller to run a tool."""
    return {"type": "tool_use", "id": new_id("toolu_"), "name": name, "input": dict(arguments), "caller": _DIRECT}


_DIRECT = {"type": "direct"}


def _counts(usage: Usage) -> Json:
    """The counts of `usage` in Anthropic's convention: input_tokens without the cache."""
    return {
        "input_tokens": usage.input - usage.cache_read - usage.cache_write,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output,
    }


def _iteration(part: Component) -> Json:
    model: Json = {"model": part.model} if part.model else {}
    return {"type": part.kind, **model, **_counts(part.usage)}


def message_usage(usage: AnyUsage, **more: Any) -> Mapping[str, Any] | None:
    """The usage block. Components become `iterations`, plus one for the message itself if they do not contain it."""
    if not isinstance(usage, Usage):
        return usage
    block = _counts(usage) | {"service_tier": "standard"}
    if usage.reasoning:
        block["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    if usage.web_searches or usage.web_fetches:
        block["server_tool_use"] = {
            "web_search_requests": usage.web_searches,
            "web_fetch_requests": usage.web_fetches,
        }
    if usage.components:
        block["iterations"] = [_iteration(part) for part in usage.components]
        if not any(part.kind in (_SERVED, "fallback_message") for part in usage.components):
            block["iterations"].append({"type": _SERVED, **_counts(usage)})
    return block | more


def message(model: str, usage: AnyUsage, content: str | Sequence[Json], **more: Any) -> Json:
    """A `message`. `content` is text or blocks. With a tool_use block the stop reason is tool_use."""
    blocks = [text(content)] if isinstance(content, str) else list(content)
    asks = any(block["type"] == "tool_use" for block in blocks)
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": "tool_use" if asks else "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "usage": message_usage(usage),
        **more,
    }


def _block_events(block: Json) -> tuple[Json, list[Json]]:
    """The block as in its start event, and the deltas that fill it."""
    kind = block["type"]
    if kind == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
    if kind == "thinking":
        deltas: list[Json] = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
        return {**block, "thinking": "", "signature": ""}, deltas
    if kind in ("tool_use", "server_tool_use"):
        # The first fragment is empty on the real wire too.
        parts = ["", *pieces(json.dumps(block["input"]))]
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]
    return block, []


# The usage in message_start: the input, and a placeholder for the output. message_delta has the rest.
_AT_END = ("output_tokens_details", "server_tool_use", "iterations")
_DELTA = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens", *_AT_END)


def message_events(whole: Json) -> list[Event]:
    """The stream of a message; the counts of its `message_delta` are cumulative."""
    usage: Mapping[str, Any] = whole["usage"] or {}
    opening = {name: value for name, value in usage.items() if name not in _AT_END} | {"output_tokens": 1}
    start: Json = {**whole, "content": [], "stop_reason": None, "stop_details": None, "usage": opening}
    events: list[Json] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(whole["content"]):
        shown, deltas = _block_events(block)
        events.append({"type": "content_block_start", "index": index, "content_block": shown})
        if index == 0:
            events.append({"type": "ping"})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {name: whole[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    final = {name: usage[name] for name in _DELTA if name in usage}
    events.append({"type": "message_delta", "delta": delta, "usage": final})
    events.append({"type": "message_stop"})
    return [(event["type"], event) for event in events]


def error_body(kind: str, words: str) -> Json:
    """The body of an error, for replies and streams."""
    return {"type": "error", "error": {"type": kind, "message": words}, "request_id": new_id("req_")}


def error(status: int, kind: str, words: str) -> Reply:
    """An error reply. Errors that clients retry (429, 5xx) ask for a retry after a millisecond."""
    headers = {"retry-after-ms": "1"} if status == 429 or status >= 500 else {}
    return Reply(status, error_body(kind, words), headers=headers)


def error_event(kind: str, words: str) -> Event:
    """An error event in a stream. The SDK raises it while the caller iterates."""
    return ("error", error_body(kind, words))
