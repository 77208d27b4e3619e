"""A hard cap holds whatever the request is made of, and whatever the provider adds to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

import otel_tokens
from otel_tokens import Budget, BudgetExceededError
from otel_tokens.demo import openai_wire
from otel_tokens.demo.server import ModelServer, Reply, Request
from otel_tokens.values import Record

CAP = Decimal("0.25")
HOSTS = [{"match": "127.0.0.1", "path": "/v1", "provider": "openai"}]


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_server: Any) -> Iterator[Any]:
    """Runs an agent that never stops by itself against a provider that bills `tokens(request)` of input."""
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "1")

    def run(content: Callable[[int], Any], tokens: Callable[[Request], int]) -> list[Record]:
        records: list[Record] = []
        otel_tokens.instrument(
            config=False, ledger=False, store="memory", hosts=HOSTS, budgets=[Budget("cap", usd=CAP)],
            on_record=records.append,
        )  # fmt: skip

        def answer(asked: Request) -> Reply:
            given = tokens(asked)
            usage = {"prompt_tokens": given, "completion_tokens": 20, "total_tokens": given + 20}
            return Reply(body=openai_wire.chat_completion(asked["model"], usage, "Go on."))

        server: ModelServer = make_server(answer)
        with (
            openai.OpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0) as client,
            pytest.raises(BudgetExceededError),
        ):
            for turn in range(1000):
                messages: Any = [{"role": "user", "content": content(turn)}]
                client.chat.completions.create(model="gpt-4o", messages=messages, max_tokens=20)
        assert len(server.requests) == len(records)
        return records

    yield run
    otel_tokens.uninstrument()


def spent(records: list[Record]) -> Decimal:
    return sum((record.cost.total or Decimal(0) for record in records), Decimal(0))


def text_of(asked: Request) -> str:
    return asked["messages"][0]["content"]


def test_english_uses_nearly_all_of_the_cap(loop: Any) -> None:
    content = "The quick brown fox jumps over the lazy dog. " * 200
    records = loop(lambda _: content, lambda asked: len(text_of(asked)) * 10 // 45)
    one = records[0].cost.total or Decimal(0)
    assert CAP - 2 * one < spent(records) <= CAP


@pytest.mark.parametrize(
    ("text", "bytes_per_token"),
    [("人工智能正在改变世界。", 2.5), ("1 2 3 4 5 6 7 8 9 ", 1.0), ("def f(x):\n    return x\n", 3.0)],
    ids=["chinese", "numbers", "code"],
)
def test_after_english_comes_something_denser(loop: Any, text: str, bytes_per_token: float) -> None:
    english = "The quick brown fox jumps over the lazy dog. " * 200

    def tokens(asked: Request) -> int:
        content = text_of(asked)
        return len(content.encode()) * 10 // 45 if content is english else int(len(content.encode()) / bytes_per_token)

    records = loop(lambda turn: english if turn < 3 else text * 500, tokens)
    assert spent(records) <= CAP


def test_what_a_provider_adds_is_reserved_from_the_second_call_on(loop: Any) -> None:
    records = loop(lambda _: "Go on.", lambda _: 4000)
    assert CAP * Decimal("0.8") < spent(records) <= CAP


def test_images_are_reckoned_with(loop: Any) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}
    records = loop(lambda _: [{"type": "text", "text": "What is this?"}, image], lambda _: 1500)
    assert CAP * Decimal("0.8") < spent(records) <= CAP
