"""Spans of others: the Anthropic SDK's own, and other instrumentors'. One span and one record per call."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import openai.resources.chat.completions as openai_chat
import openai.resources.responses as openai_responses
import pytest
import wrapt
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from otel_tokens import conventions as c
from otel_tokens.capture import foreign
from otel_tokens.demo.server import ModelServer, Reply

MESSAGES: Any = [{"role": "user", "content": "Tell me about the sea, please."}]
ASK: dict[str, Any] = {"model": "claude-opus-4-1", "max_tokens": 500, "messages": MESSAGES}
THEIRS = "com.anthropic.sdk.python"


def scope(span: ReadableSpan) -> str:
    return str(span.instrumentation_scope.name) if span.instrumentation_scope else ""


@pytest.fixture
def client(idle_meter: Any, model_server: ModelServer, clients: Any) -> anthropic.Anthropic:
    """An Anthropic client whose own spans go where ours go."""
    return clients.anthropic(model_server, **with_spans(idle_meter))


def with_spans(meter: Any) -> dict[str, Any]:
    has_native = hasattr(anthropic._base_client, "start_api_call_span")
    return {"open_telemetry": {"tracer_provider": meter.tracers}} if has_native else {}


def past_the_first(stream: Any) -> None:
    for seen, _ in enumerate(stream):
        if seen == 4:
            break


def _closed(client: anthropic.Anthropic) -> None:
    stream = client.messages.create(**ASK, stream=True)
    past_the_first(stream)
    stream.close()


def _dropped(client: anthropic.Anthropic) -> None:
    stream = client.messages.create(**ASK, stream=True)
    past_the_first(stream)
    del stream
    gc.collect()


def _unread(client: anthropic.Anthropic) -> None:
    client.messages.create(**ASK, stream=True)
    gc.collect()


def _helper(client: anthropic.Anthropic, read: Callable[[Any], Any]) -> None:
    with client.messages.stream(**ASK) as stream:
        read(stream)


def _bytes(client: anthropic.Anthropic, read: Callable[[Any], Any], **more: Any) -> None:
    with client.messages.with_streaming_response.create(**ASK, **more) as response:
        read(response)


WHOLE: dict[str, Callable[[anthropic.Anthropic], Any]] = {
    "create": lambda a: a.messages.create(**ASK),
    "beta create": lambda a: a.beta.messages.create(**ASK),
    "raw": lambda a: a.messages.with_raw_response.create(**ASK).parse(),
    "raw unparsed": lambda a: a.messages.with_raw_response.create(**ASK).http_response.text,
    "stream": lambda a: list(a.messages.create(**ASK, stream=True)),
    "helper": lambda a: _helper(a, lambda s: list(s)),
    "text": lambda a: _helper(a, lambda s: "".join(s.text_stream)),
    "final message": lambda a: _helper(a, lambda s: s.get_final_message()),
    "lines": lambda a: _bytes(a, lambda r: list(r.iter_lines()), stream=True),
    "bytes": lambda a: _bytes(a, lambda r: r.read()),
    "parsed late": lambda a: _bytes(a, lambda r: r.parse()),
    "post": lambda a: a.post("/v1/messages", body=ASK, cast_to=object),
}
CUT: dict[str, Callable[[anthropic.Anthropic], Any]] = {
    "closed": _closed,
    "dropped": _dropped,
    "unread": _unread,
    "helper left": lambda a: _helper(a, past_the_first),
    "helper unread": lambda a: _helper(a, lambda _: None),
    "lines left": lambda a: _bytes(a, lambda r: next(r.iter_lines()), stream=True),
}


def check_one_span(meter: Any, scope_name: str) -> ReadableSpan:
    record = meter.one(collect=True)
    spans = meter.spans()
    assert [scope(span) for span in spans] == [scope_name]
    (span,) = spans
    assert span.attributes[c.CALL_ID] == record.id
    assert span.attributes[c.USAGE_ORIGIN] == record.usage.origin
    assert span.attributes[c.PRICING_STATUS] == record.cost.status
    assert (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}") == (record.trace_id, record.span_id)
    if record.cost.total is not None:
        assert span.attributes[c.COST_TOTAL] == float(record.cost.total)
    assert span.end_time > span.start_time
    assert len(meter.ledger()) == 1
    assert meter.total(c.CALLS.name) == 1
    return span


@pytest.mark.native_spans
@pytest.mark.parametrize("way", WHOLE)
def test_the_sdks_own_span_is_ours_too(meter: Any, client: anthropic.Anthropic, way: str) -> None:
    WHOLE[way](client)
    # The SDK makes no span for a request that none of its methods made.
    span = check_one_span(meter, c.SCOPE if way == "post" else THEIRS)
    assert span.attributes[c.USAGE_ORIGIN] == "provider"
    assert span.attributes[c.USAGE_INPUT] == meter.one().usage.input
    assert span.attributes[c.USAGE_OUTPUT] == meter.one().usage.output
    assert span.status.status_code is (StatusCode.UNSET if way == "post" else StatusCode.OK)


@pytest.mark.native_spans
@pytest.mark.parametrize("way", CUT)
def test_a_stream_left_early(meter: Any, client: anthropic.Anthropic, way: str) -> None:
    CUT[way](client)
    span = check_one_span(meter, THEIRS)
    assert span.attributes[c.OUTCOME] == "abandoned"
    assert span.attributes[c.USAGE_ORIGIN] in ("partial", "missing", "estimated")


@pytest.mark.native_spans
@pytest.mark.parametrize("stream", [False, True])
def test_an_error(meter: Any, make_server: Any, clients: Any, stream: bool) -> None:
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    client = clients.anthropic(make_server(Reply(status=529, body=body)), **with_spans(meter))
    with pytest.raises(anthropic.APIStatusError):
        client.messages.create(**ASK, stream=stream)
    span = check_one_span(meter, THEIRS)
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes[c.OUTCOME] == "error"
    assert span.attributes["error.type"] == "overloaded_error"


@pytest.mark.native_spans
def test_an_error_within_a_stream(meter: Any, model_server: ModelServer, clients: Any) -> None:
    client = clients.anthropic(model_server, **with_spans(meter))
    with pytest.raises(anthropic.APIStatusError):
        list(client.messages.create(**{**ASK, "model": "error-stream"}, stream=True))
    span = check_one_span(meter, THEIRS)
    assert span.status.status_code is StatusCode.ERROR


@pytest.mark.native_spans
def test_retries(meter: Any, make_server: Any, model_server: ModelServer, clients: Any) -> None:
    busy = Reply(status=529, body={}, headers={"retry-after": "0"})
    answers = [busy, busy]
    server = make_server(lambda asked: answers.pop() if answers else model_server.respond(asked))
    clients.anthropic(server, max_retries=2, **with_spans(meter)).messages.create(**ASK)
    span = check_one_span(meter, THEIRS)
    assert (span.attributes[c.ATTEMPTS], span.attributes["http.request.resend_count"]) == (3, 2)


@pytest.mark.native_spans
def test_calls_that_are_not_billed_keep_their_span(meter: Any, client: anthropic.Anthropic) -> None:
    client.messages.count_tokens(model="claude-opus-4-1", messages=MESSAGES)
    assert [(scope(span), span.name) for span in meter.spans()] == [(THEIRS, "anthropic.messages.count_tokens")]
    assert meter.records() == []


@pytest.mark.native_spans
def test_an_unbilled_call_inside_a_billed_one(meter: Any, model_server: ModelServer, clients: Any) -> None:
    """A hook of the HTTP client that asks something else: its span is its own."""
    inner = clients.anthropic(model_server, **with_spans(meter))
    asked: list[Any] = []

    def before(request: Any) -> None:
        if not asked:
            asked.append(request)
            inner.messages.count_tokens(model="claude-opus-4-1", messages=MESSAGES)

    http_client = anthropic.DefaultHttpxClient(event_hooks={"request": [before]})
    clients.anthropic(model_server, http_client=http_client, **with_spans(meter)).messages.create(**ASK)
    by_name = {span.name: span for span in meter.spans()}
    assert set(by_name) == {"anthropic.messages.count_tokens", "anthropic.messages.create"}
    assert c.CALL_ID in by_name["anthropic.messages.create"].attributes
    assert c.CALL_ID not in by_name["anthropic.messages.count_tokens"].attributes
    assert len(meter.records()) == 1


@pytest.mark.native_spans
@pytest.mark.parametrize("foreign_mode", ["coexist", "own"])
@pytest.mark.parametrize("way", ["create", "stream", "break", "cancel", "helper", "error"])
async def test_async(idle_meter: Any, model_server: ModelServer, way: str, foreign_mode: str) -> None:
    idle_meter.instrument(foreign=foreign_mode)
    options = {"api_key": "k", "base_url": model_server.url, "max_retries": 0, **with_spans(idle_meter)}
    async with anthropic.AsyncAnthropic(**options) as client:
        if way == "create":
            await client.messages.create(**ASK)
        elif way == "error":
            with pytest.raises(anthropic.APIStatusError):
                await client.messages.create(**{**ASK, "model": "error-500"})
        elif way == "helper":
            async with client.messages.stream(**ASK) as stream:
                await stream.get_final_message()
        elif way == "cancel":
            stream = await client.messages.create(**ASK, stream=True)

            async def read() -> None:
                async for _ in stream:
                    started.set()
                    await asyncio.sleep(30)

            started = asyncio.Event()
            task = asyncio.create_task(read())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await stream.close()
        else:
            seen = 0
            async for _ in await client.messages.create(**ASK, stream=True):
                seen += 1
                if way == "break" and seen == 5:
                    break
        for _ in range(3):
            gc.collect()
            await asyncio.sleep(0.01)
    check_one_span(idle_meter, THEIRS if foreign_mode == "coexist" else c.SCOPE)


@pytest.mark.parametrize("way", [*WHOLE, *CUT])
def test_own(idle_meter: Any, client: anthropic.Anthropic, way: str) -> None:
    idle_meter.instrument(foreign="own")
    (WHOLE | CUT)[way](client)
    span = check_one_span(idle_meter, c.SCOPE)
    assert span.kind is SpanKind.CLIENT
    assert span.name == "chat claude-opus-4-1"


@pytest.mark.parametrize("way", ["create", "stream", "closed"])
def test_the_sdks_spans_switched_off(
    meter: Any, model_server: ModelServer, clients: Any, strict: Any, way: str
) -> None:
    strict.setenv("ANTHROPIC_OPEN_TELEMETRY", "false")
    (WHOLE | CUT)[way](clients.anthropic(model_server))
    check_one_span(meter, c.SCOPE)


@pytest.mark.native_spans
def test_the_sdks_span_went_elsewhere(meter: Any, model_server: ModelServer, clients: Any) -> None:
    """The application gave us a tracer provider and the SDK none: ours is the span, from the start of the call."""
    client = clients.anthropic(model_server)  # asks the global provider, and there is none
    with meter.tracers.get_tracer("app").start_as_current_span("app") as parent:
        client.messages.create(**ASK)
    ours, theirs = sorted(meter.spans(), key=lambda span: scope(span) == "app")
    assert (scope(ours), theirs.name) == (c.SCOPE, "app")
    assert ours.parent.span_id == parent.get_span_context().span_id
    record = meter.one()
    assert (ours.end_time - ours.start_time) / 1e9 == pytest.approx(record.duration, abs=0.05)
    assert ours.end_time - ours.start_time > 100_000


# ---- other instrumentors ---------------------------------------------------------------------------------------
@pytest.fixture
def instrumentor(idle_meter: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Another instrumentation, as they are made: a span around `create`; `instrumentor(scope, **attributes)`."""

    def install(scope_name: str = "opentelemetry.instrumentation.openai", **attributes: Any) -> None:
        tracer = idle_meter.tracers.get_tracer(scope_name)

        def create(wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
            # They end the span of a stream when it is exhausted; what matters here is that it is open.
            with tracer.start_as_current_span("theirs", kind=SpanKind.CLIENT, attributes=attributes) as span:
                result = wrapped(*args, **keywords)
                if keywords.get("stream"):
                    result = list(result)
                span.set_attribute("theirs", True)
                return result

        for kind in (openai_chat.Completions, anthropic.resources.Messages):
            monkeypatch.setattr(kind, "create", wrapt.FunctionWrapper(vars(kind)["create"], create))

    return install


@pytest.mark.parametrize(
    "name",
    [
        "opentelemetry.instrumentation.openai.v1",
        "opentelemetry.instrumentation.openai_v2",
        "opentelemetry.instrumentation.anthropic",
        "opentelemetry.util.genai.handler",
        "openinference.instrumentation.openai",
        "logfire.openai",
        "openlit.otel.tracing",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_another_instrumentors_span_is_adopted(
    meter: Any, model_server: ModelServer, clients: Any, instrumentor: Any, name: str, stream: bool
) -> None:
    instrumentor(name)
    client = clients.openai(model_server)
    client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=stream)
    span = check_one_span(meter, name)
    assert span.attributes["theirs"] is True
    assert span.attributes[c.USAGE_INPUT] == meter.one().usage.input


def test_a_frameworks_span_that_says_it_is_a_call(
    meter: Any, model_server: ModelServer, clients: Any, instrumentor: Any
) -> None:
    instrumentor("openinference.instrumentation.langchain", **{"openinference.span.kind": "LLM"})
    clients.openai(model_server).chat.completions.create(model="gpt-4o", messages=MESSAGES)
    check_one_span(meter, "openinference.instrumentation.langchain")


def test_what_they_wrote_stays(meter: Any, model_server: ModelServer, clients: Any, instrumentor: Any) -> None:
    instrumentor(**{c.REQUEST_MODEL: "their-model", c.USAGE_INPUT: 7})
    clients.openai(model_server).chat.completions.create(model="gpt-4o", messages=MESSAGES)
    span = check_one_span(meter, "opentelemetry.instrumentation.openai")
    assert (span.attributes[c.REQUEST_MODEL], span.attributes[c.USAGE_INPUT]) == ("their-model", 7)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("logfire", {}),  # a span of the application's, by logfire
        ("my.app", {}),
        ("opentelemetry.instrumentation.openai_agents", {}),
        ("opentelemetry.instrumentation.fastapi", {}),
        ("opentelemetry.instrumentation.openai", {c.OPERATION: "invoke_agent"}),
        ("openinference.instrumentation.langchain", {"openinference.span.kind": "CHAIN"}),
        ("openinference.instrumentation.openai_agents", {"openinference.span.kind": "AGENT"}),
    ],
)
def test_a_span_around_several_calls_is_no_calls_span(
    meter: Any, model_server: ModelServer, clients: Any, name: str, attributes: dict[str, Any]
) -> None:
    client = clients.openai(model_server)
    with meter.tracers.get_tracer(name).start_as_current_span("task", attributes=attributes):
        for _ in range(2):
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    first, second, task = meter.spans()
    assert [scope(span) for span in (first, second, task)] == [c.SCOPE, c.SCOPE, name]
    assert first.parent.span_id == second.parent.span_id == task.context.span_id
    assert c.CALL_ID not in task.attributes
    assert len(meter.records()) == 2


def test_a_span_is_adopted_by_one_call(meter: Any, model_server: ModelServer, clients: Any) -> None:
    """A foreign span that stays open over two calls cannot speak for both."""
    client = clients.openai(model_server)
    with meter.tracers.get_tracer("openinference.instrumentation.openai").start_as_current_span("twice"):
        for _ in range(2):
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert sorted(map(scope, meter.spans())) == ["openinference.instrumentation.openai", c.SCOPE]
    ids = {span.attributes[c.CALL_ID] for span in meter.spans()}
    assert ids == {record.id for record in meter.records()}
    assert len(ids) == 2


@pytest.mark.native_spans
def test_another_instrumentor_beside_the_sdks_own_span(
    meter: Any, client: anthropic.Anthropic, instrumentor: Any
) -> None:
    """Two others, two spans of theirs: ours is on one of them, and there is no third."""
    instrumentor("opentelemetry.instrumentation.anthropic")
    client.messages.create(**ASK)
    spans = meter.spans()
    assert sorted(map(scope, spans)) == [THEIRS, "opentelemetry.instrumentation.anthropic"]
    assert sum(c.CALL_ID in span.attributes for span in spans) == 1
    assert len(meter.records()) == 1


def test_a_span_of_theirs_that_nobody_records(
    meter: Any, model_server: ModelServer, clients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False))
    client = clients.openai(model_server)
    with trace.use_span(span):
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert len(meter.records()) == 1


# Some put their span around the function that we put ours into, and may have been there first.
@pytest.fixture
def around_request(idle_meter: Any) -> Iterator[Callable[[str], None]]:
    """Their span around `request`, with a context value of theirs inside it, as Logfire has it."""

    def install(scope_name: str) -> None:
        tracer = idle_meter.tracers.get_tracer(scope_name)

        def request(wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
            with tracer.start_as_current_span("theirs", kind=SpanKind.CLIENT):
                token = context_api.attach(context_api.set_value("theirs", "inside"))
                try:
                    return wrapped(*args, **keywords)
                finally:
                    context_api.detach(token)

        for kind in kinds:
            kind.request = wrapt.FunctionWrapper(kind.request, request)  # type: ignore[method-assign]

    kinds = (openai.OpenAI, anthropic.Anthropic)
    yield install
    for kind in kinds:  # not by monkeypatch, which would leave what it has found: the classes inherit it
        if "request" in vars(kind):
            del kind.request


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("sdk", ["openai", "anthropic", "anthropic without spans"])
def test_a_span_around_the_request_is_adopted_whoever_comes_first(
    idle_meter: Any, model_server: ModelServer, clients: Any, around_request: Any, strict: Any, first: str, sdk: str
) -> None:
    if sdk == "anthropic without spans":
        strict.setenv("ANTHROPIC_OPEN_TELEMETRY", "false")
    name = "logfire.openai" if sdk == "openai" else "logfire.anthropic"
    steps = [idle_meter.instrument, lambda: around_request(name)]
    for step in steps if first == "ours" else reversed(steps):
        step()
    before = context_api.get_current()
    if sdk == "openai":
        clients.openai(model_server).chat.completions.create(model="gpt-4o", messages=MESSAGES)
    else:
        clients.anthropic(model_server).messages.create(**ASK)
    assert context_api.get_current() == before
    check_one_span(idle_meter, name)


@pytest.mark.parametrize("way", ["read", "left"])
def test_a_span_that_ends_before_the_stream_does_has_ours_beside_it(
    meter: Any, model_server: ModelServer, clients: Any, around_request: Any, way: str
) -> None:
    """Logfire ends its span when the stream begins: what is known at the end would be nowhere."""
    around_request("logfire.openai")
    stream = clients.openai(model_server).chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
    if way == "read":
        list(stream)
    else:
        past_the_first(stream)
        stream.close()
    record = meter.one(collect=True)
    theirs, ours = meter.spans()
    assert [scope(span) for span in (theirs, ours)] == ["logfire.openai", c.SCOPE]
    assert c.CALL_ID not in theirs.attributes
    assert ours.attributes[c.CALL_ID] == record.id
    assert ours.attributes[c.OUTCOME] == ("ok" if way == "read" else "abandoned")
    assert ours.parent.span_id == theirs.context.span_id
    assert f"{ours.context.span_id:016x}" == record.span_id
    assert ours.start_time / 1e9 == pytest.approx(record.call.started, abs=0.01)
    assert ours.end_time - ours.start_time >= record.duration * 1e9 * 0.9


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_a_span_that_ends_with_the_last_event(
    meter: Any, model_server: ModelServer, clients: Any, strict: pytest.MonkeyPatch, sdk: str
) -> None:
    """They end it when they have seen that event, and the caller's loop goes on to the end of the stream."""
    name = f"opentelemetry.instrumentation.genai.{sdk}"
    tracer = meter.tracers.get_tracer(name)

    def create(wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
        span = tracer.start_span("theirs", kind=SpanKind.CLIENT)
        with trace.use_span(span):
            stream = wrapped(*args, **keywords)

        def events() -> Iterator[Any]:
            for event in stream:
                if event.type in ("response.completed", "message_stop"):
                    span.end()
                yield event

        return events()

    kind = openai_responses.Responses if sdk == "openai" else anthropic.resources.Messages
    strict.setattr(kind, "create", wrapt.FunctionWrapper(vars(kind)["create"], create))
    if sdk == "openai":
        list(clients.openai(model_server).responses.create(model="gpt-4o", input="Hello.", stream=True))
    else:
        strict.setenv("ANTHROPIC_OPEN_TELEMETRY", "false")
        list(clients.anthropic(model_server).messages.create(**ASK, stream=True))
    span = check_one_span(meter, name)
    assert (span.attributes[c.OUTCOME], span.attributes[c.USAGE_ORIGIN]) == ("ok", "provider")


def test_the_adopted_span_is_the_real_one(meter: Any) -> None:
    inner = meter.tracers.get_tracer("t").start_span("inner")
    span = foreign.AdoptedSpan(inner)
    assert isinstance(span, trace.Span)
    assert span.is_recording()
    span.set_attribute("a", 1)
    span.set_attributes({"b": 2})
    span.add_event("e")
    span.record_exception(ValueError("v"))
    span.set_status(trace.Status(StatusCode.ERROR))
    span.update_name("renamed")
    span.add_link(inner.get_span_context())
    assert span.attributes == {"a": 1, "b": 2}
    span.end(end_time=inner.start_time + 5)
    span.end()
    assert meter.spans() == []
    assert span.is_recording()
    span.set_attribute("late", True)
    span.release()
    (done,) = meter.spans()
    assert (done.name, done.end_time - done.start_time, done.attributes["late"]) == ("renamed", 5, True)
    assert [event.name for event in done.events] == ["e", "exception"]
    assert not span.is_recording()


def test_openai_has_no_spans_of_its_own() -> None:
    """If this fails, openai has learned to make spans: it is time to adopt them."""
    assert not hasattr(openai._base_client, "start_api_call_span")
