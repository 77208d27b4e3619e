"""Thousands of calls leave nothing behind, whatever their ends, clients, tags and models."""

from __future__ import annotations

import gc
import itertools
import json
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

import otel_tokens
from otel_tokens import conventions as c
from otel_tokens.demo import anthropic_wire, openai_wire
from otel_tokens.demo.wire import sse
from otel_tokens.instrument import flush, runtime
from otel_tokens.values import Usage

MESSAGES: Any = [{"role": "user", "content": "Tell me about the sea, please."}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES}
ASK: dict[str, Any] = {"model": "claude-opus-4-1", "max_tokens": 50, "messages": MESSAGES}
USAGE = Usage(input=1000, output=50, cache_read=800, origin="provider")


class Nowhere(SpanExporter):
    """Takes spans and keeps none."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@pytest.fixture
def transport(http: Any) -> Callable[..., Any]:
    """Answers in this process: whole, or as a stream with its usage at the end."""
    completion = openai_wire.chat_completion("gpt-4o", USAGE, "The sea is blue. " * 8)
    chat_stream = b"".join(map(sse, openai_wire.chat_events(completion, include_usage=True)))
    message = anthropic_wire.message("claude-opus-4-1", USAGE, "The sea is blue. " * 8)
    message_stream = b"".join(map(sse, anthropic_wire.message_events(message)))

    def make(sdk: Any) -> Any:
        module = http(sdk)
        whole = json.dumps(completion if sdk is openai else message).encode()
        events = chat_stream if sdk is openai else message_stream

        def answer(request: Any) -> Any:
            streamed = b'"stream":true' in request.content.replace(b" ", b"")
            return module.Response(
                200,
                headers={"content-type": "text/event-stream" if streamed else "application/json"},
                content=iter([events]) if streamed else whole,
            )

        return sdk.DefaultHttpxClient(transport=module.MockTransport(answer))

    return make


def settle() -> tuple[int, int]:
    """How many blocks of memory and how many objects there are when all is done."""
    for _ in range(3):
        gc.collect()
        flush()  # what the collector found has been handed to a thread
    return sys.getallocatedblocks(), len(gc.get_objects())


def check_flat(work: Callable[[int], None], count: int, parts: int = 4) -> None:
    """Do `work` once to warm up and `parts` times more.

    A leak grows with every call, so in every part. Caches and tables that are enlarged grow in some part only.
    """
    work(count)
    found = []
    for _ in range(parts):
        work(count)
        found.append(settle())
    for measured in zip(*found, strict=True):
        assert min(after - before for before, after in itertools.pairwise(measured)) < 0.1 * count, found


@pytest.fixture
def metered(idle_meter: Any) -> Any:
    """Instrumented with every way out, none of which keeps what it is given in memory."""
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(Nowhere()))
    idle_meter.instrument(tracer_provider=tracers, on_record=None)
    yield idle_meter
    tracers.shutdown()


def test_thousands_of_calls(metered: Any, transport: Any) -> None:
    with openai.OpenAI(api_key="k", http_client=transport(openai)) as client:
        # The SDK's own way through with the least of the SDK's own work.
        post = client.chat.completions.with_raw_response.create

        def work(count: int) -> None:
            for number in range(count):
                with otel_tokens.tags(session=f"s{number}", task="t"):
                    post(**CHAT)

        check_flat(work, 1000)
    assert metered.total(c.CALLS.name) == 5000
    assert metered.total(c.TOKENS_INPUT.name) == 5000 * 1000


def test_hundreds_of_streams_with_every_end(metered: Any, transport: Any) -> None:
    with (
        openai.OpenAI(api_key="k", http_client=transport(openai)) as client,
        anthropic.Anthropic(api_key="k", http_client=transport(anthropic)) as other,
    ):

        def closed() -> None:
            stream = client.chat.completions.create(**CHAT, stream=True)
            next(stream)
            stream.close()

        def dropped() -> None:
            next(client.chat.completions.create(**CHAT, stream=True))

        def lines() -> None:
            with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
                list(response.iter_lines())

        def helper() -> None:
            with other.messages.stream(**ASK) as stream:
                stream.until_done()

        def failed() -> None:
            with pytest.raises(ZeroDivisionError):
                for _ in other.messages.create(**ASK, stream=True):
                    1 / 0  # noqa: B018

        ends: list[Callable[[], Any]] = [
            lambda: list(client.chat.completions.create(**CHAT, stream=True)),
            lambda: list(client.responses.create(model="gpt-4o", input="x")),
            closed,
            dropped,
            lines,
            helper,
            failed,
            lambda: other.messages.create(**ASK, stream=True),  # dropped unread
        ]

        def work(count: int) -> None:
            for number in range(count):
                ends[number % len(ends)]()
                if number % 50 == 0:
                    gc.collect()  # the SDK's abandoned streams are cycles

        check_flat(work, 160)
    assert metered.total(c.CALLS.name) == 800


def test_many_clients_models_and_hosts(metered: Any, transport: Any) -> None:
    def work(count: int) -> None:
        for number in range(count):
            http_client = transport(openai)
            url = f"http://host{number % 10}.example:{8000 + number % 7}/v1"
            with openai.OpenAI(api_key="k", base_url=url, http_client=http_client) as client:
                client.chat.completions.create(**{**CHAT, "model": f"model-{number % 20}"})

    check_flat(work, 100)


def test_traced_memory(metered: Any, transport: Any) -> None:
    with openai.OpenAI(api_key="k", http_client=transport(openai)) as client:

        def work(count: int) -> None:
            for number in range(count):
                client.chat.completions.create(**CHAT)
                if number % 5 == 0:
                    list(client.chat.completions.create(**CHAT, stream=True))

        work(100)
        sizes: list[int] = []
        tracemalloc.start()
        try:
            for _ in range(4):
                work(100)
                settle()
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    # A leak grows in every part; what is kept of 100 calls would be over 100 kB.
    assert min(after - before for before, after in itertools.pairwise(sizes)) < 5_000, sizes


def test_nothing_is_recorded_inside_the_collector(metered: Any, transport: Any) -> None:
    """What runs there may run in the middle of anything: pricing sets a context variable, and CPython before 3.12
    breaks when that happens while another is being set."""
    collecting = threading.local()
    where: list[bool] = []
    held = runtime()
    assert held is not None
    engine = held.engine
    sinks = engine.sinks  # they run as a record is made, on whatever thread
    engine.sinks = (*sinks, ("where", lambda _: where.append(getattr(collecting, "on", False))))

    def callback(phase: str, _: Any) -> None:
        collecting.on = phase == "start"

    def drop(made: Any, **asked: Any) -> None:
        stream = made(**asked, stream=True)
        next(iter(stream))
        stream.myself = stream  # a cycle: only the collector finds it

    gc.callbacks.append(callback)
    try:
        with (
            openai.OpenAI(api_key="k", http_client=transport(openai)) as client,
            anthropic.Anthropic(api_key="k", http_client=transport(anthropic)) as other,
        ):
            for _ in range(100):
                drop(client.chat.completions.create, **CHAT)
                drop(other.messages.create, **ASK)
            settle()
    finally:
        gc.callbacks.remove(callback)
        engine.sinks = sinks
    assert where == [False] * 200
