"""Builds OpenAI's wire format from plain numbers: chat, legacy completions, responses, embeddings, and their streams.

Each builder makes a whole payload. The `*_events` functions split a payload into the events of its stream.
`usage` is our own `Usage` (inclusive totals), or any raw usage block, which is sent unchanged.
"""

from __future__ import annotations

import base64
import itertools
import re
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from otel_tokens.demo.wire import Event, Json, Reply
from otel_tokens.values import Usage

AnyUsage = Usage | Mapping[str, Any] | None
DONE: Event = (None, "[DONE]")


def new_id(prefix: str) -> str:
    """A new id in the provider's format."""
    return f"{prefix}{uuid.uuid4().hex}"


def pieces(text: str) -> list[str]:
    """Splits text into words, each with the space before it. A stream sends one at a time."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text) or [text]


def _write_ttls(usage: Usage) -> Json:
    if not (usage.cache_write_30m or usage.cache_write_12h):
        return {}
    ttls = {"ttl_30m_tokens": usage.cache_write_30m, "ttl_12h_tokens": usage.cache_write_12h}
    return {"cache_write_tokens_details": ttls}


def chat_usage(usage: AnyUsage) -> Mapping[str, Any] | None:
    """The usage block of chat and legacy completions."""
    if not isinstance(usage, Usage):
        return usage
    writes: Json = {"cache_write_tokens": usage.cache_write} if usage.cache_write else {}
    return {
        **usage.to_openai(),
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            "audio_tokens": usage.input_audio,
            **writes,
            **_write_ttls(usage),
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": usage.output_audio,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def responses_usage(usage: AnyUsage) -> Mapping[str, Any] | None:
    """The usage block of the Responses API."""
    if not isinstance(usage, Usage):
        return usage
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
            **_write_ttls(usage),
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output if usage.total is None else usage.total,
    }


def chat_completion(
    model: str, usage: AnyUsage, text: str = "", *, call: tuple[str, str] | None = None, choices: int = 1, **more: Any
) -> Json:
    """A `chat.completion`. `call` is (tool name, arguments as JSON) instead of text; `finish` its finish reason."""
    finish = more.pop("finish", "tool_calls" if call else "stop")
    message: Json = {"role": "assistant", "content": None if call else text, "refusal": None, "annotations": []}
    if call:
        function = {"name": call[0], "arguments": call[1]}
        message["tool_calls"] = [{"id": new_id("call_"), "type": "function", "function": function}]
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish} for index in range(choices)
        ],
        "usage": chat_usage(usage),
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
        **more,
    }


def _chat_deltas(message: Json) -> list[Json]:
    deltas: list[Json] = [{"role": "assistant", "content": "", "refusal": None}]
    if message.get("content"):
        deltas += [{"content": piece} for piece in pieces(message["content"])]
    for index, call in enumerate(message.get("tool_calls") or ()):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        opening: Json = {**call, "index": index, "function": {"name": name, "arguments": ""}}
        deltas[0]["content"] = None
        deltas.append({"tool_calls": [opening]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": p}}]} for p in pieces(arguments)]
    return [*deltas, {}]


def chat_events(completion: Json, *, include_usage: bool = False) -> list[Event]:
    """The stream of a chat completion.

    With `include_usage` a last chunk without choices carries the usage and every other one a null; without it the
    stream says nothing about usage.
    """
    head = {k: v for k, v in completion.items() if k not in ("choices", "usage")} | {"object": "chat.completion.chunk"}
    nothing: Json = {"usage": None} if include_usage else {}
    events: list[Event] = []
    for choice in completion["choices"]:
        deltas = _chat_deltas(choice["message"])
        for number, delta in enumerate(deltas, 1):
            finish = choice["finish_reason"] if number == len(deltas) else None
            part = {"index": choice["index"], "delta": delta, "logprobs": None, "finish_reason": finish}
            events.append((None, {**head, "choices": [part], **nothing}))
    if include_usage:
        events.append((None, {**head, "choices": [], "usage": completion["usage"]}))
    return [*events, DONE]


def completion(model: str, usage: AnyUsage, text: str, **more: Any) -> Json:
    """A legacy `text_completion`."""
    finish = more.pop("finish", "stop")
    return {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": finish}],
        "usage": chat_usage(usage),
        **more,
    }


def completion_events(whole: Json, *, include_usage: bool = False) -> list[Event]:
    """The stream of a legacy completion; usage as in `chat_events`."""
    head = {k: v for k, v in whole.items() if k not in ("choices", "usage")}
    nothing: Json = {"usage": None} if include_usage else {}
    choice = whole["choices"][0]
    parts: list[Json] = [{**choice, "text": p, "finish_reason": None} for p in pieces(choice["text"])]
    parts.append({**choice, "text": ""})
    events: list[Event] = [(None, {**head, "choices": [part], **nothing}) for part in parts]
    if include_usage:
        events.append((None, {**head, "choices": [], "usage": whole["usage"]}))
    return [*events, DONE]


def response(model: str, usage: AnyUsage, text: str = "", *, call: tuple[str, str] | None = None, **more: Any) -> Json:
    """A `response`. Reasoning tokens bring a reasoning item; `status` completed, incomplete, failed or queued."""
    item: Json = {"id": new_id("msg_"), "type": "message", "status": "completed", "role": "assistant"}
    item["content"] = [{"type": "output_text", "annotations": [], "logprobs": [], "text": text}]
    if call:
        item = {"id": new_id("fc_"), "type": "function_call", "status": "completed", "call_id": new_id("call_")}
        item |= {"name": call[0], "arguments": call[1]}
    reasoning = [{"id": new_id("rs_"), "type": "reasoning", "summary": list[str]()}]
    thought = isinstance(usage, Usage) and usage.reasoning > 0
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": model,
        "output": [*(reasoning if thought else ()), item],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": responses_usage(usage),
        "metadata": {},
        **more,
    }


def _text_events(item: Json, place: Json) -> list[Json]:
    events: list[Json] = []
    for index, part in enumerate(item["content"]):
        at = {**place, "content_index": index}
        text: str = part["text"]
        events.append({"type": "response.content_part.added", **at, "part": {**part, "text": ""}})
        delta = "response.output_text.delta"
        events += [{"type": delta, **at, "delta": piece, "logprobs": []} for piece in pieces(text)]
        events.append({"type": "response.output_text.done", **at, "text": text, "logprobs": []})
        events.append({"type": "response.content_part.done", **at, "part": part})
    return events


def _item_events(item: Json, index: int) -> list[Json]:
    place = {"item_id": item["id"], "output_index": index}
    opening: Json = {**item, "status": "in_progress"} if "status" in item else item
    events: list[Json] = []
    if item["type"] == "message":
        opening = {**opening, "content": []}
        events = _text_events(item, place)
    elif item["type"] == "function_call":
        opening = {**opening, "arguments": ""}
        delta, done = "response.function_call_arguments.delta", "response.function_call_arguments.done"
        events = [{"type": delta, **place, "delta": piece} for piece in pieces(item["arguments"])]
        events.append({"type": done, **place, "name": item["name"], "arguments": item["arguments"]})
    return [
        {"type": "response.output_item.added", "output_index": index, "item": opening},
        *events,
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ]


def response_events(whole: Json) -> list[Event]:
    """The stream of a response, from `response.created` to `response.completed` (or `.incomplete`, `.failed`)."""
    opening: Json = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[Json] = [{"type": f"response.{name}", "response": opening} for name in ("created", "in_progress")]
    events += itertools.chain.from_iterable(_item_events(item, index) for index, item in enumerate(whole["output"]))
    events.append({"type": f"response.{whole['status']}", "response": whole})
    return [(event["type"], {**event, "sequence_number": number}) for number, event in enumerate(events)]


def compaction(usage: AnyUsage, kept: Sequence[Json] = ()) -> Json:
    """The answer of `/responses/compact`: the messages that stay, and one compacted item."""
    item = {"id": new_id("cmp_"), "type": "compaction", "encrypted_content": "gAAAAABpM0Yj"}
    return {
        "id": new_id("resp_"),
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*kept, item],
        "usage": responses_usage(usage),
    }


def embeddings(model: str, tokens: int, *, count: int = 1, dimensions: int = 8, packed: bool = False) -> Json:
    """`count` vectors; `packed` as base64 of little-endian float32, the SDK's default."""

    def vector(row: int) -> list[float] | str:
        numbers = [((row * 31 + column * 7) % 64 - 32) / 64 for column in range(dimensions)]
        return base64.b64encode(struct.pack(f"<{dimensions}f", *numbers)).decode() if packed else numbers

    return {
        "object": "list",
        "data": [{"object": "embedding", "index": row, "embedding": vector(row)} for row in range(count)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def error(status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> Reply:
    """An error reply. 429 and 5xx ask the SDK for a retry after a millisecond, so that tests need not wait."""
    headers = {"retry-after-ms": "1"} if status == 429 or status >= 500 else {}
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Reply(status, body, headers=headers)


def error_event(message: str, kind: str = "server_error", code: str | None = None) -> Event:
    """An error event in a chat stream. The SDK raises it while the caller iterates."""
    return (None, {"error": {"message": message, "type": kind, "param": None, "code": code}})
