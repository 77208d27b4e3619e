"""The guard on the real SDKs: refused before anything is sent, cut in mid-stream, changed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_tokens
from otel_tokens import Budget, BudgetExceededError, ConfigError
from otel_tokens.demo import anthropic_wire, openai_wire
from otel_tokens.demo.server import ModelServer, Reply, Request
from otel_tokens.values import Record

HOSTS = [
    {"match": "127.0.0.1", "path": "/v1", "provider": "openai"},
    {"match": "127.0.0.1", "provider": "anthropic"},
]
MESSAGES: Any = [{"role": "user", "content": "Say something long about the sea."}]
CLIENTS: list[Any] = []


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that instruments with budgets and gives the list of records."""
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "1")

    def start(*budgets: Any, **settings: Any) -> list[Record]:
        records: list[Record] = []
        settings.setdefault("store", "memory")
        otel_tokens.instrument(
            config=settings.pop("config", False),
            ledger=tmp_path / "ledger.db",
            budgets=budgets,
            hosts=HOSTS,
            on_record=records.append,
            **settings,
        )
        return records

    yield start
    otel_tokens.uninstrument()
    while CLIENTS:
        CLIENTS.pop().close()


def client(server: ModelServer) -> openai.OpenAI:
    CLIENTS.append(openai.OpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0))
    return CLIENTS[-1]


def claude(server: ModelServer) -> anthropic.Anthropic:
    CLIENTS.append(anthropic.Anthropic(api_key="k", base_url=server.url, max_retries=0))
    return CLIENTS[-1]


def ask(made: Any, **more: Any) -> Any:
    return made.chat.completions.create(model="gpt-4o", messages=MESSAGES, **{"max_tokens": 100, **more})


def test_a_loop_is_stopped_at_its_cap_and_nothing_is_sent(guarded: Any, model_server: ModelServer) -> None:
    records = guarded(Budget("cap", usd="0.01"))
    made = client(model_server)
    with pytest.raises(BudgetExceededError) as refused:
        for _ in range(1000):
            ask(made)
    spent = sum(r.cost.total for r in records)
    assert Decimal("0.005") < spent <= Decimal("0.01")
    assert len(model_server.requests) == len(records)
    error = refused.value
    assert (error.budget, error.unit, error.limit) == ("cap", "usd", Decimal("0.01"))
    assert error.used == spent
    (row,) = otel_tokens.guard().status()
    assert (row.used, row.reserved) == (spent, 0)


def test_scopes_follow_tags(guarded: Any, model_server: ModelServer) -> None:
    guarded(Budget("each", calls=2, per="tenant"))
    made = client(model_server)
    for tenant in ("a", "b"):
        with otel_tokens.tags(tenant=tenant):
            ask(made)
            ask(made)
            with pytest.raises(BudgetExceededError):
                ask(made)
    assert len(model_server.requests) == 4


def test_async_is_refused_alike(guarded: Any, model_server: ModelServer) -> None:
    guarded(Budget("calls", calls=1))

    async def go() -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{model_server.url}/v1") as made:
            await ask(made)
            with pytest.raises(BudgetExceededError):
                await ask(made)

    asyncio.run(go())
    assert len(model_server.requests) == 1


def test_a_failing_call_gives_its_reservation_back(guarded: Any, make_server: Any) -> None:
    guarded(Budget("cap", usd="1", calls=5))
    made = client(make_server(Reply(status=500, body={"error": {"message": "no"}})))
    for _ in range(8):
        with pytest.raises(openai.InternalServerError):
            ask(made)
    assert all(row.used == 0 and row.reserved == 0 for row in otel_tokens.guard().status())


def long_answer(asked: Request) -> Reply:
    """A model that does not keep to any bound."""
    text = "the sea is wide and blue and deep " * 400
    usage = {"prompt_tokens": 20, "completion_tokens": 3200, "total_tokens": 3220}
    whole = openai_wire.chat_completion(asked["model"], usage, text)
    include = bool((asked["stream_options"] or {}).get("include_usage"))
    return Reply(events=openai_wire.chat_events(whole, include_usage=include), delay=0.0005)


@pytest.mark.parametrize("cleanly", [False, True], ids=["error", "finish"])
def test_a_stream_that_overruns_is_cut(guarded: Any, make_server: Any, tmp_path: Path, cleanly: bool) -> None:
    config = tmp_path / "otel-tokens.yaml"
    config.write_text(f"guard: {{on_cut: {'finish' if cleanly else 'error'}}}\n")
    records = guarded(Budget("cap", output_tokens=300), config=config)
    server = make_server(long_answer)
    text, finish, cut = "", None, None
    try:
        for chunk in ask(client(server), stream=True, max_tokens=250):
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
    except BudgetExceededError as error:
        cut = error
    assert (cut is None) == cleanly
    assert (finish == "budget") == cleanly
    (record,) = records
    assert record.outcome == "cut"
    assert record.usage.origin == "estimated"
    # Tokens are estimated from text on the way, so the cut is exact to within the estimate.
    assert 200 <= record.usage.output <= 330
    assert server.wait_for(lambda s: len(s.disconnects) == 1)
    assert server.disconnects[0] < 1000


def test_an_async_stream_that_overruns_is_cut(guarded: Any, make_server: Any) -> None:
    records = guarded(Budget("cap", output_tokens=300))
    server = make_server(long_answer)

    async def go() -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1") as made:
            with pytest.raises(BudgetExceededError):
                async for _ in await ask(made, stream=True, max_tokens=250):
                    pass

    asyncio.run(go())
    assert records[0].outcome == "cut"
    assert server.wait_for(lambda s: len(s.disconnects) == 1)


def test_an_anthropic_stream_that_overruns_is_cut(guarded: Any, make_server: Any) -> None:
    def answer(asked: Request) -> Reply:
        usage = {"input_tokens": 20, "output_tokens": 3200}
        whole = anthropic_wire.message(asked["model"], usage, "the sea is wide and blue and deep " * 400)
        return Reply(events=anthropic_wire.message_events(whole), delay=0.0005)

    records = guarded(Budget("cap", output_tokens=300))
    server = make_server(answer)
    with (
        pytest.raises(BudgetExceededError),
        claude(server).messages.stream(model="claude-opus-4-1", max_tokens=250, messages=MESSAGES) as stream,
    ):
        for _ in stream.text_stream:
            pass
    assert (records[0].outcome, records[0].usage.origin) == ("cut", "partial")
    assert server.wait_for(lambda s: len(s.disconnects) == 1)


def test_the_ladder_rewrites_the_model_and_it_shows(guarded: Any, model_server: ModelServer) -> None:
    records = guarded(
        Budget("cap", calls=10, ladder=["gpt-4o", "gpt-4o-mini"], thresholds=[{"at": "50%", "actions": ["downgrade"]}])
    )
    made = client(model_server)
    for _ in range(8):
        ask(made)
    sent = [asked.json["model"] for asked in model_server.requests]
    assert sent[:4] == ["gpt-4o"] * 4
    assert sent[-2:] == ["gpt-4o-mini"] * 2
    assert records[-1].call.model == "gpt-4o-mini"
    assert records[-1].call.asked_model == "gpt-4o"


def test_spans_name_the_budget_that_is_fullest(guarded: Any, model_server: ModelServer) -> None:
    exporter, tracers = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    guarded(Budget("wide", calls=100), Budget("narrow", calls=4), tracer_provider=tracers)
    made = client(model_server)
    for _ in range(3):
        ask(made)
    found = [span.attributes for span in exporter.get_finished_spans()]
    assert [attributes["otel_tokens.budget.name"] for attributes in found[1:]] == ["narrow", "narrow"]
    assert [attributes["otel_tokens.budget.usage_ratio"] for attributes in found] == [0, 0.25, 0.5]
    assert found[0]["otel_tokens.budget.decision"] == "allow"


def test_a_ladder_alone_begins_at_the_first_threshold(guarded: Any, model_server: ModelServer) -> None:
    guarded(Budget("cap", calls=10, ladder=["gpt-4o", "gpt-4o-mini"]))
    made = client(model_server)
    for _ in range(10):
        ask(made)
    sent = [asked.json["model"] for asked in model_server.requests]
    assert sent[:7] == ["gpt-4o"] * 7
    assert sent[-2:] == ["gpt-4o-mini"] * 2


def test_output_is_clamped_to_what_is_left(guarded: Any, model_server: ModelServer) -> None:
    guarded(Budget("cap", output_tokens=400))
    ask(client(model_server), max_tokens=None)
    sent = model_server.requests[0].json
    assert 0 < (sent.get("max_completion_tokens") or sent.get("max_tokens")) <= 400


def test_the_clamp_holds_where_a_host_rejects_what_we_asked_for(
    guarded: Any, make_server: Any, model_server: ModelServer
) -> None:
    """The call is repeated without the option; what the guard has written into it stays."""

    def picky(asked: Request) -> Reply:
        if asked["stream_options"] is not None:
            return Reply(status=400, body={"error": {"message": "Unrecognized request argument: stream_options"}})
        return model_server.respond(asked)

    server = make_server(picky)
    guarded(Budget("cap", output_tokens=400))
    list(ask(client(server), max_tokens=None, stream=True))
    bounds = [asked["max_completion_tokens"] or asked["max_tokens"] for asked in server.requests]
    assert len(bounds) == 2
    assert 0 < bounds[0] == bounds[1] <= 400


def test_the_cap_of_time_of_one_call_is_its_timeout(guarded: Any, make_server: Any) -> None:
    import time

    gate = threading.Event()
    guarded(Budget("slow", seconds=0.4, per="call"))
    server = make_server(Reply(body={}, hold=gate))
    started = time.monotonic()
    try:
        with pytest.raises(openai.APITimeoutError):
            ask(client(server))
    finally:
        gate.set()
    assert time.monotonic() - started < 60


def test_an_unpriced_model_is_refused_under_a_money_budget(guarded: Any, model_server: ModelServer) -> None:
    guarded(Budget("cap", usd="1"))
    with pytest.raises(BudgetExceededError, match="price"):
        client(model_server).chat.completions.create(model="no-such-model-9", messages=MESSAGES)
    assert model_server.requests == []


def test_a_dropped_stream_leaves_no_reservation(guarded: Any, model_server: ModelServer) -> None:
    import gc

    from otel_tokens.instrument import flush

    guarded(Budget("cap", usd="1"))
    stream = ask(client(model_server), stream=True)
    next(stream)
    assert otel_tokens.guard().status()[0].reserved > 0
    del stream
    gc.collect()
    flush()
    (row,) = otel_tokens.guard().status()
    assert row.reserved == 0
    assert row.used > 0


def test_a_yaml_file_is_enough(guarded: Any, model_server: ModelServer, tmp_path: Path) -> None:
    config = tmp_path / "otel-tokens.yaml"
    config.write_text("budgets:\n  - name: run\n    calls: 3\n")
    records = guarded(config=config)
    with pytest.raises(BudgetExceededError):
        for _ in range(10):
            ask(client(model_server))
    assert len(records) == 3


def test_a_mistake_in_the_file_names_file_line_and_key(guarded: Any, tmp_path: Path) -> None:
    config = tmp_path / "otel-tokens.yaml"
    config.write_text("budgets:\n  - name: run\n    usdd: 3\n")
    with pytest.raises(otel_tokens.ConfigError, match=r"otel-tokens\.yaml:3.*usdd"):
        guarded(config=config)


def test_an_answer_of_unknown_length_is_held_to_what_was_reserved(guarded: Any, model_server: ModelServer) -> None:
    guarded(Budget("cap", output_tokens=1_000_000), prices=[{"model": "house-model", "input": 1, "output": 2}])
    made = client(model_server)
    for model in ("house-model", "gpt-4o"):
        made.chat.completions.create(model=model, messages=MESSAGES)
    unknown, known = (asked.json.get("max_completion_tokens") for asked in model_server.requests)
    assert unknown == 8192
    assert known is None  # the model's own maximum was reserved


def test_a_time_cap_never_lengthens_the_clients_timeout(guarded: Any, make_server: Any, model_server: Any) -> None:
    guarded(Budget("slow", seconds=1200, per="call"))
    made = openai.OpenAI(api_key="k", base_url=f"{model_server.url}/v1", timeout=7)
    CLIENTS.append(made)
    ask(made)
    assert float(model_server.requests[0].headers["x-stainless-read-timeout"]) == 7


def test_an_unpriced_model_can_be_held_to_its_dearest_sibling(guarded: Any, model_server: ModelServer) -> None:
    guarded(Budget("cap", usd="1000"), unpriced="sibling")
    client(model_server).chat.completions.create(model="gpt-99-unheard-of", messages=MESSAGES, max_tokens=10)
    (row,) = otel_tokens.guard().status()
    assert row.used > 0


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_answer_that_never_comes_is_charged_as_reserved(guarded: Any, make_server: Any, kind: str) -> None:
    """The provider goes on with a request that its client gave up on; a loop of time-outs is stopped by its cap."""
    gate = threading.Event()
    guarded(Budget("cap", usd="0.0041"))
    server = make_server(Reply(body={}, hold=gate))
    options: Any = {"api_key": "k", "base_url": f"{server.url}/v1", "timeout": 0.2, "max_retries": 0}

    async def loop() -> None:
        async with openai.AsyncOpenAI(**options) as made:
            for _ in range(10):
                with contextlib.suppress(openai.APITimeoutError):
                    await ask(made)

    def once() -> None:
        with openai.OpenAI(**options) as made:
            for _ in range(10):
                with contextlib.suppress(openai.APITimeoutError):
                    ask(made)

    with pytest.raises(BudgetExceededError):
        asyncio.run(loop()) if kind == "async" else once()
    gate.set()
    assert 1 <= len(server.requests) <= 4
    (row,) = otel_tokens.guard().status()
    assert row.reserved == 0
    assert 0 < row.used <= row.limit


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, None])
def test_what_was_never_billed_leaves_nothing(
    guarded: Any, make_server: Any, free_port: int, status: int | None
) -> None:
    guarded(Budget("cap", usd="1", tokens=10_000, calls=5, per="task"))
    if status is None:
        made = openai.OpenAI(api_key="k", base_url=f"http://127.0.0.1:{free_port}/v1", max_retries=0)
        CLIENTS.append(made)
    else:
        made = client(make_server(Reply(status=status, body={"error": {"message": "no"}})))
    for stream in (False, True) * 4:
        with pytest.raises(openai.APIError):
            ask(made, stream=stream)
    assert all(row.used == 0 and row.reserved == 0 for row in otel_tokens.guard().status())


MISTAKES = """budgets:
  - {name: a, usdd: 5}
  - {name: b, calls: 2}
  - {name: b, calls: 7}
guard: {lease_seconds: 0, min_output: -3}
"""


def test_every_mistake_is_named_before_the_first_call(guarded: Any, tmp_path: Path) -> None:
    config = tmp_path / "otel-tokens.yaml"
    config.write_text(MISTAKES)
    with pytest.raises(otel_tokens.ConfigError) as found:
        guarded(config=config)
    said = str(found.value)
    for place in (":2: budgets[0].usdd", ":4: budgets[2]", ":5: guard.lease_seconds", ":5: guard.min_output"):
        assert place in said
    assert len(found.value.problems) == 4


def test_mistakes_can_be_ignored_and_the_other_budgets_hold(
    guarded: Any, model_server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "otel-tokens.yaml"
    config.write_text(f"on_config_error: ignore\n{MISTAKES}")
    records = guarded(config=config)
    assert "usdd" in caplog.text
    with pytest.raises(BudgetExceededError):
        for _ in range(5):
            ask(client(model_server))
    assert len(records) == 2


def test_a_budget_with_many_scopes_does_not_hide_the_others(guarded: Any, model_server: ModelServer) -> None:
    reader = InMemoryMetricReader()
    guarded(Budget("a", calls=9, per="session"), Budget("z", calls=9), meter_provider=MeterProvider([reader]))
    guard = otel_tokens.guard()
    for number in range(1100):
        with otel_tokens.tags(session=f"s{number}"):
            guard.release(guard.reserve("openai", "gpt-4o", input_tokens=1, max_output=1))
    ask(client(model_server))
    data = reader.get_metrics_data()
    assert data is not None
    points = [
        point.attributes["otel_tokens.budget.name"]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "otel_tokens.budget.usage_ratio"
        for point in metric.data.data_points
    ]
    assert sorted(points) == ["a", "z"]


def emoji(asked: Request) -> Reply:
    """Each chunk is a token, and four of them make a character."""
    usage = {"prompt_tokens": 20, "completion_tokens": 3000, "total_tokens": 3020}
    first, middle, *last = openai_wire.chat_events(openai_wire.chat_completion(asked["model"], usage, "x y z"))
    name, chunk = middle
    chunk["choices"][0]["delta"]["content"] = "x"
    return Reply(events=[first, *[(name, chunk)] * 3000, *last], delay=0.0005)


def test_a_stream_of_dense_text_is_cut_by_its_chunks(guarded: Any, make_server: Any) -> None:
    records = guarded(Budget("cap", output_tokens=300))
    server = make_server(emoji)
    with pytest.raises(BudgetExceededError, match="stream cut"):
        for _ in ask(client(server), stream=True, max_tokens=250):
            pass
    assert records[0].chunks <= 310
    assert server.wait_for(lambda s: len(s.disconnects) == 1)
    assert server.disconnects[0] < 1000


@pytest.mark.parametrize("cleanly", [False, True], ids=["error", "finish"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_read_as_bytes_is_cut(
    guarded: Any, make_server: Any, tmp_path: Path, cleanly: bool, kind: str
) -> None:
    config = tmp_path / "otel-tokens.yaml"
    config.write_text(f"guard: {{on_cut: {'finish' if cleanly else 'error'}}}\n")
    records = guarded(Budget("cap", output_tokens=300), config=config)
    server = make_server(long_answer)
    asked: Any = {"model": "gpt-4o", "messages": MESSAGES, "max_tokens": 250, "stream": True}
    lines: list[str] = []

    def sync() -> None:
        with client(server).chat.completions.with_streaming_response.create(**asked) as response:
            lines.extend(response.iter_lines())

    async def go() -> None:
        async with (
            openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1") as made,
            made.chat.completions.with_streaming_response.create(**asked) as response,
        ):
            async for line in response.iter_lines():
                lines[len(lines) :] = [line]

    with contextlib.nullcontext() if cleanly else pytest.raises(BudgetExceededError):
        sync() if kind == "sync" else asyncio.run(go())
    (record,) = records
    assert record.outcome == "cut"
    assert 200 <= record.usage.output <= 330
    assert len(lines) > 50
    assert server.wait_for(lambda s: len(s.disconnects) == 1)


def test_a_finished_stream_is_not_cut(guarded: Any, make_server: Any) -> None:
    """What the report at the end says is billed; the next call finds the budget used up."""

    def answer(asked: Request) -> Reply:
        usage = {"prompt_tokens": 20, "completion_tokens": 3000, "total_tokens": 3020}
        whole = openai_wire.chat_completion(asked["model"], usage, "Short.")
        return Reply(events=openai_wire.chat_events(whole, include_usage=True))

    records = guarded(Budget("cap", output_tokens=300))
    made = client(make_server(answer))
    assert list(ask(made, stream=True, max_tokens=250))
    assert records[0].outcome == "ok"
    with pytest.raises(BudgetExceededError):
        ask(made)


@pytest.mark.parametrize("first", [(), (Budget("a", calls=1),)])
def test_budgets_that_come_too_late_are_a_mistake(guarded: Any, first: Any, caplog: pytest.LogCaptureFixture) -> None:
    guarded(*first)
    otel_tokens.instrument(budgets=[*first])  # held already
    with pytest.raises(ConfigError, match="on already, so these would not be held: 'b'; write them into otel-tokens"):
        otel_tokens.instrument(budgets=[*first, Budget("b", usd=1)])
    with pytest.raises(ConfigError, match="not be held: 'a'"):
        otel_tokens.instrument(budgets=[{"name": "a", "calls": 2}])
    otel_tokens.uninstrument()
    guarded(on_config_error="ignore")
    otel_tokens.instrument(budgets=[Budget("b", usd=1)])
    assert "these would not be held: 'b'" in caplog.text


@pytest.mark.parametrize("wrong", [Budget("a", usd=1), {"name": "a", "usd": 1}, "a", 5])
def test_one_budget_is_no_list(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="budgets: is not a list"):
        otel_tokens.instrument(config=False, ledger=False, budgets=wrong)


def test_no_budgets_may_be_none() -> None:
    otel_tokens.instrument(config=False, ledger=False, budgets=None)
    otel_tokens.uninstrument()
