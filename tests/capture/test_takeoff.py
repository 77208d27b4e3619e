"""`foreign: own`: other instrumentors of the same SDKs are taken off, also what their own `uninstrument` leaves."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import anthropic
import openai
import openai.resources.chat.completions as openai_chat
import pytest
import wrapt
from opentelemetry.trace import SpanKind

import otel_tokens
from otel_tokens import conventions as c
from otel_tokens.capture import foreign, takeoff
from otel_tokens.demo.server import ModelServer

MESSAGES: Any = [{"role": "user", "content": "Tell me about the sea, please."}]


def scopes(meter: Any) -> list[str]:
    """Whose spans there are. Each has one of our calls on it."""
    assert [span.attributes[c.CALL_ID] for span in meter.spans()] == [record.id for record in meter.records()]
    return [span.instrumentation_scope.name for span in meter.spans()]


def chat(client: openai.OpenAI) -> None:
    client.chat.completions.create(model="gpt-4o", messages=MESSAGES)


class Others:
    """An instrumentor of another package around `create`; `leaves`: its own `uninstrument` does nothing."""

    def __init__(self, patch: pytest.MonkeyPatch, tracers: Any, module: str, *, leaves: bool) -> None:
        self.is_instrumented_by_opentelemetry = False
        self.leaves = leaves
        self.kind: Any = anthropic.resources.Messages if "anthropic" in module else openai_chat.Completions
        self.found = vars(self.kind)["create"]
        tracer = tracers.get_tracer(module)

        def create(wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
            with tracer.start_as_current_span("theirs", kind=SpanKind.CLIENT):
                return wrapped(*args, **keywords)

        create.__module__ = f"{module}.shared.wrappers"
        self.wrapper = create
        held = ModuleType(module)
        name = takeoff.INSTRUMENTORS[module]
        setattr(held, name, lambda: self)  # one object for a class, as OpenTelemetry's base class has it
        patch.setitem(sys.modules, module, held)
        patch.setattr(self.kind, "create", self.found)  # put back, whatever becomes of it

    def instrument(self) -> None:
        self.is_instrumented_by_opentelemetry = True
        self.kind.create = wrapt.FunctionWrapper(vars(self.kind)["create"], self.wrapper)

    def uninstrument(self) -> None:
        self.is_instrumented_by_opentelemetry = False
        if not self.leaves:
            self.kind.create = self.found


@pytest.fixture
def others(idle_meter: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Others]:
    """Makes one, off."""

    def make(module: str = "opentelemetry.instrumentation.openai", *, leaves: bool = True) -> Others:
        return Others(monkeypatch, idle_meter.tracers, module, leaves=leaves)

    return make


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize(
    "module",
    [
        "opentelemetry.instrumentation.openai",
        "opentelemetry.instrumentation.anthropic",
        "openlit.instrumentation.openai",
        "openlit.instrumentation.anthropic",
    ],
)
def test_own_takes_off_what_their_uninstrument_leaves(
    idle_meter: Any, model_server: ModelServer, clients: Any, others: Any, module: str, leaves: bool
) -> None:
    theirs = others(module, leaves=leaves)
    theirs.instrument()
    idle_meter.instrument(foreign="own")
    assert vars(theirs.kind)["create"] is theirs.found
    if "anthropic" in module:
        clients.anthropic(model_server).messages.create(model="claude-opus-4-1", max_tokens=500, messages=MESSAGES)
    else:
        chat(clients.openai(model_server))
    assert scopes(idle_meter) == [c.SCOPE]


def test_own_leaves_wrappers_of_anybody_else(
    idle_meter: Any, model_server: ModelServer, clients: Any, others: Any
) -> None:
    theirs = others()
    seen: list[str] = []

    def note(wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
        seen.append("inner" if wrapped.__name__ == "create" and len(seen) % 2 else "outer")
        return wrapped(*args, **keywords)

    theirs.kind.create = inner = wrapt.FunctionWrapper(theirs.found, note)
    theirs.instrument()
    theirs.instrument()
    idle_meter.instrument(foreign="own")
    assert vars(theirs.kind)["create"] is inner
    theirs.kind.create = outer = wrapt.FunctionWrapper(inner, note)
    otel_tokens.uninstrument()
    idle_meter.instrument(foreign="own")
    assert vars(theirs.kind)["create"] is outer
    chat(clients.openai(model_server))
    assert len(seen) == 2
    assert scopes(idle_meter) == [c.SCOPE]


@pytest.mark.parametrize("leaves", [False, True])
def test_own_takes_off_at_its_first_call_what_was_switched_on_later(
    idle_meter: Any, model_server: ModelServer, clients: Any, others: Any, leaves: bool
) -> None:
    idle_meter.instrument(foreign="own")
    theirs = others(leaves=leaves)
    client = clients.openai(model_server)
    for turn in range(2):
        theirs.instrument()
        for _ in range(3):
            chat(client)
        assert vars(theirs.kind)["create"] is theirs.found
        wanted = ["opentelemetry.instrumentation.openai", c.SCOPE, c.SCOPE]
        assert scopes(idle_meter) == wanted * (turn + 1)


def test_own_looks_once_for_what_cannot_be_taken_off(
    idle_meter: Any, model_server: ModelServer, clients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its spans are adopted: never two of one call."""
    looked: list[int] = []
    monkeypatch.setattr(foreign, "take_off", lambda: looked.append(1) or takeoff.take_off())
    idle_meter.instrument(foreign="own")
    client = clients.openai(model_server)
    for _ in range(3):
        with idle_meter.tracers.get_tracer("opentelemetry.util.genai.somebody").start_as_current_span("theirs"):
            chat(client)
    assert scopes(idle_meter) == ["opentelemetry.util.genai.somebody"] * 3
    assert len(looked) == 1


@pytest.mark.parametrize("left", ["while ours is on", "after ours"])
def test_own_takes_logfire_off(
    idle_meter: Any, model_server: ModelServer, clients: Any, left: str, strict: Any
) -> None:
    """It marks the class it has wrapped, and its context manager must still be able to end."""
    kind: Any = openai.OpenAI
    tracer = idle_meter.tracers.get_tracer("logfire.openai")
    strict.setitem(sys.modules, "logfire", ModuleType("logfire"))

    @contextmanager
    def instrument_openai() -> Iterator[None]:
        found = kind.request

        @functools.wraps(found)
        def request(*args: Any, **keywords: Any) -> Any:
            with tracer.start_as_current_span("theirs"):
                return found(*args, **keywords)

        kind._is_instrumented_by_logfire, kind._original_request_method, kind.request = True, found, request
        try:
            yield
        finally:
            kind.request = kind._original_request_method
            del kind._original_request_method
            kind._is_instrumented_by_logfire = False

    function = kind.request
    client = clients.openai(model_server)
    try:
        with instrument_openai():
            idle_meter.instrument(foreign="own")
            chat(client)
            if left == "after ours":
                otel_tokens.uninstrument()
        assert kind.request is function
        chat(client)
    finally:
        otel_tokens.uninstrument()
        del kind.request, kind._is_instrumented_by_logfire
    wanted = 2 if left == "while ours is on" else 1
    assert scopes(idle_meter) == [c.SCOPE] * wanted
    assert len(idle_meter.seen) == wanted


def test_own_takes_other_instrumentors_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    off: list[str] = []

    class Instrumentor:
        is_instrumented_by_opentelemetry = True

        def uninstrument(self) -> None:
            off.append("openai")

    class Broken(Instrumentor):
        def uninstrument(self) -> None:
            raise RuntimeError("cannot")

    for name, kind, attribute in (
        ("opentelemetry.instrumentation.openai", Instrumentor, "OpenAIInstrumentor"),
        ("opentelemetry.instrumentation.anthropic", Broken, "AnthropicInstrumentor"),
        ("openinference.instrumentation.openai", object, "SomethingElse"),
    ):
        module = ModuleType(name)
        setattr(module, attribute, kind)
        monkeypatch.setitem(sys.modules, name, module)
    assert takeoff.take_off() == ["opentelemetry.instrumentation.openai"]
    assert off == ["openai"]
    assert "could not take opentelemetry.instrumentation.anthropic off" in caplog.text
