"""Faults of ours, put in on purpose in every room: the caller's call is as it was, and it is said once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import openai
import pytest

import otel_tokens
from otel_tokens import conventions as c
from otel_tokens.capture import exchange as capture_exchange
from otel_tokens.capture import stream as capture_stream
from otel_tokens.capture.request import Requests
from otel_tokens.demo.server import ModelServer, Reply
from otel_tokens.instrument import runtime
from otel_tokens.ledger import ledger as ledger_room
from otel_tokens.lifecycle import ending as lifecycle_ending
from otel_tokens.usage.read import Facts

MESSAGES: Any = [{"role": "user", "content": "Count to three."}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES}
ASK: dict[str, Any] = {"model": "claude-opus-4-1", "max_tokens": 50, "messages": MESSAGES}


class OurFaultError(Exception):
    """What the rooms raise here."""


def fails(*_: Any, **__: Any) -> Any:
    raise OurFaultError("of ours")


def engine() -> Any:
    held = runtime()
    assert held is not None
    return held.engine


# Where it is put in, and whether there still is a record.
FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], bool]] = {
    "price": (lambda m: m.setattr(engine(), "price", fails), True),
    "reader of answers": (lambda m: m.setattr(Facts, "read_whole", fails), True),
    "reader of chunks": (lambda m: m.setattr(Facts, "read", fails), True),
    "normalise": (lambda m: m.setattr(lifecycle_ending, "normalise", fails), True),
    "ending": (lambda m: m.setattr(lifecycle_ending.Ending, "__call__", fails), False),
    "ledger": (lambda m: m.setattr(ledger_room, "encode", fails), True),
    "metrics": (lambda m: m.setattr(runtime().metrics.totals, "add", fails), True),  # type: ignore[union-attr]
    "span start": (lambda m: m.setattr(type(engine().spans), "start", fails), True),
    "span attach": (lambda m: m.setattr(type(engine().spans), "attach", fails), True),
    "span finish": (lambda m: m.setattr(type(engine().spans), "finish", fails), True),
    "span ids": (lambda m: m.setattr(type(engine().spans), "ids", fails), True),
    "request": (lambda m: m.setattr(Requests, "call", fails), False),
    "endpoint": (lambda m: m.setattr(Requests, "endpoint", fails), False),
    "foreign spans": (lambda m: m.setattr(capture_exchange, "foreign_span", fails), True),
    "option": (lambda m: m.setattr(capture_exchange, "ask_for_usage", fails), False),
    "response": (lambda m: m.setattr(capture_exchange, "response_of", fails), True),
    "tap": (lambda m: m.setattr(capture_exchange, "attach", fails), True),
    "body": (lambda m: m.setattr(capture_stream, "body_for", fails), True),
    "estimate": (lambda m: m.setattr(type(engine().estimator), "learn", fails), True),
    "worker": (lambda m: m.setattr(type(engine().worker), "ensure", fails), True),
}


def answers(client: openai.OpenAI) -> list[Any]:
    """What the caller gets, by several ways."""
    with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
        lines = list(response.iter_lines())
    return [
        client.chat.completions.create(**CHAT).choices,
        client.chat.completions.with_raw_response.create(**CHAT).parse().choices,
        [chunk.choices for chunk in client.chat.completions.create(**CHAT, stream=True) if chunk.choices],
        [json.loads(line[6:])["choices"] for line in lines if "choices" in line and '"choices":[]' not in line],
    ]


@pytest.mark.parametrize("place", FAULTS)
def test_the_call_is_not_affected(
    idle_meter: Any,
    model_server: ModelServer,
    clients: Any,
    contained: Any,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = clients.openai(model_server)
    bare = answers(client)
    idle_meter.instrument()
    put_in, recorded = FAULTS[place]
    with monkeypatch.context() as patch:
        put_in(patch)
        for _ in range(3):
            assert answers(client) == bare
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**{**CHAT, "model": "error-404"})
        idle_meter.records(collect=True)
    if recorded:
        assert len(idle_meter.seen) == 13
        assert idle_meter.seen[-1].outcome == "error"
    told = [record for record in contained.records if record.levelno >= logging.ERROR]
    assert told, "silence"
    for record in told:
        assert "your call is not affected" in record.getMessage()
        assert record.exc_info is not None
    places = [record.getMessage().partition("(")[0] for record in told]
    assert len(places) == len(set(places))
    # And afterwards it works again.
    before = len(idle_meter.records())
    client.chat.completions.create(**CHAT)
    assert len(idle_meter.records()) == before + 1


async def test_async_calls_are_not_affected(
    idle_meter: Any, model_server: ModelServer, contained: Any, monkeypatch: pytest.MonkeyPatch, sdk: Any
) -> None:
    for place, (put_in, _) in FAULTS.items():
        idle_meter.instrument()
        with monkeypatch.context() as patch:
            put_in(patch)
            async with sdk.anthropic(model_server.url) as client:
                assert (await sdk.done(client.messages.create(**ASK))).usage.output_tokens > 0, place
                assert len(await sdk.every(client.messages.create(**ASK, stream=True))) > 3, place
        otel_tokens.uninstrument()


def test_an_application_whose_on_record_fails(
    idle_meter: Any, model_server: ModelServer, clients: Any, contained: Any
) -> None:
    idle_meter.instrument(on_record=fails)
    client = clients.openai(model_server)
    for _ in range(5):
        client.chat.completions.create(**CHAT)
        list(client.chat.completions.create(**CHAT, stream=True))
    assert len(idle_meter.ledger()) == len(idle_meter.spans()) == idle_meter.total(c.CALLS.name) == 10
    assert idle_meter.total(c.FAULTS.name) == 10
    (told,) = [record for record in contained.records if record.levelno >= logging.ERROR]
    assert told.getMessage() == ("otel_tokens failed in on_record (OurFaultError: of ours); your call is not affected")


def test_strict_raises(idle_meter: Any, model_server: ModelServer, clients: Any) -> None:
    idle_meter.instrument(on_record=fails)
    with pytest.raises(OurFaultError):
        clients.openai(model_server).chat.completions.create(**CHAT)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_our_code_is_the_users(
    idle_meter: Any, model_server: ModelServer, clients: Any, interrupt: type[BaseException]
) -> None:
    """Ctrl-C is not ours to swallow, wherever it arrives."""

    def raises(_: Any) -> None:
        raise interrupt

    idle_meter.instrument(on_record=raises)
    with pytest.raises(interrupt):
        clients.openai(model_server).chat.completions.create(**CHAT)


@pytest.mark.parametrize("text", ["[" * 60_000, '{"usage":' * 40_000, "", "null", "7", '"text"', "[[1]]", "\ufeff{}"])
def test_answers_that_are_no_answers(meter: Any, make_server: Any, clients: Any, text: str) -> None:
    server = make_server(Reply(body=text.encode(), headers={"content-type": "application/json"}))
    raw = clients.openai(server).chat.completions.with_raw_response.create(**CHAT)
    assert raw.content == text.encode()
    with clients.openai(server).chat.completions.with_streaming_response.create(**CHAT) as response:
        assert response.read() == text.encode()
    assert [(r.outcome, r.usage.origin) for r in meter.records()] == [("ok", "missing")] * 2


def test_an_error_that_cannot_be_printed(
    idle_meter: Any, http: Any, clients: Any, model_server: ModelServer, contained: Any
) -> None:
    """What the SDK raised is what the caller gets, however odd it is."""

    class OddError(Exception):
        status_code = 400

        def __str__(self) -> str:
            raise RuntimeError("no words")

    def respond(_: Any) -> Any:
        raise OddError

    class Client(openai.OpenAI):
        def _prepare_options(self, options: Any) -> Any:
            raise OddError

    idle_meter.instrument()
    with Client(api_key="k", base_url=f"{model_server.url}/v1") as client, pytest.raises(OddError):
        client.chat.completions.create(**CHAT, stream=True)
    assert idle_meter.one().outcome == "error"


class OtherLoopsCancelled(BaseException):
    """How trio cancels, or gevent times out."""


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OtherLoopsCancelled])
def test_an_interrupted_call_may_be_billed(
    idle_meter: Any, http: Any, clients: Any, model_server: ModelServer, interrupt: type[BaseException]
) -> None:
    """It was sent, and nobody refused it: its budget is spent, as that of a cancelled call is."""

    def respond(_: Any) -> Any:
        raise interrupt

    idle_meter.instrument(budgets=[otel_tokens.Budget("all", tokens=1000)], store="memory")
    web = http(openai)
    client = clients.openai(model_server, http_client=web.Client(transport=web.MockTransport(respond)))
    with pytest.raises(interrupt):
        client.chat.completions.create(**CHAT, max_tokens=50)
    assert idle_meter.one().outcome == "cancelled"
    (row,) = otel_tokens.guard().status()
    assert row.used > 0
