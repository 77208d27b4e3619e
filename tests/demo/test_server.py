"""The server itself: mishaps on purpose, as the real SDKs see them; hang-ups noticed; nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from otel_tokens.demo import anthropic_wire, openai_wire
from otel_tokens.demo.model import ANSWER
from otel_tokens.demo.server import ModelServer, Reply, Request
from otel_tokens.values import Usage

HELLO: Any = [{"role": "user", "content": "What is a token?"}]
CHAT: Any = {"model": "m", "messages": HELLO}
COMPLETION = openai_wire.chat_completion("m", Usage(input=7, output=2), ANSWER)
EVENTS = openai_wire.chat_events(COMPLETION)
MakeServer = Callable[..., ModelServer]


def never() -> threading.Event:
    return threading.Event()


def connect(server: ModelServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=300)


async def test_the_sdk_retries_until_a_reply_serves(sdk: Any, make_server: MakeServer) -> None:
    server = make_server([openai_wire.error(429, "Slow down"), openai_wire.error(500, "Oops"), Reply(body=COMPLETION)])
    async with sdk.openai(server.url, max_retries=2) as client:
        got = await sdk.done(client.chat.completions.create(**CHAT))
    assert got.usage.prompt_tokens == 7
    assert [request.headers["x-stainless-retry-count"] for request in server.requests] == ["0", "1", "2"]


async def test_a_server_that_dies_in_mid_stream(sdk: Any, make_server: MakeServer) -> None:
    server = make_server(Reply(events=EVENTS, abort_after=3))
    async with sdk.openai(server.url) as client:
        stream = await sdk.done(client.chat.completions.create(**CHAT, stream=True))
        for _ in range(3):
            await sdk.next(stream)
        with pytest.raises(Exception, match=r"incomplete chunked read|Connection error"):
            await sdk.next(stream)
    assert server.disconnects == []  # it was not the client who hung up


async def test_a_server_that_dies_before_it_replies(sdk: Any, make_server: MakeServer) -> None:
    server = make_server(Reply(body={}, abort_after=0))
    async with sdk.openai(server.url) as client:
        with pytest.raises(openai.APIConnectionError):
            await sdk.done(client.chat.completions.create(**CHAT))


async def test_a_reply_that_is_held_runs_into_the_timeout(sdk: Any, make_server: MakeServer) -> None:
    server = make_server(Reply(body={}, hold=never()))
    async with sdk.openai(server.url, timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            await sdk.done(client.chat.completions.create(**CHAT))
    assert server.wait_for(lambda s: s.disconnects == [0])


async def test_a_client_that_closes_a_stream_is_noticed(sdk: Any, make_server: MakeServer) -> None:
    server = make_server(Reply(events=EVENTS, hold=never(), hold_at=3))
    async with sdk.openai(server.url) as client:
        stream = await sdk.done(client.chat.completions.create(**CHAT, stream=True))
        for _ in range(3):
            await sdk.next(stream)
        assert server.disconnects == []
        await sdk.done(stream.close())
        assert server.wait_for(lambda s: s.disconnects == [3])


async def test_a_client_that_leaves_between_slow_events_is_noticed(sdk: Any, make_server: MakeServer) -> None:
    server = make_server(Reply(events=EVENTS, delay=0.05))
    async with sdk.openai(server.url) as client:
        stream = await sdk.done(client.chat.completions.create(**CHAT, stream=True))
        await sdk.next(stream)
        await sdk.done(stream.close())
    assert server.wait_for(lambda s: len(s.disconnects) == 1)
    assert server.disconnects[0] < len(EVENTS)


def test_a_cancelled_task_hangs_up(make_server: MakeServer) -> None:
    server = make_server(Reply(events=EVENTS, hold=never(), hold_at=2))

    async def cancel() -> None:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="test", max_retries=0) as client:
            stream = await client.chat.completions.create(**CHAT, stream=True)
            seen = asyncio.Event()

            async def read() -> None:
                await stream.__anext__()
                await stream.__anext__()
                seen.set()
                await stream.__anext__()

            task = asyncio.create_task(read())
            await seen.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    assert server.wait_for(lambda s: s.disconnects == [2])


async def test_leaving_a_stream_helper_hangs_up(sdk: Any, make_server: MakeServer) -> None:
    whole = anthropic_wire.message("m", Usage(input=7, output=2), ANSWER)
    held = Reply(events=anthropic_wire.message_events(whole), hold=never(), hold_at=4)
    server = make_server([anthropic_wire.error(529, "overloaded_error", "Overloaded"), held])
    async with (
        sdk.anthropic(server.url, max_retries=1) as client,
        sdk.opened(client.messages.stream(**CHAT, max_tokens=9)) as helper,
    ):
        await sdk.next(aiter(helper.text_stream) if sdk.kind == "async" else iter(helper.text_stream))
    assert len(server.requests) == 2
    assert server.wait_for(lambda s: s.disconnects == [4])


async def test_a_held_stream_goes_on_when_released(sdk: Any, make_server: MakeServer) -> None:
    release = threading.Event()
    server = make_server(Reply(events=EVENTS, hold=release, hold_at=len(EVENTS)))
    async with sdk.openai(server.url) as client:
        stream = await sdk.done(client.chat.completions.create(**CHAT, stream=True))
        release.set()
        chunks = await sdk.every(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert server.disconnects == []


async def test_gzip(sdk: Any, make_server: MakeServer) -> None:
    server = make_server([Reply(body=COMPLETION, gzip=True), Reply(events=EVENTS, gzip=True)])
    async with sdk.openai(server.url) as client:
        raw = await sdk.done(client.chat.completions.with_raw_response.create(**CHAT))
        chunks = await sdk.every(client.chat.completions.create(**CHAT, stream=True))
    assert raw.headers["content-encoding"] == "gzip"
    assert raw.headers["x-request-id"] == "req_00000001"
    assert raw.parse().choices[0].message.content == ANSWER
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


async def test_the_native_error_types(sdk: Any, make_server: MakeServer) -> None:
    server = make_server([anthropic_wire.error(429, "rate_limit_error", "Slow"), openai_wire.error(429, "Slow")])
    async with sdk.anthropic(server.url) as client:
        with pytest.raises(anthropic.RateLimitError):
            await sdk.done(client.messages.create(**CHAT, max_tokens=9))
    async with sdk.openai(server.url) as client:
        with pytest.raises(openai.RateLimitError):
            await sdk.done(client.chat.completions.create(**CHAT))


# ---- without an SDK


def test_connections_are_kept_alive(model_server: ModelServer) -> None:
    connection = connect(model_server)
    sockets: set[Any] = set()
    for _ in range(3):
        connection.request("POST", "/v1/chat/completions?a=b%20c", json.dumps(CHAT))
        reply = connection.getresponse()
        assert (reply.status, reply.version) == (200, 11)
        assert json.loads(reply.read())["object"] == "chat.completion"
        sockets.add(connection.sock)
    connection.close()
    assert len(sockets) == 1
    assert [request.query for request in model_server.requests] == [{"a": "b c"}] * 3


def test_bodies_of_every_kind(make_server: MakeServer) -> None:
    server = make_server([Reply(body=b"\x00"), Reply(201, "plain"), Reply(body=None, headers={"X-Mine": "yes"})])
    connection = connect(server)
    seen: list[Any] = []
    for body in (b"not json", b"", b'{"a": [1]}'):
        connection.request("POST", "/x", body)
        reply = connection.getresponse()
        seen.append((reply.status, reply.read(), reply.headers["x-mine"]))
    connection.close()
    assert seen == [(200, b"\x00", None), (201, b"plain", None), (200, b"null", "yes")]
    assert [(request.json, request.body) for request in server.requests] == [
        (None, b"not json"),
        (None, b""),
        ({"a": [1]}, b'{"a": [1]}'),
    ]


def test_events_of_every_kind(make_server: MakeServer) -> None:
    events: list[Any] = [("n", {"a": 1}), (None, "two\nlines"), (None, b": raw\n\n"), (": comment", None), ["list", []]]
    connection = connect(make_server(Reply(events=events, delay=0.001)))
    connection.request("GET", "/x")
    reply = connection.getresponse()
    got = reply.read()
    connection.close()
    assert reply.headers["transfer-encoding"] == "chunked"
    assert got.split(b"\n\n") == [
        b'event: n\ndata: {"a":1}',
        b"data: two\ndata: lines",
        b": raw",
        b": comment",
        b"event: list\ndata: []",
        b"",
    ]


def test_a_fault_of_respond_is_a_500_and_is_kept() -> None:
    def respond(_: Request) -> Reply:
        raise KeyError("mine")

    with (
        ModelServer(respond) as server,
        openai.OpenAI(base_url=server.url, api_key="test", max_retries=0) as client,
        pytest.raises(openai.InternalServerError, match="mine"),
    ):
        client.chat.completions.create(**CHAT)
    assert [type(error) for error in server.errors] == [KeyError]


def test_closing_hangs_up_and_leaves_nothing() -> None:
    before = set(threading.enumerate())
    with ModelServer([Reply(body={}), Reply(body={}, hold=never())]) as server:
        idle, held = connect(server), connect(server)
        idle.request("GET", "/")
        idle.getresponse().read()
        held.request("GET", "/")
        assert server.wait_for(lambda s: len(s.requests) == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    assert set(threading.enumerate()) <= before
    assert server.disconnects == []
    server.close()
    with pytest.raises(OSError):
        connect(server).request("GET", "/")
    idle.close()
    held.close()
    gc.collect()  # a socket left open would warn here, and a warning is an error


def test_a_server_never_entered_leaves_nothing() -> None:
    ModelServer().close()
    gc.collect()


def test_many_clients_at_once(model_server: ModelServer) -> None:
    def ask() -> None:
        with openai.OpenAI(base_url=model_server.url, api_key="test", max_retries=0) as client:
            for _ in range(3):
                client.chat.completions.create(**CHAT)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(model_server.requests) == 24
