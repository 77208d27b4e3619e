"""OpenAI's wire form, read by the real SDK without instrumentation: each payload parses, strictly where that can be."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest

from otel_tokens.demo import openai_wire
from otel_tokens.demo.model import ANSWER
from otel_tokens.demo.server import ModelServer, Reply
from otel_tokens.values import Usage

HELLO: Any = [{"role": "user", "content": "What is a token?"}]
LONG = "the same long instructions " * 300  # about 2,000 tokens: enough to be cached
TOOL_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": TOOL_SCHEMA}}
ANSWER_TOKENS = -(-len(ANSWER) // 4)

# A payload fails that lacks a field the SDK's types promise, or has one of another type.
STRICT = {"_strict_response_validation": True}


class City(pydantic.BaseModel):
    name: str
    people: int


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# ---- chat


async def test_chat_create(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        got = await sdk.done(client.chat.completions.create(model="gpt-4.1", messages=HELLO, n=2))
    assert [choice.message.content for choice in got.choices] == [ANSWER, ANSWER]
    assert got.choices[0].finish_reason == "stop"
    assert got.usage.prompt_tokens == 5  # "user" and the question: 20 characters
    assert got.usage.completion_tokens == 2 * ANSWER_TOKENS
    assert got.usage.total_tokens == 5 + 2 * ANSWER_TOKENS
    [request] = model_server.requests
    assert (request.method, request.path, request["model"]) == ("POST", "/v1/chat/completions", "gpt-4.1")
    assert request.headers["authorization"] == "Bearer test"


async def test_chat_stream_says_nothing_of_usage_unless_asked(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        chunks = await sdk.every(client.chat.completions.create(model="gpt-4.1", messages=HELLO, stream=True))
    assert text_of(chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all("usage" not in chunk.model_dump(exclude_unset=True) for chunk in chunks)


async def test_chat_stream_ends_with_usage_when_asked(sdk: Any, model_server: ModelServer) -> None:
    asked: Any = {"model": "o4-mini", "messages": HELLO, "n": 2, "stream_options": {"include_usage": True}}
    async with sdk.openai(model_server.url, **STRICT) as client:
        *others, last = await sdk.every(client.chat.completions.create(**asked, stream=True))
    assert last.choices == []
    assert last.usage.completion_tokens_details.reasoning_tokens == 2 * 32
    assert all(chunk.model_dump(exclude_unset=True)["usage"] is None for chunk in others)
    assert {chunk.choices[0].index for chunk in others} == {0, 1}


async def test_chat_parse(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        parse = client.chat.completions.parse
        got = await sdk.done(parse(model="gpt-4.1", messages=HELLO, response_format=City))
    assert got.choices[0].message.parsed == City(name="Paris", people=3)


async def test_chat_stream_helper(sdk: Any, model_server: ModelServer) -> None:
    asked: Any = {"model": "gpt-4.1", "messages": HELLO, "stream_options": {"include_usage": True}}
    async with (
        sdk.openai(model_server.url, **STRICT) as client,
        sdk.opened(client.chat.completions.stream(**asked, response_format=City)) as helper,
    ):
        events = await sdk.every(helper)
        final = await sdk.done(helper.get_final_completion())
    assert final.choices[0].message.parsed == City(name="Paris", people=3)
    assert final.usage.prompt_tokens > 0
    assert [event for event in events if event.type == "content.done"]


async def test_chat_asks_for_a_tool_then_answers(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        create = client.chat.completions.create
        asked = await sdk.done(create(model="gpt-4.1", messages=HELLO, tools=[CHAT_TOOL]))
        [call] = asked.choices[0].message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        turns = [*HELLO, asked.choices[0].message.model_dump(exclude_unset=True), result]
        final = await sdk.done(create(model="gpt-4.1", messages=turns, tools=[CHAT_TOOL]))
        chunks = await sdk.every(create(model="gpt-4.1", messages=HELLO, tools=[CHAT_TOOL], stream=True))
    assert asked.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert final.choices[0].message.content == ANSWER
    deltas = [chunk.choices[0].delta.tool_calls[0].function for chunk in chunks if chunk.choices[0].delta.tool_calls]
    assert json.loads("".join(delta.arguments for delta in deltas)) == {"city": "Paris"}
    assert deltas[0].name == "weather"


async def test_chat_is_cut_at_the_limit(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        chat = client.chat.completions
        got = await sdk.done(chat.create(model="gpt-4.1", messages=HELLO, max_completion_tokens=5))
        with pytest.raises(openai.LengthFinishReasonError) as caught:
            await sdk.done(chat.parse(model="gpt-4.1", messages=HELLO, max_tokens=2, response_format=City))
    assert got.choices[0].finish_reason == "length"
    assert got.usage.completion_tokens == 5
    assert len(got.choices[0].message.content) == 20
    assert caught.value.completion.usage.completion_tokens == 2


async def test_long_prompts_are_cached(sdk: Any, model_server: ModelServer) -> None:
    long: Any = [{"role": "system", "content": LONG}, *HELLO]
    async with sdk.openai(model_server.url, **STRICT) as client:
        create = client.chat.completions.create
        first, second = [await sdk.done(create(model="gpt-4.1", messages=long)) for _ in range(2)]
        written = await sdk.done(create(model="gpt-5.6", messages=long))
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == 1920
    assert 1920 < second.usage.prompt_tokens < 1920 + 128
    assert written.usage.prompt_tokens_details.model_dump(exclude_unset=True) == {
        "cached_tokens": 0,
        "audio_tokens": 0,
        "cache_write_tokens": 1920,
        "cache_write_tokens_details": {"ttl_30m_tokens": 1920, "ttl_12h_tokens": 0},
    }


async def test_service_tier_is_what_served_the_call(sdk: Any, model_server: ModelServer) -> None:
    asked: Any = ({}, {"service_tier": "auto"}, {"service_tier": "flex"}, {"service_tier": "priority"})
    async with sdk.openai(model_server.url, **STRICT) as client:
        create = client.chat.completions.create
        tiers = [(await sdk.done(create(model="m", messages=HELLO, **given))).service_tier for given in asked]
    assert tiers == ["default", "default", "flex", "priority"]


# ---- responses


async def test_responses_create_and_parse(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        got = await sdk.done(client.responses.create(model="gpt-5.6", input="What is a token?"))
        parsed = await sdk.done(client.responses.parse(model="gpt-4.1", input="A city?", text_format=City))
    assert got.output_text == ANSWER
    assert got.usage.output_tokens_details.reasoning_tokens == 32
    assert got.usage.output_tokens == 32 + ANSWER_TOKENS
    assert [item.type for item in got.output] == ["reasoning", "message"]
    assert parsed.output_parsed == City(name="Paris", people=3)


async def test_responses_stream(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        events = await sdk.every(client.responses.create(model="gpt-5.6", input="Hi", stream=True))
    assert list(dict.fromkeys(event.type for event in events)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert (events[0].response.usage, events[0].response.status) == (None, "in_progress")
    assert events[-1].response.usage.total_tokens > 0


async def test_responses_stream_helper(sdk: Any, model_server: ModelServer) -> None:
    asked: Any = {"model": "gpt-5.6", "input": "A city?", "text_format": City}
    async with (
        sdk.openai(model_server.url, **STRICT) as client,
        sdk.opened(client.responses.stream(**asked)) as helper,
    ):
        final = await sdk.done(helper.get_final_response())
    assert final.output_parsed == City(name="Paris", people=3)
    assert final.usage.input_tokens > 0


async def test_responses_tool_call_in_a_stream(sdk: Any, model_server: ModelServer) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": TOOL_SCHEMA, "strict": False}
    async with sdk.openai(model_server.url, **STRICT) as client:
        async with sdk.opened(client.responses.stream(model="gpt-4.1", input="Weather?", tools=[tool])) as helper:
            asked = await sdk.done(helper.get_final_response())
        [call] = asked.output
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        answered = await sdk.done(client.responses.create(model="gpt-4.1", input=[result], tools=[tool]))
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Paris"})
    assert answered.output_text == ANSWER


async def test_responses_incomplete_background_and_compact(sdk: Any, model_server: ModelServer) -> None:
    asked: Any = {"model": "gpt-4.1", "input": "Hi"}
    async with sdk.openai(model_server.url, **STRICT) as client:
        cut = await sdk.done(client.responses.create(**asked, max_output_tokens=16))
        events = await sdk.every(client.responses.create(**asked, max_output_tokens=16, stream=True))
        queued = await sdk.done(client.responses.create(**asked, background=True))
        fetched = await sdk.done(client.responses.retrieve(queued.id))
        compacted = await sdk.done(client.responses.compact(**asked))
        counted = await sdk.done(client.responses.input_tokens.count(model="gpt-4.1", input="eight ch"))
    assert (cut.status, cut.usage.output_tokens) == ("incomplete", 16)
    assert events[-1].type == "response.incomplete"
    assert (queued.status, queued.usage) == ("queued", None)
    assert (fetched.status, fetched.output_text) == ("completed", ANSWER)
    assert compacted.output[-1].type == "compaction"
    assert compacted.usage.total_tokens > 0
    assert counted.input_tokens == 2


async def test_beta_responses(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        beta = getattr(client.beta, "responses", None)
        if beta is None:
            pytest.skip("this openai has no beta responses")
        got = await sdk.done(beta.create(model="gpt-5.6", input="Hi"))
        events = await sdk.every(beta.create(model="gpt-5.6", input="Hi", stream=True))
    assert got.usage.output_tokens_details.reasoning_tokens == 32
    assert events[-1].type == "response.completed"
    assert [dict(request.query) for request in model_server.requests] == [{"beta": "true"}] * 2


# ---- the rest of the API


async def test_legacy_completions(sdk: Any, model_server: ModelServer) -> None:
    asked: Any = {"model": "gpt-3.5-turbo-instruct", "prompt": "Say", "max_tokens": 4}
    options = {"include_usage": True}
    async with sdk.openai(model_server.url, **STRICT) as client:
        got = await sdk.done(client.completions.create(**asked))
    # OpenAI's own chunks have a null finish_reason, which the SDK's strict types do not allow for.
    async with sdk.openai(model_server.url) as client:
        plain = await sdk.every(client.completions.create(**asked, stream=True))
        counted = await sdk.every(client.completions.create(**asked, stream=True, stream_options=options))
    assert (got.choices[0].text, got.usage.completion_tokens) == (ANSWER[:16], 4)
    assert "".join(chunk.choices[0].text for chunk in plain) == ANSWER[:16]
    assert all(chunk.usage is None for chunk in plain)
    assert counted[-1].choices == []
    assert counted[-1].usage == got.usage


async def test_embeddings_in_both_encodings(sdk: Any, model_server: ModelServer) -> None:
    asked: Any = {"model": "text-embedding-3-small", "input": ["one", "three"], "dimensions": 16}
    async with sdk.openai(model_server.url) as client:
        packed = await sdk.done(client.embeddings.create(**asked))  # asks for base64 by itself
        plain = await sdk.done(client.embeddings.create(**asked, encoding_format="float"))
    assert model_server.requests[0]["encoding_format"] == "base64"
    assert len(packed.data) == 2
    assert len(packed.data[1].embedding) == 16
    assert [list(row.embedding) for row in packed.data] == [row.embedding for row in plain.data]
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (2, 2)


async def test_azure(sdk: Any, model_server: ModelServer) -> None:
    where: Any = {"azure_endpoint": model_server.url, "api_key": "test", "api_version": "2024-10-21"}
    asked: Any = {"model": "our-deployment", "messages": HELLO}
    async with sdk.client("openai.AzureOpenAI", **where) as client:
        create = client.chat.completions.create
        got = await sdk.done(create(**asked))
        chunks = await sdk.every(create(**asked, stream=True, stream_options={"include_usage": True}))
    assert {request.path for request in model_server.requests} == {
        "/openai/deployments/our-deployment/chat/completions"
    }
    assert model_server.requests[0].query == {"api-version": "2024-10-21"}
    assert got.model == "gpt-4.1-2025-04-14"
    assert got.model_extra["prompt_filter_results"]
    assert (chunks[0].choices, chunks[0].model) == ([], "")
    assert chunks[0].model_extra["prompt_filter_results"]
    assert text_of(chunks) == ANSWER
    assert chunks[-1].usage == got.usage


@pytest.mark.parametrize(
    ("name", "auth"), [("bedrock", {"api_key": "test"}), ("vertex", {"token_provider": lambda: "test"})]
)
async def test_the_providers_of_the_sdk(sdk: Any, model_server: ModelServer, name: str, auth: Any) -> None:
    module = pytest.importorskip(f"openai.providers.{name}", reason=f"this openai has no {name} provider")
    provider = getattr(module, name)(base_url=f"{model_server.url}/openai/v1", **auth)
    async with sdk.client("openai.OpenAI", provider=provider, **STRICT) as client:
        got = await sdk.done(client.chat.completions.create(model="m", messages=HELLO))
        events = await sdk.every(client.responses.create(model="m", input="Hi", stream=True))
    assert got.choices[0].message.content == ANSWER
    assert events[-1].response.output_text == ANSWER


async def test_any_prefix_of_the_path(sdk: Any, model_server: ModelServer) -> None:
    for prefix in ("/v1", "/openai/v1", "/api/paas/v4", "/compatible-mode/v1", ""):
        async with sdk.openai(model_server.url, base_url=model_server.url + prefix) as client:
            await sdk.done(client.chat.completions.create(model="m", messages=HELLO))
        assert model_server.requests[-1].path == f"{prefix}/chat/completions"


# ---- errors, and the builders


async def test_errors(sdk: Any, model_server: ModelServer) -> None:
    raised: Any = {429: openai.RateLimitError, 401: openai.AuthenticationError, 503: openai.InternalServerError}
    async with sdk.openai(model_server.url, **STRICT) as client:
        for status, error in raised.items():
            with pytest.raises(error) as caught:
                await sdk.done(client.chat.completions.create(model=f"error-{status}", messages=HELLO))
            assert caught.value.status_code == status
        with pytest.raises(openai.NotFoundError, match="/v1/nowhere"):
            await sdk.done(client.post("/nowhere", cast_to=object))


async def test_an_error_in_mid_stream(sdk: Any, model_server: ModelServer) -> None:
    async with sdk.openai(model_server.url, **STRICT) as client:
        with pytest.raises(openai.APIError, match="Overloaded"):
            await sdk.every(client.chat.completions.create(model="error-stream", messages=HELLO, stream=True))
        events = await sdk.every(client.responses.create(model="error-stream", input="Hi", stream=True))
    assert events[-1].type == "error"


async def test_numbers_arrive_as_they_were_given(sdk: Any, make_server: Any) -> None:
    used = Usage(
        input=10_000,
        output=900,
        cache_read=6_000,
        cache_write=3_000,
        cache_write_30m=1_000,
        cache_write_12h=2_000,
        reasoning=300,
        input_audio=40,
        output_audio=20,
    )
    chat = openai_wire.chat_completion("m", used, "Yes", service_tier="flex")
    server = make_server([Reply(body=chat), Reply(body=openai_wire.response("m", used, "Yes"))])
    async with sdk.openai(server.url, **STRICT) as client:
        completion = await sdk.done(client.chat.completions.create(model="m", messages=HELLO))
        response = await sdk.done(client.responses.create(model="m", input="Hi"))
    writes = {"cache_write_tokens": 3_000}
    writes["cache_write_tokens_details"] = {"ttl_30m_tokens": 1_000, "ttl_12h_tokens": 2_000}
    assert completion.service_tier == "flex"
    assert completion.usage.model_dump(exclude_unset=True) == {
        "prompt_tokens": 10_000,
        "completion_tokens": 900,
        "total_tokens": 10_900,
        "prompt_tokens_details": {"cached_tokens": 6_000, "audio_tokens": 40, **writes},
        "completion_tokens_details": {
            "reasoning_tokens": 300,
            "audio_tokens": 20,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert response.usage.model_dump(exclude_unset=True) == {
        "input_tokens": 10_000,
        "input_tokens_details": {"cached_tokens": 6_000, **writes},
        "output_tokens": 900,
        "output_tokens_details": {"reasoning_tokens": 300},
        "total_tokens": 10_900,
    }


@pytest.mark.parametrize("odd", [None, {"prompt_tokens": "12"}, {"input_tokens": -1, "new": {"x": None}}])
def test_a_raw_usage_block_goes_out_untouched(odd: Any) -> None:
    assert openai_wire.chat_completion("m", odd)["usage"] == odd
    assert openai_wire.completion("m", odd, "Yes")["usage"] == odd
    assert openai_wire.response("m", odd)["usage"] == odd
    assert openai_wire.response_events(openai_wire.response("m", odd))[-1][1]["response"]["usage"] == odd


@pytest.mark.parametrize("text", ["", " ", "one", "two words", " lead and trail ", "a\n\nb\t c", "naïve – ✓ 漢字"])
def test_pieces_add_up(text: str) -> None:
    assert "".join(openai_wire.pieces(text)) == text
