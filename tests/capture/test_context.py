"""The current span, threads, tasks, sampling: whoever calls is counted, and contexts are left as found."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult

from otel_tokens import conventions as c
from otel_tokens.demo.server import ModelServer, Reply
from otel_tokens.lifecycle.active import current

MESSAGES: Any = [{"role": "user", "content": "Tell me about the sea, please."}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES}
ASK: dict[str, Any] = {"model": "claude-opus-4-1", "max_tokens": 50, "messages": MESSAGES}


@pytest.fixture(autouse=True)
def _nothing_said(caplog: pytest.LogCaptureFixture) -> Any:
    """Nobody, OpenTelemetry least of all, logs an error; no call and no span is left current."""
    caplog.set_level(logging.WARNING)
    yield
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert current.get() is None
    assert context_api.get_current() == {}


# ---- spans -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True])
def test_parent_and_child(meter: Any, model_server: ModelServer, clients: Any, stream: bool) -> None:
    """The application's span is the parent of ours, and what the HTTP client traces is a child of ours."""
    tracer = meter.tracers.get_tracer("http")

    def send(request: Any) -> None:
        with tracer.start_as_current_span("POST"):
            pass

    http_client = openai.DefaultHttpxClient(event_hooks={"request": [send]})
    client = clients.openai(model_server, http_client=http_client)
    with meter.tracers.get_tracer("app").start_as_current_span("handler"):
        answer = client.chat.completions.create(**CHAT, stream=stream)
        with tracer.start_as_current_span("meanwhile"):
            list(answer)
    spans = {span.name: span for span in meter.spans()}
    ours = spans["chat gpt-4o"]
    assert ours.parent.span_id == spans["handler"].context.span_id
    assert spans["POST"].parent.span_id == ours.context.span_id
    # The stream is read by the application: what it does meanwhile is its own.
    assert spans["meanwhile"].parent.span_id == spans["handler"].context.span_id
    assert meter.one().trace_id == f"{spans['handler'].context.trace_id:032x}"


async def test_async_parent_and_child(meter: Any, model_server: ModelServer) -> None:
    tracer = meter.tracers.get_tracer("http")

    async def send(request: Any) -> None:
        with tracer.start_as_current_span("POST"):
            await asyncio.sleep(0)

    http_client = openai.DefaultAsyncHttpxClient(event_hooks={"request": [send]})
    options: dict[str, Any] = {"api_key": "k", "base_url": f"{model_server.url}/v1", "http_client": http_client}

    async def handle(number: int) -> None:
        with meter.tracers.get_tracer("app").start_as_current_span(f"handler {number}"):
            await client.chat.completions.create(**CHAT)
            assert trace.get_current_span().name == f"handler {number}"  # type: ignore[attr-defined]

    async with openai.AsyncOpenAI(**options) as client:
        await asyncio.gather(*(handle(number) for number in range(5)))
    spans = meter.spans()
    handlers = {span.context.span_id: span for span in spans if span.name.startswith("handler")}
    ours = {span.context.span_id: span for span in spans if span.name == "chat gpt-4o"}
    assert {span.parent.span_id for span in ours.values()} == set(handlers)
    assert {span.parent.span_id for span in spans if span.name == "POST"} == set(ours)


def test_never_sampled(idle_meter: Any, model_server: ModelServer, clients: Any) -> None:
    idle_meter.instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    client, other = clients.openai(model_server), clients.anthropic(model_server)
    client.chat.completions.create(**CHAT)
    list(client.chat.completions.create(**CHAT, stream=True))
    other.messages.create(**ASK)
    with other.messages.stream(**ASK) as stream:
        stream.until_done()
    records = idle_meter.records()
    assert [record.usage.origin for record in records] == ["provider"] * 4
    assert [record.cost.status for record in records] == ["priced"] * 4
    assert idle_meter.total(c.CALLS.name) == 4
    assert idle_meter.total(c.TOKENS_INPUT.name) == sum(record.usage.input for record in records)
    assert idle_meter.total(c.TOKENS_OUTPUT.name) == sum(record.usage.output for record in records)
    assert idle_meter.total(c.COST.name) == pytest.approx(float(sum(record.cost.total for record in records)), rel=1e-9)
    assert [row.cost for row in idle_meter.ledger()] == [record.cost for record in records]


def test_the_sampler_knows_the_call(idle_meter: Any, model_server: ModelServer, clients: Any) -> None:
    asked: list[Any] = []

    class ByModel(Sampler):
        def should_sample(
            self,
            parent_context: Any,
            trace_id: Any,
            name: Any,
            kind: Any = None,
            attributes: Any = None,
            *more: Any,
            **rest: Any,
        ) -> SamplingResult:
            asked.append((name, dict(attributes or {})))
            keep = (attributes or {}).get(c.REQUEST_MODEL) == "gpt-4o"
            return SamplingResult(Decision.RECORD_AND_SAMPLE if keep else Decision.DROP, attributes)

        def get_description(self) -> str:
            return "by model"

    tracers = TracerProvider(sampler=ByModel())
    tracers.add_span_processor(SimpleSpanProcessor(idle_meter.exporter))
    idle_meter.instrument(tracer_provider=tracers)
    client = clients.openai(model_server)
    client.chat.completions.create(**CHAT)
    client.chat.completions.create(**{**CHAT, "model": "gpt-4o-mini"})
    assert [span.name for span in idle_meter.spans()] == ["chat gpt-4o"]
    assert len(idle_meter.records()) == 2
    name, attributes = asked[1]
    assert name == "chat gpt-4o-mini"
    assert attributes[c.PROVIDER] == "openai"
    assert attributes[c.OPERATION] == "chat"
    assert attributes[c.SERVER_ADDRESS] == "127.0.0.1"


def test_no_opentelemetry_at_all(idle_meter: Any, model_server: ModelServer, clients: Any) -> None:
    """An application without any provider: the ledger and `on_record` are exact all the same."""
    idle_meter.instrument(tracer_provider=None, meter_provider=None)
    clients.openai(model_server).chat.completions.create(**CHAT)
    clients.anthropic(model_server).messages.create(**ASK)
    assert [record.usage.origin for record in idle_meter.records()] == ["provider"] * 2
    assert len(idle_meter.ledger()) == 2


# ---- threads and tasks -----------------------------------------------------------------------------------------
def test_sixteen_threads(meter: Any, model_server: ModelServer, clients: Any) -> None:
    client, other = clients.openai(model_server), clients.anthropic(model_server)
    sums = threading.local()
    totals: list[tuple[int, int, int]] = []

    def work(number: int) -> None:
        calls = given = taken = 0
        for turn in range(20):
            if turn % 5 == 0:
                message = other.messages.create(**ASK)
                given, taken = given + message.usage.input_tokens, taken + message.usage.output_tokens
            elif turn % 5 == 1:
                chunks = list(
                    client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
                )
                given, taken = given + chunks[-1].usage.prompt_tokens, taken + chunks[-1].usage.completion_tokens
            else:
                answer = client.chat.completions.create(**CHAT)
                given, taken = given + answer.usage.prompt_tokens, taken + answer.usage.completion_tokens
            calls += 1
        totals.append((calls, given, taken))
        sums.done = True

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    calls, given, taken = (sum(column) for column in zip(*totals, strict=True))
    assert calls == 320
    records = meter.records()
    assert len({record.id for record in records}) == len(records) == calls
    assert (sum(r.usage.input for r in records), sum(r.usage.output for r in records)) == (given, taken)
    assert (meter.total(c.TOKENS_INPUT.name), meter.total(c.TOKENS_OUTPUT.name)) == (given, taken)
    rows = meter.ledger()
    assert (len(rows), sum(row.usage.input for row in rows)) == (calls, given)
    assert len(meter.spans()) == calls


async def test_many_tasks_that_end_in_every_way(meter: Any, make_server: Any, model_server: ModelServer) -> None:
    gate = threading.Event()

    def respond(asked: Any) -> Reply:
        return Reply(body={}, hold=gate) if asked["model"] == "held" else model_server.respond(asked)

    server = make_server(respond)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0) as client:

            async def one(number: int) -> None:
                kind = number % 4
                if kind == 0:
                    await client.chat.completions.create(**CHAT)
                elif kind == 1:
                    async with await client.chat.completions.create(**CHAT, stream=True) as stream:
                        async for _ in stream:
                            break
                elif kind == 2:
                    with pytest.raises(openai.InternalServerError):
                        await client.chat.completions.create(**{**CHAT, "model": "error-500"})
                else:
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(client.chat.completions.create(**{**CHAT, "model": "held"}), 0.3)

            await asyncio.gather(*(one(number) for number in range(40)))
            gate.set()
    outcomes = [record.outcome for record in meter.records(collect=True)]
    assert {kind: outcomes.count(kind) for kind in set(outcomes)} == {
        "ok": 10,
        "abandoned": 10,
        "error": 10,
        "cancelled": 10,
    }
    assert len(meter.spans()) == 40


@pytest.mark.parametrize("foreign", ["coexist", "own"])
def test_a_coroutine_that_is_collected_in_mid_call(idle_meter: Any, http: Any, foreign: str) -> None:
    """A loop that ends under a running call: its coroutine is closed elsewhere, in another context."""
    idle_meter.instrument(foreign=foreign)

    async def never(request: Any) -> Any:
        started.set()
        await asyncio.Future()

    async def ask() -> None:
        transport = http(anthropic).MockTransport(never)
        http_client = anthropic.DefaultAsyncHttpxClient(transport=transport)
        client = anthropic.AsyncAnthropic(api_key="k", http_client=http_client)
        await client.messages.create(**ASK)

    loop = asyncio.new_event_loop()
    try:
        started, coroutine = asyncio.Event(), ask()
        task = loop.create_task(coroutine)
        loop.run_until_complete(started.wait())
        coroutine.close()
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    finally:
        loop.close()
    record = idle_meter.one(collect=True)
    assert (record.outcome, record.usage.origin) == ("cancelled", "missing")
    assert len(idle_meter.spans()) == 1


def test_a_generator_that_is_read_in_another_thread(meter: Any, model_server: ModelServer, clients: Any) -> None:
    stream = clients.openai(model_server).chat.completions.create(**CHAT, stream=True)
    with ThreadPoolExecutor(1) as pool:
        next(stream)
        assert pool.submit(list, stream).result()
    assert meter.one().usage.origin == "provider"


def test_a_call_inside_a_finaliser(meter: Any, model_server: ModelServer, clients: Any) -> None:
    """Records are written while others are being written: nothing waits for itself."""
    client = clients.openai(model_server)

    class Calls:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            client.chat.completions.create(**CHAT)

    for _ in range(3):
        Calls()
        gc.collect()
    assert len(meter.records()) == 3


def test_on_record_may_call_too(idle_meter: Any, model_server: ModelServer, clients: Any) -> None:
    client = clients.openai(model_server)
    seen: list[Any] = []

    def again(record: Any) -> None:
        seen.append(record)
        if len(seen) == 1:
            client.chat.completions.create(**CHAT)

    idle_meter.instrument(on_record=again)
    client.chat.completions.create(**CHAT)
    assert len(seen) == len(idle_meter.ledger()) == 2
