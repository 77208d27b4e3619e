"""Anthropic's client middleware (anthropic 2.x): one record for each HTTP exchange, whatever the middleware does."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.lib.middleware import BetaRefusalFallbackMiddleware

import otel_tokens
from otel_tokens import Budget
from otel_tokens.demo.server import Reply, Request

ASK: dict[str, Any] = {
    "model": "claude-opus-4-1",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "Count to three."}],
}


def message(
    text: str = "three", stop: str = "end_turn", model: str = "claude-opus-4-1", **usage: int
) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_reason": stop,
        "stop_sequence": None,
        "content": [{"type": "text", "text": text}] if text else [],
        "usage": {"input_tokens": 100, "output_tokens": 200, **usage},
    }


def each_way(sdk: Any, around: Any) -> Any:
    """A middleware for both kinds of client: `around(request, call_next)` is a generator of exchanges."""
    if sdk.kind == "sync":

        def handle(request: Any, call_next: Any) -> Any:
            return around(lambda: call_next(request))

        return handle

    async def ahandle(request: Any, call_next: Any) -> Any:
        return await around(lambda: call_next(request))

    return ahandle


async def test_middleware_that_sends_twice(guarded: Any, make_server: Any, sdk: Any) -> None:
    server = make_server([Reply(body=message(input_tokens=1)), Reply(body=message(input_tokens=2))])

    def twice(send: Any) -> Any:
        if sdk.kind == "sync":
            send()
            return send()

        async def run() -> Any:
            await send()
            return await send()

        return run()

    async with sdk.anthropic(server.url, middleware=[each_way(sdk, twice)]) as client:
        answer = await sdk.done(client.messages.create(**ASK))
    assert answer.usage.input_tokens == 2
    assert [(r.outcome, r.usage.input) for r in guarded.records()] == [("ok", 1), ("ok", 2)]
    assert guarded.spent() == (403, 0)
    assert len({r.id for r in guarded.records()}) == 2


async def test_middleware_that_answers_from_a_cache(guarded: Any, make_server: Any, sdk: Any) -> None:
    server = make_server(Reply(body=message()))
    kept: list[Any] = []

    def cached(send: Any) -> Any:
        if sdk.kind == "sync":
            kept.extend([send()] if not kept else [])
            return kept[0]

        async def run() -> Any:
            kept.extend([await send()] if not kept else [])
            return kept[0]

        return run()

    async with sdk.anthropic(server.url, middleware=[each_way(sdk, cached)]) as client:
        for _ in range(3):
            await sdk.done(client.messages.create(**ASK))
    assert guarded.one().usage.output == 200
    assert guarded.spent() == (300, 0)


@pytest.mark.parametrize("status", [400, 504])
async def test_middleware_and_an_error(guarded: Any, make_server: Any, sdk: Any, status: int) -> None:
    server = make_server(Reply(status, {"type": "error", "error": {"type": "api_error", "message": "no"}}))
    async with sdk.anthropic(server.url, middleware=[each_way(sdk, lambda send: send())]) as client:
        with pytest.raises(anthropic.APIStatusError):
            await sdk.done(client.messages.create(**ASK))
    assert guarded.one().outcome == "error"
    used, reserved = guarded.spent()
    assert (used > 0) is (status == 504)
    assert reserved == 0


async def test_middleware_and_a_budget(idle_meter: Any, make_server: Any, sdk: Any) -> None:
    idle_meter.instrument(budgets=[Budget("two", calls=2)], store="memory")
    server = make_server(Reply(body=message()))
    async with sdk.anthropic(server.url, middleware=[each_way(sdk, lambda send: send())]) as client:
        for _ in range(2):
            await sdk.done(client.messages.create(**ASK))
        with pytest.raises(otel_tokens.BudgetExceededError):
            await sdk.done(client.messages.create(**ASK))
    assert len(server.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fallback_after_a_refusal_is_a_call_of_its_own(
    guarded: Any, make_server: Any, sdk: Any, stream: bool
) -> None:
    def respond(request: Request) -> Reply:
        refused = request["model"] == "claude-opus-4-1"
        answer = message("" if refused else "three", "refusal" if refused else "end_turn", request["model"])
        if not stream:
            return Reply(body=answer)
        start = {**answer, "content": [], "stop_reason": None}
        end = {"type": "message_delta", "delta": {"stop_reason": answer["stop_reason"], "stop_sequence": None}}
        events: list[Any] = [{"type": "message_start", "message": start}]
        if not refused:
            delta = {"type": "text_delta", "text": "three"}
            events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
            events.append({"type": "content_block_stop", "index": 0})
        events += [end | {"usage": {"output_tokens": 200}}, {"type": "message_stop"}]
        return Reply(events=[(event["type"], event) for event in events])

    server = make_server(respond)
    middleware = [BetaRefusalFallbackMiddleware([{"model": "claude-haiku-4-5"}])]
    async with sdk.anthropic(server.url, middleware=middleware) as client:
        result = await sdk.done(client.beta.messages.create(**ASK, stream=stream))
        if stream:
            await sdk.every(result)
    assert len(server.requests) == 2
    assert [(r.call.model, r.outcome, r.usage.output) for r in guarded.records()] == [
        ("claude-opus-4-1", "ok", 200),
        ("claude-haiku-4-5", "ok", 200),
    ]
    assert guarded.spent() == (600, 0)
