"""In-process transports: the real SDKs without a network, so that what is left is their work and ours."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai

WORDS = 200
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1760000000,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "default",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "The sea is wide. " * 20}}
    ],
    "usage": {
        "prompt_tokens": 1200,
        "completion_tokens": 80,
        "total_tokens": 1280,
        "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    },
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-1-20250805",
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "content": [{"type": "text", "text": "The sea is wide. " * 20}],
    "usage": {
        "input_tokens": 100,
        "output_tokens": 80,
        "cache_read_input_tokens": 900,
        "cache_creation_input_tokens": 200,
        "cache_creation": {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 150},
        "service_tier": "standard",
    },
}


def _sse(events: list[Any], *, named: bool) -> bytes:
    lines = [(f"event: {e['type']}\n" if named else "") + f"data: {json.dumps(e)}\n\n" for e in events]
    return ("".join(lines) + ("" if named else "data: [DONE]\n\n")).encode()


def _chat_events() -> bytes:
    base = {k: CHAT[k] for k in ("id", "created", "model", "service_tier")} | {"object": "chat.completion.chunk"}
    deltas: list[Any] = [{"content": f"word{n} "} for n in range(WORDS)]
    events: list[Any] = [
        base | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": None} for delta in deltas
    ]
    events.append(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None})
    events.append(base | {"choices": [], "usage": CHAT["usage"]})
    return _sse(events, named=False)


def _message_events() -> bytes:
    start = MESSAGE | {"content": [], "stop_reason": None}
    block: Any = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    deltas: list[Any] = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"word{n} "}}
        for n in range(WORDS)
    ]
    events: list[Any] = [{"type": "message_start", "message": start}, block, *deltas]
    events.append({"type": "content_block_stop", "index": 0})
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 280}})
    events.append({"type": "message_stop"})
    return _sse(events, named=True)


BODIES = {
    ("openai", False): json.dumps(CHAT).encode(),
    ("openai", True): _chat_events(),
    ("anthropic", False): json.dumps(MESSAGE).encode(),
    ("anthropic", True): _message_events(),
}


def client(sdk: str, *, stream: bool, asynchronous: bool) -> Any:
    """A real client of `sdk` whose transport answers at once."""
    import httpx2 as http

    kind = "text/event-stream" if stream else "application/json"
    body = BODIES[sdk, stream]

    def answer(request: Any) -> Any:
        return http.Response(200, headers={"content-type": kind}, content=body, request=request)

    async def aanswer(request: Any) -> Any:
        return answer(request)

    if asynchronous:
        made: Any = http.AsyncClient(transport=http.MockTransport(aanswer))
    else:
        made = http.Client(transport=http.MockTransport(answer))
    if sdk == "openai":
        maker: Any = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        return maker(api_key="k", base_url="https://api.openai.com/v1", http_client=made)
    maker = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
    return maker(api_key="k", base_url="https://api.anthropic.com", http_client=made)
