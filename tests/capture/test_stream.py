"""The tap on a body: what the caller reads is what an uninstrumented caller reads."""

from __future__ import annotations

import datetime
import itertools
import zlib
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest

import otel_tokens
from otel_tokens.capture import stream
from otel_tokens.demo.model import Model
from otel_tokens.demo.server import ModelServer, Reply, Request

MESSAGES: Any = [{"role": "user", "content": "Count to three."}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES, "stream": True}


@pytest.fixture(params=[False, True], ids=["plain", "gzip"])
def server(request: pytest.FixtureRequest, make_server: Any) -> ModelServer:
    """The model, with answers as they are or compressed, and the same answer with the same id every time."""
    model = Model()

    def respond(asked: Request) -> Reply:
        reply = model.respond(asked)
        same = [
            (name, {**data, "id": "chatcmpl-1", "created": 1} if isinstance(data, dict) else data)
            for name, data in reply.events or ()
        ]
        return Reply(events=same, gzip=request.param)

    return make_server(respond)


READS: dict[str, Callable[[Any], list[Any]]] = {
    "lines": lambda r: list(r.iter_lines()),
    "text": lambda r: ["".join(r.iter_text())],
    "bytes": lambda r: [b"".join(r.iter_bytes())],
    "small bytes": lambda r: list(r.iter_bytes(11)),
    "whole": lambda r: [r.read()],
    "content": lambda r: [r.text()],
}
AREADS: dict[str, Callable[[Any], Any]] = {
    "lines": lambda r: _every(r.iter_lines()),
    "bytes": lambda r: _every(r.iter_bytes(11)),
    "whole": lambda r: r.read(),
}


async def _every(items: Any) -> list[Any]:
    return [item async for item in items]


@pytest.mark.parametrize("way", READS)
def test_a_reader_of_lines_sees_what_it_saw_without_us(
    idle_meter: Any, server: ModelServer, clients: Any, way: str
) -> None:
    client = clients.openai(server)

    def read() -> list[Any]:
        with client.chat.completions.with_streaming_response.create(**CHAT) as response:
            return READS[way](response)

    bare = read()
    idle_meter.instrument()
    assert read() == bare
    assert idle_meter.one().usage.origin == "provider"
    first, second = server.requests
    assert first["stream_options"] is None
    assert second["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("sdk", ["async"], indirect=True)  # the synchronous ones: above
@pytest.mark.parametrize("way", AREADS)
async def test_an_async_reader_too(idle_meter: Any, server: ModelServer, sdk: Any, way: str) -> None:
    async def read() -> Any:
        async with (
            sdk.openai(server.url) as client,
            client.chat.completions.with_streaming_response.create(**CHAT) as response,
        ):
            return await AREADS[way](response)

    bare = await read()
    idle_meter.instrument()
    assert await read() == bare
    assert idle_meter.one().usage.origin == "provider"


def test_raw_bytes_are_still_of_their_encoding(idle_meter: Any, server: ModelServer, clients: Any) -> None:
    """Who passes the body on as it came (a proxy) passes on what the headers say."""
    idle_meter.instrument()
    with clients.openai(server).chat.completions.with_streaming_response.create(**CHAT) as response:
        data = b"".join(response.http_response.iter_raw())
        if response.headers.get("content-encoding") == "gzip":
            data = zlib.decompress(data, wbits=31)
    assert data.startswith(b"data: {")
    assert data.endswith(b"data: [DONE]\n\n")
    assert b"prompt_tokens" not in data
    assert idle_meter.one().usage.origin == "provider"


def test_a_caller_who_asked_gets_the_chunk_in_bytes_too(meter: Any, server: ModelServer, clients: Any) -> None:
    asked = {**CHAT, "stream_options": {"include_usage": True}}
    with clients.openai(server).chat.completions.with_streaming_response.create(**asked) as response:
        assert "prompt_tokens" in response.text()
    assert meter.one().usage.origin == "provider"


def test_the_text_of_a_legacy_stream(idle_meter: Any, server: ModelServer, clients: Any) -> None:
    client = clients.openai(server)

    def read() -> list[str]:
        create = client.completions.with_streaming_response.create
        with create(model="gpt-3.5-turbo-instruct", prompt="Count.", stream=True) as response:
            return list(response.iter_lines())

    bare = read()
    idle_meter.instrument()
    assert read() == bare
    assert idle_meter.one().usage.origin == "provider"


def test_the_response_keeps_its_own_attributes(idle_meter: Any, model_server: ModelServer, clients: Any) -> None:
    """What the HTTP client and the SDK keep on the body they made: elapsed time, the SDK's observer."""
    client = clients.openai(model_server)

    def look() -> list[type]:
        stream = client.chat.completions.create(**CHAT)
        kinds = [base for base in type(stream.response.stream).__mro__ if base.__name__.endswith("ByteStream")]
        with stream:
            list(stream)
        with client.chat.completions.with_streaming_response.create(**CHAT) as response:
            response.read()
        assert isinstance(stream.response.elapsed, datetime.timedelta)
        assert isinstance(response.elapsed, datetime.timedelta)
        return [kind for kind in kinds if kind.__module__.startswith("httpx") and not kind.__name__.startswith("Bound")]

    bare = look()
    idle_meter.instrument()
    assert look() == bare


def test_a_reader_who_stops_early(meter: Any, server: ModelServer, clients: Any) -> None:
    with clients.openai(server).chat.completions.with_streaming_response.create(**CHAT) as response:
        for line in response.iter_lines():
            if "content" in line:
                break
    record = meter.one()
    assert (record.outcome, record.usage.origin) == ("abandoned", "estimated")


def test_a_stream_that_outlives_the_meter(idle_meter: Any, server: ModelServer, clients: Any) -> None:
    """Uninstrumented while streams are open: they go on, and are recorded once or not at all."""
    client, other = clients.openai(server), clients.anthropic(server)
    idle_meter.instrument()
    parsed = client.chat.completions.create(**CHAT)
    unread = client.chat.completions.create(**CHAT)
    helper = other.messages.stream(model="claude-opus-4-1", max_tokens=50, messages=MESSAGES)
    with client.chat.completions.with_streaming_response.create(**CHAT) as response:
        lines = response.iter_lines()
        seen = [next(parsed), next(lines)]
        otel_tokens.uninstrument()
        assert list(parsed)
        assert "data: [DONE]" in list(lines)
    assert "usage" not in seen[1]
    assert list(unread)
    with helper as stream:
        assert stream.get_final_message().usage.output_tokens > 0
    for record in idle_meter.records(collect=True):
        assert record.outcome in ("ok", "abandoned")
    assert len(idle_meter.records()) <= 3
    assert len({record.id for record in idle_meter.records()}) == len(idle_meter.records())


def test_a_body_that_nobody_observes_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK asks the body for `stream_observer` at every chunk; a failing `__getattr__` would cost a microsecond."""

    class Body:
        closed = 0

    asked: list[str] = []
    found = stream._Tap.__getattr__

    def watched(tap: Any, name: str) -> Any:
        asked.append(name)
        return found(tap, name)

    monkeypatch.setattr(stream._Tap, "__getattr__", watched)
    response: Any = SimpleNamespace(headers={})
    tap = stream._Tap(Body(), cast("Any", None), response)
    assert getattr(tap, "stream_observer", None) is None
    assert asked == []
    observed = Body()
    observed.stream_observer = "theirs"  # type: ignore[attr-defined]
    assert stream._Tap(observed, cast("Any", None), response).stream_observer == "theirs"
    assert (tap.closed, asked) == (0, ["closed"])


@pytest.mark.parametrize("kind", ["text/plain", ""])
def test_events_under_another_name(idle_meter: Any, make_server: Any, clients: Any, kind: str) -> None:
    """Some servers and proxies do not say that what they stream are events; an SDK does not look at it."""
    model = Model()
    server = make_server(lambda asked: replace(model.respond(asked), headers={"content-type": kind}))
    idle_meter.instrument()
    with clients.openai(server).chat.completions.with_streaming_response.create(**CHAT) as response:
        assert "prompt_tokens" not in response.text()
    assert idle_meter.one().usage.origin == "provider"


def test_a_whole_answer_where_a_stream_was_asked_for(meter: Any, make_server: Any, clients: Any) -> None:
    """Servers that cannot stream answer so. The SDK makes no chunk of it; it is billed all the same."""
    server = make_server(lambda asked: Model().respond(replace(asked, json={**asked.json, "stream": False})))
    assert list(clients.openai(server).chat.completions.create(**CHAT)) == []
    record = meter.one()
    assert (record.outcome, record.usage.origin) == ("ok", "provider")
    assert record.usage.output > 0


def test_a_stream_that_a_hook_has_read(idle_meter: Any, server: ModelServer, clients: Any, http: Any) -> None:
    """An event hook that logs answers reads the body before the caller does."""
    client = clients.openai(server, http_client=http(openai).Client(event_hooks={"response": [lambda r: r.read()]}))
    create = client.chat.completions.with_streaming_response.create

    def read() -> list[Any]:
        with create(**CHAT) as lines, create(**CHAT) as parsed:
            return [list(lines.iter_lines()), list(parsed.parse()), list(client.chat.completions.create(**CHAT))]

    bare = read()
    idle_meter.instrument()
    assert read() == bare
    records = idle_meter.records(collect=True)
    assert [(r.outcome, r.usage.origin) for r in records] == [("ok", "provider")] * 3


class Insistent(openai.OpenAI):
    """Sends what failed once more."""

    def request(self, cast_to: Any, options: Any, **more: Any) -> Any:
        try:
            return super().request(cast_to, options, **more)
        except openai.InternalServerError:
            return super().request(cast_to, options, **more)


class Asking(openai.OpenAI):
    """Asks for usage by the SDK's own hook."""

    def _prepare_options(self, options: Any) -> Any:
        options.json_data = {**options.json_data, "stream_options": {"include_usage": True}}
        return options


@pytest.mark.parametrize("kind", [Insistent, Asking])
def test_clients_that_change_a_request_or_repeat_it(idle_meter: Any, make_server: Any, kind: Any) -> None:
    model, count = Model(), itertools.count()

    def respond(asked: Request) -> Reply:
        return model.respond(asked) if next(count) % 2 or kind is Asking else Reply(500, {"error": {"message": "no"}})

    def shapes() -> list[bool]:
        return [bool(chunk.choices) for chunk in client.chat.completions.create(**CHAT)]

    with kind(api_key="k", base_url=f"{make_server(respond).url}/v1", max_retries=0) as client:
        bare = shapes()
        idle_meter.instrument()
        assert shapes() == bare
    assert idle_meter.records()[-1].usage.origin == "provider"
    assert bare[-1] == (kind is Insistent)
