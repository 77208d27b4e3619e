"""A signal handler of the program raises at every line of ours that a call passes through.

The exception reaches the program. The call is recorded and charged if it was sent, and otherwise leaves nothing.
"""

from __future__ import annotations

import asyncio
import dis
import gc
import linecache
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry import trace

import benchmarks.transport as bodies
import otel_tokens
from otel_tokens import conventions as c
from otel_tokens.instrument import flush
from otel_tokens.lifecycle.active import current

ROOMS = tuple(str(Path(otel_tokens.__file__).parent / room) for room in ("capture", "lifecycle", "safely.py"))
MESSAGES: Any = [{"role": "user", "content": "Count to three."}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES, "max_tokens": 10}
ASK: dict[str, Any] = {"model": "claude-opus-4-1", "messages": MESSAGES, "max_tokens": 10}
BUDGETS = [otel_tokens.Budget("calls", calls=10**6), otel_tokens.Budget("money", usd=10**6)]


class DeadlineError(Exception):
    """What the program's handler raises."""


def handler(number: int, frame: FrameType | None) -> None:
    raise DeadlineError


class AtLine:
    """Raises the signal at the n-th line of ours that runs; a trace function."""

    def __init__(self, wanted: int) -> None:
        self.left = wanted

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self.line if frame.f_code.co_filename.startswith(ROOMS) else None

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and not self.safe(frame):
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGUSR1)
        return self.line

    @staticmethod
    def safe(frame: FrameType) -> bool:
        """Whether the interpreter runs no handlers there: it is about to catch, or to leave a `with` block."""
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if text.startswith("with "):
            return dis.opname[frame.f_code.co_code[frame.f_lasti]] == "LOAD_CONST"
        return text in ("try:", "except BaseException as error:") and frame.f_code.co_name in ("_run", "_arun")


@pytest.fixture
def transport(http: Any) -> Iterator[Callable[..., Any]]:
    """A factory of SDK clients with canned answers; `transport.sent` is how many requests there were."""
    opened: list[Any] = []

    def make(sdk: Any, cls: str = "") -> Any:
        web = http(sdk)

        class Pieces(web.SyncByteStream, web.AsyncByteStream):  # type: ignore[name-defined]
            def __init__(self, body: bytes) -> None:
                self.body = body

            def __iter__(self) -> Iterator[bytes]:
                yield self.body

            async def __aiter__(self) -> Any:
                yield self.body

        def answer(request: Any) -> Any:
            make.sent += 1  # type: ignore[attr-defined]
            if b"fail" in request.content:
                return web.Response(500, json={"error": {"message": "no"}})
            if b'"stream":true' not in request.content:
                return web.Response(200, content=bodies.BODIES[sdk.__name__, False], headers=JSON)
            return web.Response(200, headers=EVENTS, stream=Pieces(STREAMS[sdk.__name__]))

        async def aanswer(request: Any) -> Any:
            return answer(request)

        name = cls or ("OpenAI" if sdk is openai else "Anthropic")
        if name.startswith("Async"):
            client = web.AsyncClient(transport=web.MockTransport(aanswer))
        else:
            client = web.Client(transport=web.MockTransport(answer))
            opened.append(client)
        return getattr(sdk, name)(api_key="k", max_retries=0, http_client=client)

    make.sent = 0  # type: ignore[attr-defined]
    yield make
    for client in opened:
        client.close()


JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}


def short(sdk: str) -> bytes:
    """A stream with the first and last events of a long one."""
    events = bodies.BODIES[sdk, True].split(b"\n\n")
    return b"\n\n".join([*events[:4], *events[-5:]])


STREAMS = {sdk: short(sdk) for sdk in ("openai", "anthropic")}


def plain(make: Any) -> Callable[[], object]:
    client = make(openai)
    return lambda: client.chat.completions.create(**CHAT)


def message(make: Any) -> Callable[[], object]:
    client = make(anthropic)
    return lambda: client.messages.create(**ASK)


def stream(make: Any) -> Callable[[], object]:
    client = make(openai)

    def read() -> None:
        with client.chat.completions.create(**CHAT, stream=True) as chunks:
            list(chunks)

    return read


def left(make: Any) -> Callable[[], object]:
    client = make(anthropic)

    def read() -> None:
        with client.messages.create(**ASK, stream=True) as events:
            next(iter(events))

    return read


def lines(make: Any) -> Callable[[], object]:
    client = make(openai)

    def read() -> None:
        with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
            list(response.iter_lines())

    return read


def failing(make: Any) -> Callable[[], object]:
    client = make(openai)

    def fail() -> None:
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**{**CHAT, "messages": [{"role": "user", "content": "fail"}]})

    return fail


def aplain(make: Any) -> Callable[[], object]:
    client = make(openai, "AsyncOpenAI")

    async def ask() -> None:
        await client.chat.completions.create(**CHAT)

    return lambda: asyncio.run(ask())


# The failing call passes 2,400 lines, most of them in a walk along its traceback; the last ones are all alike.
MOST = {"failing": 400}
CASES = (plain, message, stream, left, lines, failing, aplain)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_at_every_line(
    idle_meter: Any, transport: Any, case: Callable[[Any], Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = case(transport)
    idle_meter.instrument(budgets=BUDGETS, store="memory", hosts=())
    before = signal.signal(signal.SIGUSR1, handler)
    tracer = sys.gettrace()
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)  # the interpreter drops what is raised in a finaliser
    run()
    try:
        for line in range(1, 10_000):
            sent, seen = transport.sent, len(idle_meter.records())
            at = AtLine(line)
            sys.settrace(at)
            try:
                run()
            except DeadlineError:
                pass
            else:
                assert at.left > 0 or lost, f"line {line}: the program's exception is lost"
            finally:
                sys.settrace(tracer)
            if at.left > 0 or line == MOST.get(case.__name__):
                break
            lost.clear()
            if len(idle_meter.records()) - seen < transport.sent - sent:
                gc.collect()  # with older SDKs the HTTP client leaves a stream to the collector
                flush()
            assert len(idle_meter.records()) - seen == transport.sent - sent, f"line {line}"
            assert not [row for row in otel_tokens.guard().status() if row.reserved], f"line {line}"
            assert current.get() is None, f"line {line}"
            assert trace.get_current_span() is trace.INVALID_SPAN, f"line {line}"
        assert line > 100
    finally:
        signal.signal(signal.SIGUSR1, before)
    records = idle_meter.records()
    assert len(records) == len({record.id for record in records}) == transport.sent
    assert len(idle_meter.ledger()) == len(idle_meter.spans()) == idle_meter.total(c.CALLS.name) == len(records)
    used = next(row.used for row in otel_tokens.guard().status() if row.name == "calls") if case is not failing else 0
    assert used == (len(records) if case is not failing else 0)


@pytest.mark.parametrize("place", ["on_record", "ledger.write"])
@pytest.mark.parametrize("error", [DeadlineError, KeyboardInterrupt, TimeoutError])
def test_in_what_we_call(
    idle_meter: Any, transport: Any, place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that runs in the program's callback, or in the ledger. Everything else of the end is done."""

    def raising(number: int, frame: FrameType | None) -> None:
        raise error

    seen: list[Any] = []
    once = iter([True])

    def strike(record: Any) -> None:
        seen.append(record)
        if next(once, False):
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raising)
    try:
        if place == "on_record":
            idle_meter.instrument(budgets=BUDGETS, store="memory", hosts=(), on_record=strike)
        else:
            from otel_tokens.ledger.ledger import Ledger

            write = Ledger.write
            monkeypatch.setattr(Ledger, "write", lambda self, record: (strike(record), write(self, record)))
            idle_meter.instrument(budgets=BUDGETS, store="memory", hosts=())
        with pytest.raises(error):
            plain(transport)()
    finally:
        signal.signal(signal.SIGUSR1, before)
    (row,) = idle_meter.ledger() if place == "on_record" else idle_meter.records()
    assert {record.id for record in seen} == {row.id}
    assert len(idle_meter.spans()) == idle_meter.total(c.CALLS.name) == 1
    assert [(row.used, row.reserved) for row in otel_tokens.guard().status() if row.name == "calls"] == [(1, 0)]
