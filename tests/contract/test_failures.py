"""Calls that fail after they were answered, and hosts with manners of their own: what is charged and recorded."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest

from otel_tokens.demo.server import Reply, Request

MESSAGES: Any = [{"role": "user", "content": "Count to three."}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES, "max_tokens": 50}
ASK: dict[str, Any] = {"model": "claude-opus-4-1", "max_tokens": 50, "messages": MESSAGES}
USAGE = {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300}


class Answer(pydantic.BaseModel):
    """What the model's text never is."""

    number: int


def completion(text: str = "three", usage: Any = USAGE, **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": text, **message}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "finish_reason": "stop", "message": said}],
        "usage": usage,
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


# ---- after an answer ---------------------------------------------------------------------------------------------
async def test_a_chat_answer_that_does_not_validate_is_charged(guarded: Any, make_server: Any, sdk: Any) -> None:
    async with sdk.openai(make_server(Reply(body=completion("not JSON"))).url) as client:
        for _ in range(3):
            with pytest.raises(pydantic.ValidationError):
                await sdk.done(client.chat.completions.parse(**CHAT, response_format=Answer))
    records = guarded.records()
    assert [(r.outcome, r.usage.origin, r.usage.input, r.usage.output) for r in records] == [
        ("error", "provider", 100, 200)
    ] * 3
    assert guarded.spent() == (900, 0)


async def test_tool_arguments_that_do_not_validate_are_charged(guarded: Any, make_server: Any, sdk: Any) -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "Answer", "arguments": '{"number": "x"}'}}]
    async with sdk.openai(make_server(Reply(body=completion(tool_calls=calls))).url) as client:
        with pytest.raises(pydantic.ValidationError):
            await sdk.done(client.chat.completions.parse(**CHAT, tools=[openai.pydantic_function_tool(Answer)]))
    assert guarded.one().usage.output == 200
    assert guarded.spent() == (300, 0)


async def test_a_response_that_does_not_validate_is_charged(guarded: Any, make_server: Any, sdk: Any) -> None:
    answer = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1760000000,
        "model": "gpt-5.4",
        "status": "completed",
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "output": [
            {
                "id": "m1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "no JSON", "annotations": []}],
            }
        ],
        "usage": {"input_tokens": 100, "output_tokens": 200, "total_tokens": 300},
    }
    async with sdk.openai(make_server(Reply(body=answer)).url) as client:
        with pytest.raises(pydantic.ValidationError):
            await sdk.done(client.responses.parse(model="gpt-5.4", input="hi", text_format=Answer))
    assert guarded.one().usage.output == 200
    assert guarded.spent() == (300, 0)


async def test_a_message_that_does_not_validate_is_charged(guarded: Any, make_server: Any, sdk: Any) -> None:
    async with sdk.anthropic(make_server(Reply(body=message("no JSON"))).url) as client:
        if not hasattr(client.messages, "parse"):
            return
        with pytest.raises(pydantic.ValidationError):
            await sdk.done(client.messages.parse(**ASK, output_format=Answer))
    assert guarded.one().usage.output == 200
    assert guarded.spent() == (300, 0)


async def test_a_hook_of_the_program_that_fails_after_the_answer_is_no_release(guarded: Any, make_server: Any) -> None:
    """The hook runs before the body is read: what was reserved is charged."""

    def hook(response: Any) -> None:
        raise ZeroDivisionError

    server = make_server(Reply(body=completion()))
    web = openai.DefaultHttpxClient(event_hooks={"response": [hook]})
    client = openai.OpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0, http_client=web)
    with client, pytest.raises((ZeroDivisionError, openai.APIConnectionError)):  # older SDKs make it the latter
        client.chat.completions.create(**CHAT)
    assert guarded.one().outcome == "error"
    used, reserved = guarded.spent()
    assert used >= 50
    assert reserved == 0


@pytest.mark.parametrize(
    ("status", "charged"), [(400, False), (429, False), (500, False), (503, False), (504, True), (408, True)]
)
async def test_only_what_may_have_been_worked_on_is_charged(
    guarded: Any, make_server: Any, sdk: Any, status: int, charged: bool
) -> None:
    async with sdk.openai(make_server(Reply(status, {"error": {"message": "no"}})).url) as client:
        with pytest.raises(openai.APIStatusError):
            await sdk.done(client.chat.completions.create(**CHAT))
    used, reserved = guarded.spent()
    assert (used >= 50) is charged
    assert reserved == 0


async def test_a_body_cut_short_is_charged_as_reserved(guarded: Any, make_server: Any, sdk: Any) -> None:
    body = json.dumps(completion()).encode()
    cut = Reply(body=body[:50], headers={"content-type": "application/json", "content-length": str(len(body))})
    async with sdk.openai(make_server(cut).url, timeout=5) as client:
        with pytest.raises(openai.APIConnectionError):
            await sdk.done(client.chat.completions.create(**CHAT))
    used, reserved = guarded.spent()
    assert used >= 50
    assert reserved == 0


async def test_a_gateway_that_gave_up_before_a_refusal_is_charged(guarded: Any, make_server: Any, sdk: Any) -> None:
    server = make_server([Reply(504, {}, headers={"retry-after-ms": "1"}), Reply(400, {"error": {"message": "no"}})])
    async with sdk.openai(server.url, max_retries=1) as client:
        with pytest.raises(openai.BadRequestError):
            await sdk.done(client.chat.completions.create(**CHAT))
    assert guarded.one().attempts == 2
    assert guarded.spent()[0] >= 50


async def test_a_server_that_cannot_be_reached_bills_nothing(guarded: Any, sdk: Any, free_port: int) -> None:
    async with sdk.openai(f"http://127.0.0.1:{free_port}") as client:
        with pytest.raises(openai.APIConnectionError):
            await sdk.done(client.chat.completions.create(**CHAT))
    assert guarded.one().outcome == "error"
    assert guarded.spent() == (0, 0)


# ---- streams -----------------------------------------------------------------------------------------------------
def chunks(*, usage: Any = None, every: bool = False, first: Any = None) -> list[Any]:
    base = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-08-06"}
    base["service_tier"] = "priority"
    found = [] if first is None else [first]
    for number in range(4):
        choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
        chunk = base | {"choices": [choice]}
        if every:
            chunk["usage"] = {"prompt_tokens": 10, "completion_tokens": number + 1, "total_tokens": number + 11}
        found.append(chunk)
    found.append(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage is not None:
        found.append(base | {"choices": [], "usage": usage})
    return found


def streamed(parts: list[Any]) -> Reply:
    return Reply(events=[*((None, part) for part in parts), (None, "[DONE]")])


async def read(sdk: Any, client: Any, most: int = 100, **more: Any) -> list[Any]:
    """The chunks of a stream that is closed after `most` of them."""
    stream = await sdk.done(client.chat.completions.create(**CHAT, stream=True, **more))
    async with sdk.opened(stream):
        return await sdk.every(stream) if most >= 100 else [await sdk.next(stream) for _ in range(most)]


EMPTY = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": "", "choices": []}


@pytest.mark.parametrize("first", [None, EMPTY], ids=["plain", "Azure's empty first chunk"])
async def test_a_stream_left_early_has_the_names_of_its_first_chunk(
    meter: Any, make_server: Any, sdk: Any, first: Any
) -> None:
    async with sdk.openai(make_server(streamed(chunks(usage=USAGE, first=first))).url) as client:
        await read(sdk, client, 2)
    record = meter.one(collect=True)
    assert (record.outcome, record.response_model, record.response_id, record.service_tier) == (
        "abandoned",
        "gpt-4o-2024-08-06",
        "chatcmpl-7",
        "priority",
    )


async def test_usage_on_each_chunk_is_not_the_end(meter: Any, make_server: Any, sdk: Any) -> None:
    async with sdk.openai(make_server(streamed(chunks(every=True))).url) as client:
        await read(sdk, client, 2)
        left = meter.one(collect=True)
        await read(sdk, client)
    whole = meter.records()[-1]
    assert (left.outcome, left.usage.origin, left.usage.input) == ("abandoned", "partial", 10)
    assert left.usage.output >= 2
    assert (whole.outcome, whole.usage.origin, whole.usage.input, whole.usage.output) == ("ok", "provider", 10, 4)


async def test_a_host_that_sends_usage_unasked_is_not_asked(meter: Any, make_server: Any, sdk: Any) -> None:
    """Known by a stream that nobody had asked for usage: later callers get what came."""
    server = make_server(streamed(chunks(usage=USAGE)))
    async with sdk.openai(server.url) as client:
        await read(sdk, client, stream_options={"include_usage": False})
        got = await read(sdk, client)
    assert server.requests[-1]["stream_options"] is None
    assert got[-1].choices == []
    assert got[-1].usage.prompt_tokens == 100
    assert [record.usage.input for record in meter.records()] == [100, 100]


async def test_a_host_with_a_row_is_not_asked(idle_meter: Any, make_server: Any, sdk: Any) -> None:
    idle_meter.instrument(hosts=[{"match": "127.0.0.1", "provider": "openrouter", "include_usage": False}])
    server = make_server(streamed([part | {"usage": part.get("usage")} for part in chunks(usage=USAGE)]))
    async with (
        sdk.openai(server.url) as client,
        sdk.opened(client.chat.completions.with_streaming_response.create(**CHAT, stream=True)) as response,
    ):
        lines = [line async for line in response.iter_lines()] if sdk.kind == "async" else list(response.iter_lines())
    assert sum('"usage":null' in line for line in lines) == 5
    assert sum('"choices":[]' in line for line in lines) == 1
    assert idle_meter.one().usage.output == 200


def refusing(status: int, body: Any = "", after: int = 1000, then: Reply | None = None) -> Any:
    """A host that refuses the option, for its first requests."""
    seen: list[Request] = []

    def respond(request: Request) -> Reply:
        seen.append(request)
        if request["stream_options"] is not None and len(seen) <= after:
            return Reply(status, body)
        return then or streamed(chunks())

    return respond


@pytest.mark.parametrize("status", [400, 422, 501])
async def test_a_bare_refusal_is_repeated_once_without_the_option(
    meter: Any, make_server: Any, sdk: Any, status: int
) -> None:
    server = make_server(refusing(status))
    async with sdk.openai(server.url) as client:
        assert len(await read(sdk, client)) == 5
        assert len(await read(sdk, client)) == 5
    assert [request["stream_options"] is not None for request in server.requests] == [True, False, False]
    assert [(r.outcome, r.attempts) for r in meter.records()] == [("ok", 2), ("ok", 1)]


async def test_a_second_failure_raises_the_first_error(meter: Any, make_server: Any, sdk: Any) -> None:
    server = make_server(
        refusing(400, {"error": {"message": "first"}}, then=Reply(422, {"error": {"message": "second"}}))
    )
    async with sdk.openai(server.url) as client:
        for _ in range(2):
            with pytest.raises(openai.BadRequestError, match="first"):
                await read(sdk, client)
    assert [request["stream_options"] is not None for request in server.requests] == [True, False, True, False]
    assert [(r.outcome, r.error_type) for r in meter.records()] == [("error", "openai.BadRequestError")] * 2


async def test_a_host_that_has_honoured_the_option_is_not_asked_twice(meter: Any, make_server: Any, sdk: Any) -> None:
    server = make_server([streamed(chunks(usage=USAGE)), Reply(400, {"error": {"message": "wrong"}})])
    async with sdk.openai(server.url) as client:
        assert len(await read(sdk, client)) == 5
        with pytest.raises(openai.BadRequestError):
            await read(sdk, client)
    assert len(server.requests) == 2


async def test_a_mistake_of_the_caller_is_not_repeated(meter: Any, make_server: Any, sdk: Any) -> None:
    server = make_server(Reply(400, {"error": {"message": "too hot", "param": "temperature"}}))
    async with sdk.openai(server.url) as client:
        with pytest.raises(openai.BadRequestError):
            await read(sdk, client)
    assert len(server.requests) == 1
