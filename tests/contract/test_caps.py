"""A money cap against requests whose bill is easily estimated too low: a loop of each never spends a cent beyond it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

import otel_tokens
from otel_tokens import Budget, BudgetExceededError
from otel_tokens.demo import anthropic_wire, openai_wire
from otel_tokens.demo.server import Reply, Request
from otel_tokens.values import Record

HOSTS = [
    {"match": "127.0.0.1", "path": "/v1", "provider": "openai"},
    {"match": "127.0.0.1", "provider": "anthropic"},
]
Usage = dict[str, Any]


def said(asked: Request) -> str:
    """What the one message of a request says."""
    content = asked["messages"][0]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def chat_usage(given: int, output: int = 10, **more: Any) -> Usage:
    return {"prompt_tokens": given, "completion_tokens": output, "total_tokens": given + output, **more}


def by_bytes(asked: Request) -> Usage:
    """A tokenizer that finds nothing to join."""
    return chat_usage(len(said(asked).encode()) + 7)


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def schema(count: int) -> list[Any]:
    properties = {f"parameter_number_{n}": {"type": "number"} for n in range(count)}
    function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    return [{"type": "function", "function": function}]


def audio_usage(asked: Request) -> Usage:
    return chat_usage(
        80, 90, prompt_tokens_details={"audio_tokens": 60}, completion_tokens_details={"audio_tokens": 80}
    )


def written(asked: Request) -> Usage:
    given = len(said(asked)) // 4
    details = {"cache_write_tokens": given, "cache_write_tokens_details": {"ttl_30m_tokens": given}}
    return chat_usage(given, prompt_tokens_details=details)


SOUND = {"type": "input_audio", "input_audio": {"data": "A" * 64_000, "format": "wav"}}
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
TEXT = "The sea is wide and the ship is small. " * 200
CHATS: dict[str, tuple[Usage, Callable[[Request], Usage]]] = {
    "digits": ({"messages": user("1 2 3 4 5 6 7 8 9 " * 300)}, by_bytes),
    "not latin": ({"messages": user("海は広く、船は小さい。🙂" * 100)}, by_bytes),
    "short messages": (
        {"messages": user("a") * 800},
        lambda asked: chat_usage(5 * len(asked["messages"])),
    ),
    "tools by their keys": (
        {"messages": user("a"), "tools": schema(300)},
        lambda asked: chat_usage(len(json.dumps(asked["tools"])) // 4),
    ),
    "images": ({"messages": user([{"type": "text", "text": "?"}, *[PICTURE] * 5])}, lambda _: chat_usage(5 * 1445)),
    "audio": (
        {
            "model": "gpt-4o-audio-preview",
            "modalities": ["text", "audio"],
            "audio": {"voice": "ash", "format": "wav"},
            "messages": user([{"type": "text", "text": "?"}, SOUND]),
        },
        audio_usage,
    ),
    "automatic cache writes": ({"model": "gpt-5.6", "messages": user(TEXT)}, written),
    "choices": ({"messages": user("a"), "n": 4}, lambda _: chat_usage(8, 400)),
    "priority": ({"messages": user(TEXT), "service_tier": "priority"}, lambda _: chat_usage(2000, 100)),
    "asked for flex, served at the usual price": (
        {"messages": user(TEXT), "service_tier": "flex"},
        lambda _: chat_usage(2000, 100),
    ),
    "long context": (
        {"model": "gpt-5.4", "messages": user(TEXT * 160)},
        lambda asked: chat_usage(len(said(asked)) // 4, 100),
    ),
}


def instrument(*budgets: Budget) -> list[Record]:
    """The list that the records of all calls go to."""
    records: list[Record] = []
    otel_tokens.instrument(
        config=False, ledger=False, store="memory", budgets=budgets, hosts=HOSTS, on_record=records.append
    )
    return records


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    otel_tokens.uninstrument()


def exhaust(call: Callable[[], Any]) -> None:
    """Whatever the cap, a loop of calls stays below it; and a cap of many calls is not refused at once."""
    records = instrument()
    call()
    price = records[0].cost.total
    assert price, "the call has no price"
    for share in ("0.99", "1.7", "3.3", "30.1"):
        otel_tokens.uninstrument()
        cap = (price * Decimal(share)).quantize(Decimal("1e-9"))
        records = instrument(Budget("cap", usd=cap))
        with pytest.raises(BudgetExceededError):
            for _ in range(300):
                call()
        costs = [record.cost.total for record in records]
        spent = sum(cost or 0 for cost in costs)
        assert all(costs), "a call has no price"
        assert spent <= cap, f"spent {spent} of {cap} ({share} calls) in {len(costs)} calls"
    assert spent > cap / 2, f"spent only {spent} of {cap}"


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0)


@pytest.mark.parametrize("shape", CHATS)
def test_a_loop_of_chats(make_server: Any, shape: str) -> None:
    request, bill = CHATS[shape]

    def answer(asked: Request) -> Reply:
        tier = {"service_tier": "default" if asked["service_tier"] == "flex" else asked["service_tier"]}
        whole = openai_wire.chat_completion(asked["model"], bill(asked), "Aye.")
        return Reply(body={**whole, **tier} if tier["service_tier"] else whole)

    with openai_client(make_server(answer).url) as client:
        exhaust(lambda: client.chat.completions.create(**{"model": "gpt-4o", "max_completion_tokens": 100, **request}))


@pytest.mark.parametrize(
    ("prompt", "answers"),
    [(["One.", "Two.", "Three."], 6), ([[15339] * 9, [15339] * 9], 4), ([15339] * 9, 2), ("One.", 2)],
    ids=["texts", "lists of token ids", "token ids", "text"],
)
def test_a_loop_of_completions_of_several_prompts(make_server: Any, prompt: Any, answers: int) -> None:
    def answer(asked: Request) -> Reply:
        whole = openai_wire.completion(asked["model"], chat_usage(20, 100 * answers), "Aye.")
        return Reply(body=whole)

    with openai_client(make_server(answer).url) as client:
        exhaust(
            lambda: client.completions.create(
                model="gpt-3.5-turbo-instruct", prompt=prompt, max_tokens=100, n=2, best_of=2
            )
        )


def test_a_loop_of_responses_from_a_stored_prompt(make_server: Any) -> None:
    """Its variables are part of the input; what it says itself is learned from the first report."""

    def answer(asked: Request) -> Reply:
        words = len(asked["prompt"]["variables"]["text"])
        usage = {"input_tokens": words // 4 + 40, "output_tokens": 50, "total_tokens": words // 4 + 90}
        return Reply(body=openai_wire.response(asked["model"], usage, "Aye."))

    prompt: Any = {"id": "pmpt_1", "variables": {"text": TEXT * 8}}
    with openai_client(make_server(answer).url) as client:
        exhaust(lambda: client.responses.create(model="gpt-4o", prompt=prompt, max_output_tokens=50))


def test_a_loop_of_embeddings_of_token_ids(make_server: Any) -> None:
    ids = [15339] * 2000

    def answer(asked: Request) -> Reply:
        used = sum(map(len, asked["input"]))
        item = {"object": "embedding", "index": 0, "embedding": "AACAPw=="}
        body = {"object": "list", "model": asked["model"], "data": [item]}
        return Reply(body={**body, "usage": {"prompt_tokens": used, "total_tokens": used}})

    with openai_client(make_server(answer).url) as client:
        exhaust(lambda: client.embeddings.create(model="text-embedding-3-small", input=[ids, ids]))


def test_a_conversation_kept_by_the_provider_grows(make_server: Any) -> None:
    held: dict[str | None, int] = {None: 0}

    def answer(asked: Request) -> Reply:
        given = held[asked["previous_response_id"]] + 20
        usage = {"input_tokens": given, "output_tokens": 900, "total_tokens": given + 900}
        whole = openai_wire.response(asked["model"], usage, "Aye.")
        held[whole["id"]] = given + 900
        return Reply(body=whole)

    last: dict[str, Any] = {}
    with openai_client(make_server(answer).url) as client:

        def step() -> None:
            found = client.responses.create(model="gpt-4o", input="Go on.", max_output_tokens=900, **last)
            last["previous_response_id"] = found.id

        exhaust(step)


SCHEMA = {"type": "object", "properties": {f"field_{n}": {"type": "string", "description": TEXT} for n in range(4)}}
CLAUDES: dict[str, tuple[Usage, Usage]] = {
    "a schema": (
        {
            "messages": user("a"),
            "extra_body": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        },
        {"input_tokens": len(str(SCHEMA)) // 4},
    ),
    "fast": ({"messages": user(TEXT), "extra_body": {"speed": "fast"}}, {"speed": "fast"}),
    "in one country": ({"messages": user(TEXT), "extra_body": {"inference_geo": "us"}}, {"inference_geo": "us"}),
    "cached for an hour": (
        {"messages": user([{"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral", "ttl": "1h"}}])},
        {
            "input_tokens": 0,
            "cache_creation_input_tokens": 2000,
            "cache_creation": {"ephemeral_1h_input_tokens": 2000, "ephemeral_5m_input_tokens": 0},
        },
    ),
    "web searches": (
        {
            "messages": user("a"),
            "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}],
        },
        {"input_tokens": 300, "server_tool_use": {"web_search_requests": 3}},
    ),
    "a text document": (
        {
            "messages": user(
                [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": TEXT}}]
            )
        },
        {},
    ),
    "images": (
        {"messages": user([{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}] * 5)},
        {"input_tokens": 5 * 1600},
    ),
    "a compaction on the way": (
        {
            "messages": user(TEXT * 2),
            "extra_body": {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        },
        {
            "input_tokens": 1800,
            "output_tokens": 90,
            "iterations": [
                {"type": "compaction", "input_tokens": 7000, "output_tokens": 100},
                {"type": "message", "input_tokens": 1800, "output_tokens": 90},
            ],
        },
    ),
    "thinking": (
        {
            "messages": user("a"),
            "model": "claude-sonnet-4-5",
            "max_tokens": 1500,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        },
        {"input_tokens": 40, "output_tokens": 1500},
    ),
}


@pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")
@pytest.mark.parametrize("shape", CLAUDES)
def test_a_loop_of_messages(make_server: Any, shape: str) -> None:
    request, extra = CLAUDES[shape]

    def answer(asked: Request) -> Reply:
        usage = {"input_tokens": 2000, "output_tokens": 100, **extra}
        return Reply(body=anthropic_wire.message(asked["model"], usage, "Aye."))

    with anthropic.Anthropic(api_key="k", base_url=make_server(answer).url, max_retries=0) as client:
        exhaust(lambda: client.messages.create(**{"model": "claude-opus-4-6", "max_tokens": 100, **request}))


def test_terms_the_caller_did_not_ask_for_are_expected_once_seen(make_server: Any) -> None:
    """A project or workspace has defaults of its own: a dearer tier, a region."""

    def answer(asked: Request) -> Reply:
        whole = openai_wire.chat_completion(asked["model"], chat_usage(2000, 100), "Aye.")
        return Reply(body={**whole, "service_tier": "priority"})

    with openai_client(make_server(answer).url) as client:
        exhaust(lambda: client.chat.completions.create(model="gpt-4o", max_completion_tokens=100, messages=user(TEXT)))


@pytest.mark.parametrize(
    ("text", "bytes_per_token"),
    [("人工智能正在改变世界。", 2.5), ("1 2 3 4 5 6 7 8 9 ", 1.0), ("def f(x):\n    return x\n", 3.0)],
    ids=["chinese", "numbers", "code"],
)
def test_after_english_comes_something_denser(make_server: Any, text: str, bytes_per_token: float) -> None:
    english = "The quick brown fox jumps over the lazy dog. " * 200

    def answer(asked: Request) -> Reply:
        per_token = 4.5 if said(asked) == english else bytes_per_token
        usage = chat_usage(int(len(said(asked).encode()) / per_token))
        return Reply(body=openai_wire.chat_completion(asked["model"], usage, "Aye."))

    cap = Decimal("0.101")
    records = instrument(Budget("cap", usd=cap))
    with openai_client(make_server(answer).url) as client, pytest.raises(BudgetExceededError):
        for turn in range(1000):
            messages = user(english if turn < 3 else text * 500)
            client.chat.completions.create(model="gpt-4o", max_completion_tokens=20, messages=messages)
    assert sum(record.cost.total or 0 for record in records) <= cap


def test_english_uses_nearly_all_of_a_cap(make_server: Any) -> None:
    def answer(asked: Request) -> Reply:
        usage = chat_usage(int(len(said(asked)) / 4.5), 20)
        return Reply(body=openai_wire.chat_completion(asked["model"], usage, "Aye."))

    cap = Decimal("0.101")
    records = instrument(Budget("cap", usd=cap))
    messages = user("The quick brown fox jumps over the lazy dog. " * 200)
    with openai_client(make_server(answer).url) as client, pytest.raises(BudgetExceededError):
        for _ in range(1000):
            client.chat.completions.create(model="gpt-4o", max_completion_tokens=20, messages=messages)
    one = records[0].cost.total or Decimal(0)
    assert cap - 2 * one < sum(record.cost.total or 0 for record in records) <= cap


def test_a_cheaper_model_may_count_dearer(make_server: Any) -> None:
    """gpt-4o-mini bills an image with 33 times the tokens of gpt-4o."""

    def answer(asked: Request) -> Reply:
        given = 25_501 if asked["model"] == "gpt-4o-mini" else 765
        return Reply(body=openai_wire.chat_completion(asked["model"], chat_usage(given), "Aye."))

    ladder = ["gpt-4o", "gpt-4o-mini"]
    records = instrument(Budget("cap", tokens=25_000, ladder=ladder, thresholds={"10%": "downgrade"}))
    messages = user([{"type": "text", "text": "?"}, PICTURE])
    with openai_client(make_server(answer).url) as client, pytest.raises(BudgetExceededError):
        for _ in range(1000):
            client.chat.completions.create(model="gpt-4o", max_completion_tokens=20, messages=messages)
    assert len(records) > 3
    assert sum(record.usage.input + record.usage.output for record in records) <= 25_000
