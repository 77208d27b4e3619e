"""Bodies that pass as bytes: the same facts however they are cut, and the caller gets what was sent."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_tokens.capture.body import MAX_EVENT, EventBody, JsonBody, body_for
from otel_tokens.demo.wire import bedrock_frames
from otel_tokens.lifecycle.active import ActiveCall

Alone = Callable[..., ActiveCall]
NO_RESET = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

USAGE = {"prompt_tokens": 1000, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 800}}
CHUNK: dict[str, Any] = {"id": "c1", "model": "gpt-4o-2024-08-06"}


def chunk(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    return {**CHUNK, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


SHOWN = [chunk("Hel"), chunk("lo “world”\n\n"), chunk(None, "stop")]
HIDDEN = {**CHUNK, "choices": [], "usage": USAGE}


def sse(events: list[Any], end: str = "\n", name: str | None = None) -> bytes:
    lines = [f"event: {name}{end}" if name else "" for _ in events]
    return "".join(
        f"{line}data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}{end}{end}"
        for line, event in zip(lines, events, strict=True)
    ).encode()


def through(body: Any, data: bytes, cuts: list[int]) -> bytes:
    """Feed `data` cut at these places; what the caller gets."""
    out, begin = b"", 0
    for cut in [*sorted(set(cuts)), len(data)]:
        out += body.feed(data[begin:cut])
        begin = cut
    return out + body.finish()


def facts(active: ActiveCall) -> tuple[Any, ...]:
    found = active.facts
    return found.counts, found.text_bytes, found.complete, found.model, found.id, found.finish, found.strange


MESSAGE: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "m", "model": "claude", "usage": {"input_tokens": 9}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
]
FRAMES = {"content-type": "application/vnd.amazon.eventstream"}


def frames(events: list[dict[str, Any]]) -> bytes:
    return b"".join(frame for _, frame in bedrock_frames([(None, event) for event in events]))


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_bedrocks_frames(alone: Alone, step: int) -> None:
    active, data = alone("anthropic.messages"), frames(MESSAGE)
    assert through(body_for(FRAMES, active, None), data, list(range(step, len(data), step))) == data
    assert facts(active) == ({"input_tokens": 9, "output_tokens": 5}, 5, True, "claude", "m", ("end_turn",), False)


@NO_RESET
@given(at=st.integers(0, 300), other=st.binary(max_size=40))
def test_frames_that_are_none_pass_as_they_are(alone: Alone, at: int, other: bytes) -> None:
    active, good = alone("anthropic.messages"), frames(MESSAGE)
    data = good[:at] + other + good[at:]
    assert through(body_for(FRAMES, active, None), data, [at, at + 5]) == data


def test_a_frame_without_end_is_not_kept(alone: Alone) -> None:
    active = alone("anthropic.messages")
    body = body_for(FRAMES, active, None)
    tracemalloc.start()
    body.feed(b"\x7f\xff\xff\xff" + bytes(12))
    for _ in range(32):
        body.feed(bytes(1 << 20))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < MAX_EVENT
    assert active.facts.strange


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("hide", [True, False])
def test_events_cut_at_every_byte(alone: Alone, end: str, hide: bool) -> None:
    data = sse([*SHOWN, HIDDEN, "[DONE]"], end)
    expected = sse([*SHOWN, "[DONE]"], end) if hide else data
    whole = alone("openai.chat", hide_usage=hide)
    assert through(EventBody(whole), data, []) == expected
    assert whole.facts.counts["prompt_tokens"] == 1000
    assert whole.facts.complete
    assert whole.facts.text_bytes == len("Hello “world”\n\n".encode())
    for cut in range(len(data)):
        active = alone("openai.chat", hide_usage=hide)
        assert through(EventBody(active), data, [cut]) == expected, cut
        assert facts(active) == facts(whole), cut


@NO_RESET
@given(st.lists(st.integers(0, 600)), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_events_cut_anyhow(alone: Alone, cuts: list[int], end: str, hide: bool) -> None:
    data = sse([*SHOWN, HIDDEN, "[DONE]"], end)
    active, whole = alone("openai.chat", hide_usage=hide), alone("openai.chat", hide_usage=hide)
    given_out = through(EventBody(active), data, [cut for cut in cuts if cut < len(data)])
    assert given_out == through(EventBody(whole), data, [])
    assert facts(active) == facts(whole)
    assert active.facts.chunks == whole.facts.chunks == 4


def test_line_ends_of_different_kinds_in_one_stream(alone: Alone) -> None:
    data = b"".join(sse([event], end) for event, end in zip([*SHOWN, HIDDEN], ["\n", "\r\n", "\r", "\n"], strict=True))
    data = data.replace(b"\n\n", b"\n\r\n", 1)
    active = alone("openai.chat", hide_usage=True)
    assert through(EventBody(active), data, []).endswith(sse([SHOWN[2]], "\r"))
    assert active.facts.complete
    assert active.facts.chunks == 4


def test_events_of_anthropic(alone: Alone) -> None:
    start = {"type": "message_start", "message": {"id": "m1", "model": "claude", "usage": {"input_tokens": 9}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "four"}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}
    data = b"".join(sse([event], name=event["type"]) for event in (start, text, end))
    for cut in range(len(data)):
        active = alone("anthropic.messages")
        assert through(EventBody(active), data, [cut]) == data
        assert active.facts.counts == {"input_tokens": 9, "output_tokens": 3}
        assert (active.facts.text_bytes, active.facts.finish, active.facts.complete) == (4, ("end_turn",), True)


def test_a_last_event_without_its_blank_line(alone: Alone) -> None:
    data = sse([*SHOWN, HIDDEN]).rstrip(b"\n")
    active = alone("openai.chat", hide_usage=True)
    assert through(EventBody(active), data, []) == sse(SHOWN)
    assert active.facts.complete


@NO_RESET
@given(st.binary(max_size=400), st.lists(st.integers(0, 400)), st.booleans())
def test_any_bytes_pass_as_events(alone: Alone, data: bytes, cuts: list[int], hide: bool) -> None:
    active = alone("openai.chat", hide_usage=hide)
    assert through(EventBody(active), data, [cut for cut in cuts if cut < len(data)]) == data


ODD = [
    b'data: {"choices": [',
    b"data: {\xff\xfe}",
    b'data: {"usage": 7, "choices": 3}',
    b'data: {"usage": {"prompt_tokens": "many"}, "choices": [null]}',
    b'data: {"a":' + b"[" * 50_000,
    b'data: {"__class__": 1, "choices": [{"delta": []}]}',
    b'data: [1, 2]\ndata: {"x"',
    b": ping",
    b"event: error\ndata: nothing",
    b"data",
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("hide", [True, False])
def test_an_odd_event_passes_and_the_others_count(alone: Alone, odd: bytes, hide: bool) -> None:
    data = sse(SHOWN[:1]) + odd + b"\n\n" + sse(SHOWN[1:])
    active = alone("openai.chat", hide_usage=hide)
    for size in (1, 7, len(data)):
        body = EventBody(active)
        assert through(body, data, list(range(0, len(data), max(size, len(data) // 500)))) == data
    assert through(EventBody(active), sse([HIDDEN]), []) == (b"" if hide else sse([HIDDEN]))
    assert active.facts.complete


def test_an_endless_event_is_passed_on(alone: Alone) -> None:
    body = EventBody(alone("openai.chat", hide_usage=True))
    block = b"data: " + b"x" * 65_530
    passed = 0
    for number in range(1, 130):
        passed += len(body.feed(block))
        assert number * len(block) - passed <= MAX_EVENT
    passed += len(body.finish())
    assert passed == 129 * len(block)


# ---- JSON ------------------------------------------------------------------------------------------------------
ANSWER = {
    "id": "c1",
    "model": "gpt-4o-2024-08-06",
    "choices": [{"message": {"content": 'A "quoted" \\ back\\\\slash\n é “”'}, "finish_reason": "stop"}],
    "usage": USAGE,
}


@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_cut_at_every_byte(alone: Alone, ascii_only: bool) -> None:
    data = json.dumps(ANSWER, ensure_ascii=ascii_only).encode()
    for cut in range(len(data)):
        active = alone("openai.chat")
        assert through(JsonBody(active), data, [cut]) == data
        assert active.facts.counts["prompt_tokens_details.cached_tokens"] == 800, cut
        assert active.facts.text_bytes == len(ANSWER["choices"][0]["message"]["content"].encode()), cut
        assert not active.facts.strange


@NO_RESET
@given(st.text(max_size=900), st.lists(st.integers(0, 2000)), st.booleans())
def test_json_with_any_text(alone: Alone, text: str, cuts: list[int], ascii_only: bool) -> None:
    answer = {**ANSWER, "choices": [{"message": {"content": text}}]}
    data = json.dumps(answer, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    active = alone("openai.chat")
    assert through(JsonBody(active), data, [cut for cut in cuts if cut < len(data)]) == data
    assert active.facts.counts["completion_tokens"] == 50
    assert active.facts.model == "gpt-4o-2024-08-06"


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("text", ["word ", "Zürich", "汉字", 'a\n"b"\t'])
def test_the_length_of_a_long_text_is_in_bytes(alone: Alone, text: str, ascii_only: bool) -> None:
    for shift in range(4):
        content = "x" * shift + text * 500
        data = json.dumps({"choices": [{"message": {"content": content}}]}, ensure_ascii=ascii_only).encode()
        active = alone("openai.chat")
        through(JsonBody(active), data, [777])
        # An escaped "ü" is taken for three bytes, as most escaped characters are.
        assert active.facts.text_bytes == pytest.approx(len(content.encode()), abs=6, rel=0.15)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@NO_RESET
@given(JSON, st.lists(st.integers(0, 2000)))
def test_any_json_beside_the_usage(alone: Alone, beside: Any, cuts: list[int]) -> None:
    data = json.dumps({"extra": beside, "usage": USAGE}).encode()
    active = alone("openai.chat")
    assert through(JsonBody(active), data, [cut for cut in cuts if cut < len(data)]) == data
    assert active.facts.counts["prompt_tokens"] == 1000


@NO_RESET
@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_any_bytes_pass_as_json(alone: Alone, data: bytes, cuts: list[int]) -> None:
    assert through(JsonBody(alone("openai.chat")), data, [cut for cut in cuts if cut < len(data)]) == data


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 50_000, b"", b'"', b"\\", b'{"usage": }', b"\xff{}"])
def test_no_json_is_no_fault(alone: Alone, data: bytes) -> None:
    active = alone("openai.chat")
    assert through(JsonBody(active), data, []) == data
    assert active.facts.strange
    assert active.facts.counts == {}


def big_text(block: int = 65_536, blocks: int = 320) -> Any:
    yield b'{"choices": [{"message": {"content": "'
    for _ in range(blocks):
        yield b"x" * block
    yield b'"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}'


def big_numbers(blocks: int = 320) -> Any:
    yield b'{"data": [{"embedding": [0.5'
    for _ in range(blocks):
        yield b", -0.0123456789e-3" * 3600
    yield b']}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}'


@pytest.mark.parametrize("make", [big_text, big_numbers])
def test_a_huge_answer_is_read_in_little_memory(alone: Alone, make: Callable[..., Any]) -> None:
    active = alone("openai.chat")
    body = JsonBody(active)
    tracemalloc.start()
    try:
        for data in make():
            assert body.feed(data) is data
        body.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024
    assert active.facts.counts == {"prompt_tokens": 7, "completion_tokens": 3}


@pytest.mark.parametrize("end", [b"}", b"]", b", 1]", b" ]", b"e5]"])
def test_long_rows_of_numbers_cut_anywhere(alone: Alone, end: bytes) -> None:
    rows = b'{"data": [' + b"-1.25e-7, " * 400 + b"12" + end.replace(b"}", b"]")
    data = rows + b', "usage": {"prompt_tokens": 7}}'
    for cut in range(0, len(data), 3):
        active = alone("openai.embeddings")
        through(JsonBody(active), data, [cut, cut + 1])
        assert active.facts.counts == {"prompt_tokens": 7}, cut


# ---- compressed ------------------------------------------------------------------------------------------------
def decoders() -> Any:
    for name in ("httpx2._decoders", "httpx._decoders"):
        try:
            return __import__(name, fromlist=["SUPPORTED_DECODERS"])
        except ImportError:
            continue
    raise AssertionError("no HTTP client")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", " GZIP "])
def test_a_compressed_body_is_read_and_passed_on_as_it_came(alone: Alone, encoding: str) -> None:
    plain = json.dumps(ANSWER).encode()
    data = zlib.compress(plain) if encoding == "deflate" else gzip.compress(plain)
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    for cut in range(0, len(data), 5):
        active = alone("openai.chat")
        assert through(body_for(headers, active, decoders()), data, [cut]) == data
        assert active.facts.counts["prompt_tokens"] == 1000


@pytest.mark.parametrize("data", [b"no gzip at all", gzip.compress(b"{}", mtime=0)[:-6], b""])
def test_a_damaged_compressed_body_passes(alone: Alone, contained: Any, data: bytes) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    assert through(body_for(headers, alone("openai.chat"), decoders()), data, [3]) == data


def test_an_unknown_compression_passes(alone: Alone) -> None:
    active = alone("openai.chat")
    headers = {"content-encoding": "snappy", "content-type": "text/event-stream"}
    assert through(body_for(headers, active, SimpleNamespace()), b"abc", [1]) == b"abc"


def test_compressed_events_hide_the_chunk_nobody_asked_for(alone: Alone) -> None:
    data = gzip.compress(sse([*SHOWN, HIDDEN, "[DONE]"]))
    headers = {"content-encoding": "gzip", "content-type": "text/event-stream"}
    for cut in range(0, len(data), 7):
        active = alone("openai.chat", hide_usage=True)
        out = through(body_for(headers, active, decoders()), data, [cut])
        assert gzip.decompress(out) == sse([*SHOWN, "[DONE]"])
        assert active.facts.complete


@pytest.mark.parametrize("null", [',"usage":null', ', "usage" : null', ',"usage":null,"obfuscation":"abc"'])
def test_the_null_that_comes_with_asking_for_usage_goes_with_it(alone: Alone, null: str) -> None:
    text = r'{"id":"c1","choices":[{"delta":{"content":"a,\"usage\":null} b"},"finish_reason":null}]%s}'
    data = f"data: {text % null}\n\n".encode()
    without = f"data: {text % null.replace(null.partition('null')[0] + 'null', '')}\n\n".encode()
    assert through(EventBody(alone("openai.chat", hide_usage=True)), data, [20]) == without
    assert through(EventBody(alone("openai.chat", hide_usage=False)), data, [20]) == data
