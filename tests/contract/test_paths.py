"""Every path to a billed call: one record each, the provider's numbers, and the caller's object untouched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pydantic
import pytest

from otel_tokens.demo.server import ModelServer, Reply, Request

MESSAGES: Any = [{"role": "user", "content": "Count to three."}]


class Answer(pydantic.BaseModel):
    text: str


OPENED: list[Any] = []


@pytest.fixture(autouse=True)
def _close_clients() -> Any:
    yield
    while OPENED:
        OPENED.pop().close()


def keep(client: Any) -> Any:
    OPENED.append(client)
    return client


def openai_client(server: ModelServer, **more: Any) -> openai.OpenAI:
    return keep(openai.OpenAI(api_key="k", base_url=f"{server.url}/v1", **more))


def anthropic_client(server: ModelServer) -> anthropic.Anthropic:
    return keep(anthropic.Anthropic(api_key="k", base_url=server.url))


OPENAI: dict[str, Callable[[openai.OpenAI], Any]] = {
    "create": lambda c: c.chat.completions.create(model="gpt-4o", messages=MESSAGES),
    "parse": lambda c: c.chat.completions.parse(model="gpt-4o", messages=MESSAGES, response_format=Answer),
    "raw": lambda c: c.chat.completions.with_raw_response.create(model="gpt-4o", messages=MESSAGES).parse(),
    "raw unparsed": lambda c: c.chat.completions.with_raw_response.create(model="gpt-4o", messages=MESSAGES).text,
    "options": lambda c: c.with_options(timeout=5).chat.completions.create(model="gpt-4o", messages=MESSAGES),
    "copy": lambda c: c.copy().chat.completions.create(model="gpt-4o", messages=MESSAGES),
    "post": lambda c: c.post("/chat/completions", body={"model": "gpt-4o", "messages": MESSAGES}, cast_to=object),
    "responses": lambda c: c.responses.create(model="gpt-4o", input="Count."),
    "responses parse": lambda c: c.responses.parse(model="gpt-4o", input="Count.", text_format=Answer),
    "responses raw": lambda c: c.responses.with_raw_response.create(model="gpt-4o", input="Count.").parse(),
    "completions": lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="Count."),
    "embeddings": lambda c: c.embeddings.create(model="text-embedding-3-small", input="Count."),
    "chat helper": lambda c: _helper(c.chat.completions.stream(model="gpt-4o", messages=MESSAGES)),
    "responses helper": lambda c: _helper(c.responses.stream(model="gpt-4o", input="Count.")),
    "chat stream": lambda c: list(c.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)),
    "completions stream": lambda c: list(
        c.completions.create(model="gpt-3.5-turbo-instruct", prompt="Count.", stream=True)
    ),
    "responses stream": lambda c: list(c.responses.create(model="gpt-4o", input="Count.", stream=True)),
    "raw stream": lambda c: list(
        c.chat.completions.with_raw_response.create(model="gpt-4o", messages=MESSAGES, stream=True).parse()
    ),
    "streaming response read": lambda c: _within(_streaming(c), lambda r: r.read()),
    "streaming response parse": lambda c: _within(_streaming(c), lambda r: r.parse()),
    "streaming response json": lambda c: _within(_streaming(c), lambda r: r.json()),
    "streaming response bytes": lambda c: _within(_streaming(c), lambda r: list(r.iter_bytes())),
    "streaming response lines": lambda c: _within(_streaming(c), lambda r: list(r.iter_lines())),
    "streaming response events": lambda c: _within(_streaming(c, stream=True), lambda r: list(r.parse())),
    "streaming response event bytes": lambda c: _within(_streaming(c, stream=True), lambda r: list(r.iter_bytes())),
    "streaming response event lines": lambda c: _within(_streaming(c, stream=True), lambda r: list(r.iter_lines())),
    "streaming response event text": lambda c: _within(_streaming(c, stream=True), lambda r: list(r.iter_text(7))),
}
ANTHROPIC: dict[str, Callable[[anthropic.Anthropic], Any]] = {
    "create": lambda c: c.messages.create(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES),
    "raw": lambda c: c.messages.with_raw_response.create(
        model="claude-opus-4-1", max_tokens=50, messages=MESSAGES
    ).parse(),
    "beta": lambda c: c.beta.messages.create(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES),
    "stream": lambda c: list(c.messages.create(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES, stream=True)),
    "beta stream": lambda c: list(
        c.beta.messages.create(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES, stream=True)
    ),
    "helper": lambda c: _helper(c.messages.stream(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES)),
    "text_stream": lambda c: _within(_messages(c), lambda s: "".join(s.text_stream)),
    "get_final_message": lambda c: _within(_messages(c), lambda s: s.get_final_message()),
    "until_done": lambda c: _within(_messages(c), lambda s: s.until_done()),
    "beta helper": lambda c: _helper(c.beta.messages.stream(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES)),
    "streaming response lines": lambda c: _within(
        c.messages.with_streaming_response.create(
            model="claude-opus-4-1", max_tokens=50, messages=MESSAGES, stream=True
        ),
        lambda r: list(r.iter_lines()),
    ),
    "streaming response read": lambda c: _within(
        c.messages.with_streaming_response.create(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES),
        lambda r: r.read(),
    ),
    "options": lambda c: c.with_options(timeout=5).messages.create(
        model="claude-opus-4-1", max_tokens=50, messages=MESSAGES
    ),
    "post": lambda c: c.post(
        "/v1/messages",
        body={"model": "claude-opus-4-1", "max_tokens": 50, "messages": MESSAGES},
        cast_to=object,
    ),
}


def _messages(client: anthropic.Anthropic) -> Any:
    return client.messages.stream(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES)


def _streaming(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.with_streaming_response.create(model="gpt-4o", messages=MESSAGES, **more)


def _within(manager: Any, read: Callable[[Any], Any]) -> Any:
    with manager as opened:
        return read(opened)


def _helper(manager: Any) -> Any:
    with manager as stream:
        return list(stream)


def check(meter: Any, model: str) -> None:
    record = meter.one()
    assert record.outcome == "ok"
    assert record.usage.origin == "provider"
    assert record.usage.input > 0
    assert record.call.model == model
    assert record.usage.output > 0 or record.call.operation == "embeddings"
    (span,) = meter.spans()
    assert span.attributes["gen_ai.usage.input_tokens"] == record.usage.input
    assert meter.total("gen_ai.client.inference.usage.input_tokens") == record.usage.input
    assert meter.total("gen_ai.client.inference.usage.output_tokens") == record.usage.output
    (row,) = meter.ledger()
    assert row.usage == record.usage
    assert row.cost == record.cost


@pytest.mark.parametrize("path", OPENAI)
def test_openai(meter: Any, model_server: ModelServer, path: str) -> None:
    model = {"embeddings": "text-embedding-3-small"}.get(
        path, "gpt-3.5-turbo-instruct" if path.startswith("completions") else "gpt-4o"
    )
    OPENAI[path](openai_client(model_server))
    check(meter, model)


@pytest.mark.parametrize("path", ANTHROPIC)
def test_anthropic(meter: Any, model_server: ModelServer, path: str) -> None:
    ANTHROPIC[path](anthropic_client(model_server))
    check(meter, "claude-opus-4-1")


ASYNC: dict[str, Callable[[Any, Any], Any]] = {
    "chat": lambda o, _: o.chat.completions.create(model="gpt-4o", messages=MESSAGES),
    "parse": lambda o, _: o.chat.completions.parse(model="gpt-4o", messages=MESSAGES, response_format=Answer),
    "raw": lambda o, _: o.chat.completions.with_raw_response.create(model="gpt-4o", messages=MESSAGES),
    "helper": lambda o, _: _ahelper(o.chat.completions.stream(model="gpt-4o", messages=MESSAGES)),
    "responses": lambda o, _: o.responses.create(model="gpt-4o", input="Count."),
    "responses helper": lambda o, _: _ahelper(o.responses.stream(model="gpt-4o", input="Count.")),
    "streaming parse": lambda o, _: _astreaming(
        o.responses.with_streaming_response.create(model="gpt-4o", input="Count.", stream=True)
    ),
    "lines": lambda o, _: _alines(
        o.chat.completions.with_streaming_response.create(model="gpt-4o", messages=MESSAGES, stream=True)
    ),
    "messages": lambda _, a: a.messages.create(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES),
    "messages raw": lambda _, a: a.messages.with_raw_response.create(
        model="claude-opus-4-1", max_tokens=50, messages=MESSAGES
    ),
    "messages helper": lambda _, a: _ahelper(
        a.messages.stream(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES)
    ),
    "messages text": lambda _, a: _atext(a.messages.stream(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES)),
    "beta helper": lambda _, a: _ahelper(
        a.beta.messages.stream(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES)
    ),
}


async def _ahelper(manager: Any) -> Any:
    async with manager as stream:
        return [event async for event in stream]


async def _astreaming(manager: Any) -> Any:
    async with manager as response:
        return [event async for event in await response.parse()]


async def _alines(manager: Any) -> Any:
    async with manager as response:
        return [line async for line in response.iter_lines()]


async def _atext(manager: Any) -> Any:
    async with manager as stream:
        return [text async for text in stream.text_stream]


@pytest.mark.parametrize("path", ASYNC)
def test_async(meter: Any, model_server: ModelServer, path: str) -> None:
    async def go() -> None:
        async with (
            openai.AsyncOpenAI(api_key="k", base_url=f"{model_server.url}/v1") as o,
            anthropic.AsyncAnthropic(api_key="k", base_url=model_server.url) as a,
        ):
            await ASYNC[path](o, a)

    asyncio.run(go())
    check(meter, "claude-opus-4-1" if path.startswith(("messages", "beta")) else "gpt-4o")


def test_module_level_client(meter: Any, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "api_key", "k")
    monkeypatch.setattr(openai, "base_url", f"{model_server.url}/v1/")
    openai.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    check(meter, "gpt-4o")
    openai._module_client.close() if hasattr(openai._module_client, "close") else None  # type: ignore[attr-defined]
    openai._reset_client()  # type: ignore[attr-defined]


CLOUDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "AnthropicBedrock": (
        lambda url: anthropic.AnthropicBedrock(
            aws_access_key="a", aws_secret_key="s", aws_region="us-east-1", base_url=url
        ),
        "aws.bedrock",
    ),
    "AnthropicVertex": (
        lambda url: anthropic.AnthropicVertex(region="us-east5", project_id="p", access_token="t", base_url=url),
        "gcp.vertex_ai",
    ),
    "AnthropicFoundry": (lambda url: anthropic.AnthropicFoundry(api_key="k", base_url=url), "azure.ai.inference"),
    "AnthropicBedrockMantle": (
        lambda url: anthropic.AnthropicBedrockMantle(
            aws_access_key="a", aws_secret_key="s", aws_region="us-east-1", base_url=url
        ),
        "aws.bedrock",
    ),
    "AnthropicAWS": (
        lambda url: anthropic.AnthropicAWS(
            aws_access_key="a", aws_secret_key="s", aws_region="us-east-1", workspace_id="w", base_url=url
        ),
        "anthropic",
    ),
}


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("beta", [False, True], ids=["stable", "beta"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_clouds(meter: Any, model_server: ModelServer, cloud: str, beta: bool, stream: bool) -> None:
    make, provider = CLOUDS[cloud]
    if not hasattr(anthropic, cloud):
        pytest.fail(f"{cloud} is not in this SDK")
    client = keep(make(model_server.url))
    messages = client.beta.messages if beta else client.messages
    result = messages.create(
        model="anthropic.claude-opus-4-1-20250805-v1:0" if "Bedrock" in cloud else "claude-opus-4-1",
        max_tokens=50,
        messages=MESSAGES,
        stream=stream,
    )
    if stream:
        assert list(result)
    record = meter.one()
    assert (record.call.provider, record.usage.origin) == (provider, "provider")


def _cloud_client(cloud: str, url: str) -> Any:
    if cloud == "BedrockOpenAI":
        return openai.BedrockOpenAI(api_key="k", aws_region="us-east-1", base_url=url)
    from openai import providers

    if cloud == "bedrock":
        return openai.OpenAI(provider=providers.bedrock(api_key="k", region="us-east-1", base_url=url))
    if not hasattr(providers, "vertex"):
        return None  # not in openai 2
    return openai.OpenAI(provider=providers.vertex(base_url=url, token_provider=lambda: "t"))


@pytest.mark.parametrize(
    ("cloud", "biller"), [("BedrockOpenAI", "aws.bedrock"), ("bedrock", "aws.bedrock"), ("vertex", "gcp.vertex_ai")]
)
def test_openai_on_clouds(meter: Any, model_server: ModelServer, cloud: str, biller: str) -> None:
    made = _cloud_client(cloud, f"{model_server.url}/v1")
    if made is None:
        assert int(openai.__version__.partition(".")[0]) < 3
        return
    keep(made).chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert meter.one().call.provider == biller


def test_azure(meter: Any, model_server: ModelServer) -> None:
    client = keep(openai.AzureOpenAI(api_key="k", api_version="2024-10-21", azure_endpoint=model_server.url))
    client.chat.completions.create(model="my-deployment", messages=MESSAGES)
    record = meter.one()
    assert (record.call.provider, record.call.model) == ("azure.ai.openai", "my-deployment")
    assert "/deployments/my-deployment/" in model_server.requests[0].path


def test_a_client_and_a_raw_response_object_made_before(model_server: ModelServer, request: Any) -> None:
    client = openai_client(model_server)
    raw = client.chat.completions.with_raw_response
    early = anthropic_client(model_server).messages.with_raw_response
    meter = request.getfixturevalue("meter")
    raw.create(model="gpt-4o", messages=MESSAGES).parse()
    early.create(model="claude-opus-4-1", max_tokens=9, messages=MESSAGES).parse()
    assert [r.usage.origin for r in meter.records()] == ["provider", "provider"]


def test_count_tokens_and_reads_are_not_billed(meter: Any, model_server: ModelServer) -> None:
    anthropic_client(model_server).messages.count_tokens(model="claude-opus-4-1", messages=MESSAGES)
    client = openai_client(model_server)
    response = client.responses.create(model="gpt-4o", input="Count.")
    client.get(f"/responses/{response.id}", cast_to=object)
    assert len(meter.records()) == 1


def test_tool_runner_one_record_a_turn(meter: Any, model_server: ModelServer) -> None:
    @anthropic.beta_tool
    def get_weather(location: str) -> str:
        """The weather.

        Args:
            location: where
        """
        return f"sunny in {location}"

    client = anthropic_client(model_server)
    turns = list(
        client.beta.messages.tool_runner(
            model="claude-opus-4-1", max_tokens=100, tools=[get_weather], messages=MESSAGES
        )
    )
    assert len(turns) == 2
    assert len(meter.records()) == 2


def test_retries_are_one_record(meter: Any, make_server: Any) -> None:
    busy = Reply(status=429, body={"error": {"message": "slow down"}}, headers={"retry-after-ms": "1"})
    good = make_server()
    openai_client(good).chat.completions.create(model="gpt-4o", messages=MESSAGES)
    answer = good.respond(good.requests[0])
    meter.seen.clear()
    server = make_server([busy, busy, answer])
    openai_client(server).chat.completions.create(model="gpt-4o", messages=MESSAGES)
    record = meter.one()
    assert (record.outcome, record.attempts) == ("ok", 3)


def test_a_failing_call(meter: Any, make_server: Any) -> None:
    server = make_server(Reply(status=401, body={"error": {"message": "no"}}))
    with pytest.raises(openai.AuthenticationError):
        openai_client(server).chat.completions.create(model="gpt-4o", messages=MESSAGES)
    record = meter.one()
    assert (record.outcome, record.error_type, record.usage.origin) == (
        "error",
        "openai.AuthenticationError",
        "missing",
    )
    assert record.cost.total is None
    assert meter.total("gen_ai.client.inference.usage.input_tokens") == 0


@pytest.mark.priced
def test_a_cut_answer_that_parse_refuses_is_billed(meter: Any, model_server: ModelServer, make_server: Any) -> None:
    client = openai_client(model_server)
    client.chat.completions.parse(model="gpt-4o", messages=MESSAGES, response_format=Answer)
    body = dict(model_server.respond(model_server.requests[0]).body)
    body["choices"][0]["finish_reason"] = "length"
    meter.seen.clear()
    server = make_server(Reply(body=body))
    with pytest.raises(openai.LengthFinishReasonError):
        openai_client(server).chat.completions.parse(model="gpt-4o", messages=MESSAGES, response_format=Answer)
    record = meter.one()
    assert record.outcome == "error"
    assert record.usage.to_openai()["prompt_tokens"] == body["usage"]["prompt_tokens"]
    assert record.cost.total is not None


def test_the_callers_object_is_the_same(model_server: ModelServer, request: Any) -> None:
    """With and without the meter: the same chunks, no chunk more, and the same request but for the option."""

    client = openai_client(model_server)
    bare = list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
    request.getfixturevalue("meter")
    metered = list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
    assert [c.choices for c in metered] == [c.choices for c in bare]
    assert [c.usage for c in metered] == [c.usage for c in bare]
    first, second = (dict(asked.json) for asked in model_server.requests)
    assert second.pop("stream_options") == {"include_usage": True}
    assert first == second


def test_a_caller_who_asks_for_usage_gets_it(meter: Any, model_server: ModelServer) -> None:
    chunks = list(
        openai_client(model_server).chat.completions.create(
            model="gpt-4o", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert meter.one().usage.input == chunks[-1].usage.prompt_tokens


def test_a_host_that_rejects_the_option(meter: Any, make_server: Any, model_server: ModelServer) -> None:
    def picky(asked: Request) -> Reply:
        if asked["stream_options"] is not None:
            return Reply(status=400, body={"error": {"message": "Unrecognized request argument: stream_options"}})
        return model_server.respond(asked)

    client = openai_client(make_server(picky))
    for _ in range(2):
        assert list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
    first, second = meter.records()
    assert (first.attempts, second.attempts) == (2, 1)
    assert {r.missing_reason for r in (first, second)} == {"stream_no_usage"}
    assert {r.usage.origin for r in (first, second)} == {"estimated"}
    assert meter.total("otel_tokens.usage.missing") == 2


def test_uninstrument_restores_the_very_same_objects(model_server: ModelServer) -> None:
    import openai._base_client as base
    import openai._streaming as streaming

    import otel_tokens

    def functions() -> list[Any]:
        return [vars(base.SyncAPIClient)["request"], vars(base.AsyncAPIClient)["request"]]

    def patched() -> list[Any]:
        return [
            *(function.__code__ for function in functions()),  # the wrapper is inside
            vars(streaming.Stream)["__stream__"],
            vars(streaming.AsyncStream)["__stream__"],
        ]

    before = functions(), patched()
    otel_tokens.instrument(config=False, prometheus=False)
    try:
        otel_tokens.instrument(config=False, prometheus=False)
        assert all(now is then for now, then in zip(functions(), before[0], strict=True))
        assert all(now is not then for now, then in zip(patched(), before[1], strict=True))
    finally:
        otel_tokens.uninstrument()
        otel_tokens.uninstrument()
    assert all(now is then for now, then in zip(functions(), before[0], strict=True))
    assert all(now is then for now, then in zip(patched(), before[1], strict=True))


def background_server(make_server: Any, model_server: ModelServer) -> ModelServer:
    """Answers `queued` at first, `in_progress` to the first poll, and then the whole answer."""
    polls: list[str] = []

    def respond(asked: Request) -> Reply:
        if asked.method == "POST":
            whole = model_server.respond(replace(asked, json={**asked.json, "background": False}))
            held["answer"] = whole.body
            return Reply(body={**whole.body, "status": "queued", "usage": None, "output": []})
        polls.append(asked.path)
        if len(polls) == 1:
            return Reply(body={**held["answer"], "status": "in_progress", "usage": None, "output": []})
        return Reply(body=held["answer"])

    held: dict[str, Any] = {}
    return make_server(respond)


def test_a_background_response_is_one_record_with_the_usage_a_poll_finds(
    meter: Any, make_server: Any, model_server: ModelServer
) -> None:
    client = openai_client(background_server(make_server, model_server))
    response = client.responses.create(model="gpt-4o", input="Count.", background=True)
    assert meter.records() == []
    statuses = [client.responses.retrieve(response.id).status for _ in range(3)]
    assert statuses == ["in_progress", "completed", "completed"]
    record = meter.one()
    assert (record.outcome, record.usage.origin) == ("ok", "provider")
    assert record.usage.input > 0


def test_a_background_response_nobody_polls_is_recorded_without_usage(
    meter: Any, make_server: Any, model_server: ModelServer
) -> None:
    import otel_tokens

    client = openai_client(background_server(make_server, model_server))
    client.responses.create(model="gpt-4o", input="Count.", background=True)
    otel_tokens.uninstrument()
    record = meter.one()
    assert (record.usage.origin, record.missing_reason) == ("missing", "background")
