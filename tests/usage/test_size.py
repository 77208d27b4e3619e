"""The most tokens that a provider can make of a request."""

from __future__ import annotations

import string
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tokens.providers.anthropic import MESSAGES
from otel_tokens.providers.openai import CHAT, EMBEDDINGS, RESPONSES
from otel_tokens.usage import tokenizer
from otel_tokens.usage.estimate import Estimator
from otel_tokens.usage.read import Facts, chunk_reader
from otel_tokens.usage.size import IMAGE_TOKENS, measure


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def upper(body: dict[str, Any], endpoint: Any = CHAT, model: str = "m") -> int:
    return Estimator().request(measure(endpoint, body, model))[1]


@given(st.lists(st.text(max_size=80), max_size=20))
def test_before_a_report_every_byte_but_those_of_words_may_be_a_token(texts: list[str]) -> None:
    body = {"messages": [{"role": "user", "content": text} for text in texts]}
    likely, most = Estimator().request(measure(CHAT, body, "m"))
    words = sum(text.count(letter) for text in texts for letter in string.ascii_lowercase + " ")
    assert most >= sum(len(text.encode()) for text in texts) - words / 2 + 4 * len(texts)
    assert likely <= most


# Tokens of OpenAI's two current vocabularies (o200k_base, cl100k_base), the larger, as counted with them.
COUNTED = {
    "english": ("The quick brown fox jumps over the lazy dog. " * 20, 201),
    "chinese": ("我们今天去公园散步，天气非常好，阳光明媚。人工智能正在改变世界。" * 20, 760),
    "korean": ("안녕하세요 오늘 날씨가 참 좋네요. 인공지능은 세상을 바꾸고 있습니다." * 50, 1950),
    "russian": ("Сегодня хорошая погода, мы идём гулять в парк. Искусственный интеллект." * 50, 1950),
    "numbers": (" ".join(str(i % 10) for i in range(5000)), 9999),
    "single letters": ("a " * 1000, 1000),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_natural_text_stays_below_its_first_bound(kind: str) -> None:
    text, tokens = COUNTED[kind]
    assert tokens <= upper(user(text)) - upper(user("")) + 64


def test_a_long_english_prompt_fits_a_small_budget_before_a_report() -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 222  # 10,000 characters, 2,200 tokens
    assert upper(user(prompt)) < 6_500


def test_a_report_may_raise_the_bound_of_words_to_their_bytes() -> None:
    estimator = Estimator()
    noise = measure(CHAT, user("qxzvkjwpfh" * 1000), "m")
    assert estimator.request(noise)[1] < 6000
    estimator.learn_request(noise, 6400)
    assert 7900 < estimator.request(noise)[1] < 10_200
    estimator.learn_request(noise, 9900)
    assert estimator.request(noise)[1] >= 10_000


def test_words_are_joined_as_far_as_reports_have_shown() -> None:
    estimator = Estimator()
    prose = measure(CHAT, user("the sea is wide and the ship is small, " * 100), "m")
    before = estimator.request(prose)[1]
    estimator.learn_request(prose, 1010)
    after = estimator.request(prose)[1]
    assert 1010 < after < 1700 < before < 2500
    digits = "1 2 3 4 5 6 7 8 9 " * 100
    assert estimator.request(measure(CHAT, user(digits), "m"))[1] >= len(digits)
    assert estimator.request(measure(CHAT, user("海" * 1000), "m"))[1] >= 3000
    assert estimator.request(measure(CHAT, user("the sea " * 100), "other"))[1] > 400


@pytest.mark.parametrize("text", ["sea", "Zürich", "人工智能", "\ud800"])
def test_texts_are_as_long_as_their_bytes(text: str) -> None:
    """A Chinese character is a token or more: a stream of them would pass its cap unseen, four for each that counts."""
    size = len(text.encode("utf-8", "surrogatepass"))
    assert measure(CHAT, user(text), "m").text_bytes == size
    choice = SimpleNamespace(finish_reason=None, delta=SimpleNamespace(content=text))
    chat = SimpleNamespace(choices=[choice], usage=None)
    event = SimpleNamespace(type="content_block_delta", delta=SimpleNamespace(type="text_delta", text=text))
    for endpoint, chunk in ((CHAT, chat), (MESSAGES, event)):
        facts = Facts(endpoint)
        chunk_reader(endpoint)(facts, chunk)
        assert facts.text_bytes == size
    whole = Facts(CHAT)
    whole.read_whole({"choices": [{"message": {"content": text}}]})
    assert whole.text_bytes == size


def test_what_the_provider_adds_unseen_is_added_from_then_on() -> None:
    estimator = Estimator()
    size = measure(CHAT, user("hello"), "m")
    estimator.learn_request(size, 3000)
    assert estimator.request(size)[1] >= 3000


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 5000)), min_size=1, max_size=10))
def test_the_last_report_would_have_fitted(reports: list[tuple[int, int]]) -> None:
    estimator = Estimator()
    for letters, tokens in reports:
        size = measure(CHAT, user("sea " * letters), "m")
        estimator.learn_request(size, tokens)
        assert estimator.request(size)[1] >= tokens


def test_keys_and_kinds_of_tools_count() -> None:
    names = [f"a_long_parameter_{n}" for n in range(200)]
    tool = {"type": "function", "function": {"parameters": {"properties": {n: {"type": "number"} for n in names}}}}
    assert upper({"tools": [tool], **user("a")}) > sum(map(len, names))


def test_media_count_by_the_largest_of_their_kind() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    one, two = upper(user([picture])), upper(user([picture, picture]))
    assert two - one >= IMAGE_TOKENS[-1][1]
    assert one < 10_000, "the length of an image's data says nothing"
    assert upper(user([picture]), model="gpt-4o-mini") > 48_000
    original = {**picture, "image_url": {**picture["image_url"], "detail": "original"}}
    assert upper(user([original])) > 12_000
    pdf = {"type": "input_file", "file_data": "A" * 400_000}
    assert upper({"input": [{"role": "user", "content": [pdf]}]}, RESPONSES) > 100_000


def test_token_ids_are_a_token_each() -> None:
    assert 4000 <= upper({"input": [[15339] * 2000, [7] * 2000]}, EMBEDDINGS) < 4200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"system": [{"text": "x", "cache_control": {"type": "ephemeral"}}]}, "cache_write_5m"),
        (
            {"messages": [{"cache_control": {}}, {"cache_control": {"ttl": "1h"}}, {"cache_control": {}}]},
            "cache_write_1h",
        ),
        ({"cache_control": {"type": "ephemeral"}, **user("a")}, "cache_write_5m"),
        (user([{"type": "image", "source": {}, "cache_control": {"ttl": "1h"}}]), "cache_write_1h"),
        (user("cache_control"), None),
    ],
)
def test_the_dearest_cache_write_that_is_marked(body: dict[str, Any], field: str | None) -> None:
    assert measure(MESSAGES, body, "m").cache == field


def test_searches_are_as_many_as_the_request_allows() -> None:
    tool = {"type": "web_search_20250305", "name": "web_search"}
    assert measure(MESSAGES, {"tools": [{**tool, "max_uses": 3}]}, "m").searches == 3
    assert measure(RESPONSES, {"tools": [{"type": "web_search"}], "max_tool_calls": 2}, "m").searches == 2
    assert measure(MESSAGES, {"tools": [tool]}, "m").searches == 5
    assert measure(CHAT, {"web_search_options": {}, **user("a")}, "m").searches == 1
    for kind in ("file_search", "x_search"):  # a fee for each, and never a larger one
        assert measure(RESPONSES, {"tools": [{"type": kind}], "max_tool_calls": 2}, "m").searches == 2
    assert measure(CHAT, {"tools": [{"type": "function"}], **user("a")}, "m").searches == 0


def wait_until(what: Any) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_tiktoken_counts_where_the_application_has_loaded_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken
    from tiktoken import registry

    ranks = {bytes([n]): n for n in range(256)} | {b"ab": 256, b"abab": 257}
    made = tiktoken.Encoding("o200k_base", pat_str=r".+", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setitem(registry.ENCODINGS, "o200k_base", made)
    estimator = Estimator()
    size = measure(CHAT, user("abab" * 100), "gpt-4o")
    wait_until(lambda: estimator.request(size)[1] < 300)
    likely, most = estimator.request(size)
    assert 100 < likely < 140
    assert 100 < most < 220
    assert estimator.request(measure(CHAT, user("abab" * 100), "claude-opus-4-6"))[1] > 250


def test_tiktoken_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import tiktoken.load
    from tiktoken import registry

    asked: list[str] = []
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(registry, "ENCODINGS", {})
    monkeypatch.setattr(tiktoken.load, "read_file", lambda path: asked.append(path) or b"")
    counter = tokenizer.Tokenizer()
    assert counter.count("gpt-4o", ["hello"]) is None
    wait_until(lambda: not any(thread.name == tokenizer.THREAD for thread in threading.enumerate()))
    assert counter.count("gpt-4o", ["hello"]) is None
    assert asked == []


def test_a_forked_child_learns_though_a_thread_of_its_parent_was_learning() -> None:
    estimator = Estimator()
    size = measure(CHAT, user("hello"), "m")
    assert estimator._lock.acquire()
    estimator.after_fork()
    estimator.learn_request(size, 3000)
    estimator.learn("m", "output", 400, 100)
    assert estimator.request(size)[1] >= 3000
