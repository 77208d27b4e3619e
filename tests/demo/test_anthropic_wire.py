"""Anthropic's wire form, read by the real SDK without instrumentation: its own API, Bedrock, Vertex and Foundry."""

from __future__ import annotations

from typing import Any

import anthropic
import pydantic
import pytest

from otel_tokens.demo import anthropic_wire
from otel_tokens.demo.model import ANSWER, THOUGHT
from otel_tokens.demo.server import ModelServer, Reply
from otel_tokens.demo.wire import aws_frame
from otel_tokens.values import Component, Usage

CLAUDE = "claude-opus-4-8"
HELLO: Any = [{"role": "user", "content": "What is a token?"}]
ASK: dict[str, Any] = {"model": CLAUDE, "max_tokens": 2000, "messages": HELLO}
THINK: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
LONG = "the same long instructions " * 300  # about 2,000 tokens: enough to be cached
TOOL_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANSWER_TOKENS = -(-len(ANSWER) // 4)
STRICT = {"_strict_response_validation": True}


class City(pydantic.BaseModel):
    name: str
    people: int


async def test_messages_create(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.anthropic(model_server.url, **STRICT) as client:
        got = await sdk.done(client.messages.create(**ASK))
        thought = await sdk.done(client.messages.create(**ASK, **THINK))
        cut = await sdk.done(client.messages.create(**{**ASK, "max_tokens": 3}))
    assert (got.content[0].text, got.stop_reason, got.model) == (ANSWER, "end_turn", CLAUDE)
    assert (got.usage.input_tokens, got.usage.output_tokens) == (5, ANSWER_TOKENS)
    assert got.usage.service_tier == "standard"
    assert (thought.content[0].type, thought.content[0].thinking) == ("thinking", THOUGHT)
    assert thought.usage.output_tokens == ANSWER_TOKENS + 96
    assert thought.usage.output_tokens_details.thinking_tokens == 96
    assert (cut.stop_reason, cut.usage.output_tokens, len(cut.content[0].text)) == ("max_tokens", 3, 12)
    assert model_server.requests[0].path == "/v1/messages"


async def test_messages_raw_stream(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.anthropic(model_server.url, **STRICT) as client:
        events = await sdk.every(client.messages.create(**ASK, **THINK, stream=True))
    assert list(dict.fromkeys(event.type for event in events)) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, delta = events[0].message.usage, events[-2].usage
    assert (start.input_tokens, start.output_tokens, start.output_tokens_details) == (5, 1, None)
    assert (delta.input_tokens, delta.output_tokens) == (5, ANSWER_TOKENS + 96)
    assert delta.output_tokens_details.thinking_tokens == 96
    deltas = {event.delta.type for event in events if event.type == "content_block_delta"}
    assert deltas == {"thinking_delta", "signature_delta", "text_delta"}


async def test_messages_stream_helper(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.anthropic(model_server.url, **STRICT) as client:
        async with sdk.opened(client.messages.stream(**ASK)) as helper:
            text = "".join(await sdk.every(helper.text_stream))
            final = await sdk.done(helper.get_final_message())
        async with sdk.opened(client.messages.stream(**ASK, **THINK)) as helper:
            events = await sdk.every(helper)
            thought = await sdk.done(helper.get_final_message())
    assert text == final.content[0].text == ANSWER
    assert final.usage.output_tokens == ANSWER_TOKENS
    assert thought.content[0].thinking == THOUGHT
    assert thought.content[0].signature
    assert {"thinking", "signature", "text", "message_stop"} <= {event.type for event in events}


async def test_messages_parse_and_tool_use_in_a_stream(sdk: Any, model_server: ModelServer) -> None:
    tool = {"name": "weather", "input_schema": TOOL_SCHEMA}
    async with sdk.anthropic(model_server.url, **STRICT) as client:
        parsed = await sdk.done(client.messages.parse(**ASK, output_format=City))
        async with sdk.opened(client.messages.stream(**ASK, tools=[tool])) as helper:
            asked = await sdk.done(helper.get_final_message())
    assert parsed.parsed_output == City(name="Paris", people=3)
    assert asked.stop_reason == "tool_use"
    assert (asked.content[0].name, asked.content[0].input) == ("weather", {"city": "Paris"})


async def test_marked_prompts_are_cached(sdk: Any, model_server: ModelServer) -> None:
    def system(words: str, **mark: Any) -> Any:
        return [{"type": "text", "text": words, "cache_control": {"type": "ephemeral", **mark}}]

    async with sdk.anthropic(model_server.url, **STRICT) as client:
        create = client.messages.create
        first, second = [await sdk.done(create(**ASK, system=system(LONG))) for _ in range(2)]
        hour = await sdk.done(create(**ASK, system=system("B" + LONG, ttl="1h")))
        counted = await sdk.done(client.messages.count_tokens(model=CLAUDE, messages=HELLO, system=LONG))
    assert first.usage.cache_creation.ephemeral_5m_input_tokens == first.usage.cache_creation_input_tokens > 2000
    assert second.usage.cache_read_input_tokens == first.usage.cache_creation_input_tokens
    assert second.usage.input_tokens == first.usage.input_tokens < 20
    assert hour.usage.cache_creation.ephemeral_1h_input_tokens == hour.usage.cache_creation_input_tokens > 2000
    assert counted.input_tokens > 2000


async def test_beta_messages_and_compaction(sdk: Any, model_server: ModelServer) -> None:
    compact = {"edits": [{"type": "compact_20260112"}]}
    async with sdk.anthropic(model_server.url, **STRICT) as client:
        plain = await sdk.done(client.beta.messages.create(**ASK))
        got = await sdk.done(client.beta.messages.create(**ASK, context_management=compact))
        async with sdk.opened(client.beta.messages.stream(**ASK, context_management=compact)) as helper:
            streamed = await sdk.done(helper.get_final_message())
    assert plain.usage.iterations is None
    for message in (got, streamed):
        first, last = message.usage.iterations
        assert (first.type, first.input_tokens, first.output_tokens) == ("compaction", 15, 200)
        assert (last.type, last.output_tokens) == ("message", message.usage.output_tokens)


async def test_tool_runner(sdk: Any, model_server: ModelServer) -> None:
    asked: list[str] = []

    def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "sunny"

    async def weather_async(city: str) -> str:
        """The weather in a city."""
        return weather(city)

    tool = anthropic.beta_tool(weather) if sdk.kind == "sync" else anthropic.beta_async_tool(weather_async)
    async with sdk.anthropic(model_server.url) as client:
        messages = await sdk.every(client.beta.messages.tool_runner(**ASK, tools=[tool]))
        final = await sdk.done(client.beta.messages.tool_runner(**ASK, tools=[tool], stream=True).until_done())
    assert asked == ["Paris", "Paris"]
    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"]
    assert final.stop_reason == "end_turn"
    assert [request["stream"] for request in model_server.requests] == [None, None, True, True]


async def test_errors(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.anthropic(model_server.url, **STRICT) as client:
        for status in (400, 401, 404, 429, 500, 529):
            with pytest.raises(anthropic.APIStatusError) as caught:
                await sdk.done(client.messages.create(**{**ASK, "model": f"error-{status}"}))
            assert caught.value.status_code == status
        assert "overloaded_error" in str(caught.value)
        with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
            await sdk.every(client.messages.create(**{**ASK, "model": "error-stream"}, stream=True))


async def test_bedrock(sdk: Any, model_server: ModelServer) -> None:
    pytest.importorskip("botocore", reason="pip install botocore")
    model = "anthropic.claude-opus-4-5-20251101-v1:0"
    ask = {**ASK, "model": model}
    where = {"base_url": model_server.url, "api_key": "test", "aws_region": "us-east-1"}
    async with sdk.client("anthropic.AnthropicBedrock", **where, **STRICT) as client:
        got = await sdk.done(client.messages.create(**ask))
        async with sdk.opened(client.messages.stream(**ask)) as helper:
            text = "".join(await sdk.every(helper.text_stream))
            final = await sdk.done(helper.get_final_message())
        beta = await sdk.every(client.beta.messages.create(**ask, stream=True))
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            await sdk.every(client.messages.create(**{**ask, "model": "error-stream"}, stream=True))
    assert (got.content[0].text, got.model) == (ANSWER, model)
    assert text == ANSWER
    assert final.usage.output_tokens == got.usage.output_tokens == beta[-2].usage.output_tokens
    verbs = [request.path.rpartition("/")[2] for request in model_server.requests]
    assert verbs == ["invoke", *["invoke-with-response-stream"] * 3]


async def test_vertex(sdk: Any, model_server: ModelServer) -> None:
    where = {"base_url": model_server.url, "region": "us-east5", "project_id": "ours", "access_token": "test"}
    async with sdk.client("anthropic.AnthropicVertex", **where, **STRICT) as client:
        got = await sdk.done(client.messages.create(**ASK))
        async with sdk.opened(client.messages.stream(**ASK)) as helper:
            final = await sdk.done(helper.get_final_message())
        beta = await sdk.done(client.beta.messages.create(**ASK))
        counted = await sdk.done(client.messages.count_tokens(model=CLAUDE, messages=HELLO))
    base = "/projects/ours/locations/us-east5/publishers/anthropic/models"
    assert [request.path for request in model_server.requests] == [
        f"{base}/{CLAUDE}:rawPredict",
        f"{base}/{CLAUDE}:streamRawPredict",
        f"{base}/{CLAUDE}:rawPredict",
        f"{base}/count-tokens:rawPredict",
    ]
    assert got.content[0].text == final.content[0].text == beta.content[0].text == ANSWER
    assert final.usage.output_tokens == got.usage.output_tokens
    assert counted.input_tokens == got.usage.input_tokens


async def test_foundry(sdk: Any, model_server: ModelServer) -> None:
    where = {"base_url": f"{model_server.url}/anthropic/", "api_key": "test"}
    async with sdk.client("anthropic.AnthropicFoundry", **where, **STRICT) as client:
        got = await sdk.done(client.messages.create(**ASK))
        async with sdk.opened(client.messages.stream(**ASK)) as helper:
            final = await sdk.done(helper.get_final_message())
    assert [request.path for request in model_server.requests] == ["/anthropic/v1/messages"] * 2
    assert final.usage.output_tokens == got.usage.output_tokens


async def test_numbers_arrive_as_they_were_given(sdk: Any, make_server: Any) -> None:
    used = Usage(
        input=10_000,
        output=900,
        cache_read=6_000,
        cache_write=3_000,
        cache_write_5m=1_000,
        cache_write_1h=2_000,
        reasoning=300,
        web_searches=2,
        web_fetches=1,
        components=(
            Component("compaction", None, Usage(input=181_000, output=3_500, cache_read=1_000)),
            Component("advisor_message", "claude-haiku-4-5", Usage(input=500, output=50)),
        ),
    )
    whole = anthropic_wire.message(CLAUDE, used, "Yes")
    server = make_server([Reply(body=whole), Reply(events=anthropic_wire.message_events(whole))])
    async with sdk.anthropic(server.url, **STRICT) as client:
        created = await sdk.done(client.beta.messages.create(**ASK))
        async with sdk.opened(client.beta.messages.stream(**ASK)) as helper:
            streamed = await sdk.done(helper.get_final_message())
    for usage in (created.usage, streamed.usage):
        assert (usage.input_tokens, usage.output_tokens) == (1_000, 900)
        assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (6_000, 3_000)
        assert usage.cache_creation.model_dump() == {
            "ephemeral_5m_input_tokens": 1_000,
            "ephemeral_1h_input_tokens": 2_000,
        }
        assert usage.output_tokens_details.thinking_tokens == 300
        assert usage.server_tool_use.model_dump() == {"web_search_requests": 2, "web_fetch_requests": 1}
        assert [(i.type, i.input_tokens, i.output_tokens) for i in usage.iterations] == [
            ("compaction", 180_000, 3_500),
            ("advisor_message", 500, 50),
            ("message", 1_000, 900),
        ]


@pytest.mark.parametrize("odd", [None, {"input_tokens": "12"}, {"input_tokens": -1, "new": {"x": None}}])
def test_a_raw_usage_block_goes_out_untouched(odd: Any) -> None:
    assert anthropic_wire.message("m", odd, "Yes")["usage"] == odd


def test_aws_frames_are_what_botocore_reads() -> None:
    eventstream = pytest.importorskip("botocore.eventstream", reason="pip install botocore")
    buffer = eventstream.EventStreamBuffer()
    buffer.add_data(aws_frame({":event-type": "chunk", "b": "ü"}, b"payload") + aws_frame({}, b""))
    first, second = buffer
    assert (first.headers, first.payload) == ({":event-type": "chunk", "b": "ü"}, b"payload")
    assert (second.headers, second.payload) == ({}, b"")
