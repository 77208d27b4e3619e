"""A meter around the real SDKs in this process, and an engine without rooms for parts that are tried alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import anthropic
import openai
import pytest

from otel_tokens.demo.server import ModelServer
from otel_tokens.lifecycle.active import ActiveCall
from otel_tokens.lifecycle.engine import Engine
from otel_tokens.providers.registry import endpoint_named
from otel_tokens.values import UNPRICED, Call, Record


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what concerns an SDK's own spans where the SDK has none."""
    if hasattr(anthropic._base_client, "start_api_call_span"):
        return
    beside = [item for item in items if item.get_closest_marker("native_spans")]
    config.hook.pytest_deselected(items=beside)
    items[:] = [item for item in items if item not in beside]


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Faults of ours fail the test."""
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "1")
    return monkeypatch


@pytest.fixture
def meter(idle_meter: Any) -> Any:
    """Instrumented; the loopback server bills as OpenAI (below /v1) and Anthropic."""
    idle_meter.instrument()
    return idle_meter


class Clients:
    """SDK clients at a server, closed at the end of the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def openai(self, server: ModelServer, **options: Any) -> openai.OpenAI:
        """A synchronous OpenAI client without retries."""
        made = openai.OpenAI(**{"api_key": "k", "base_url": f"{server.url}/v1", "max_retries": 0, **options})
        return self._stack.enter_context(made)

    def anthropic(self, server: ModelServer, **options: Any) -> anthropic.Anthropic:
        """A synchronous Anthropic client without retries."""
        made = anthropic.Anthropic(**{"api_key": "k", "base_url": server.url, "max_retries": 0, **options})
        return self._stack.enter_context(made)


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Makes clients."""
    with ExitStack() as stack:
        yield Clients(stack)


def http_of(sdk: ModuleType) -> Any:
    """The HTTP client's module that an SDK is built on: httpx2, or httpx in older releases."""
    base = next(kind for kind in sdk.DefaultHttpxClient.__mro__ if kind.__name__ == "Client")
    return sys.modules[base.__module__.partition(".")[0]]


@pytest.fixture
def http() -> Callable[[ModuleType], Any]:
    """`http(openai).MockTransport`."""
    return http_of


class NoSpans:
    """A room that makes no spans."""

    def ids(self, span: object) -> tuple[None, None]:
        """No ids."""
        return None, None

    def start(self, call: Call) -> None:
        """No span."""

    def late(self, call: Call, beside: object = None) -> None:
        """No span."""


@pytest.fixture
def alone() -> Callable[..., ActiveCall]:
    """Makes a call without an SDK: `alone("openai.chat", hide_usage=True)`; its records are in `.engine.sinks`."""

    def make(endpoint: str, **values: Any) -> ActiveCall:
        found = endpoint_named(endpoint)
        assert found is not None
        records: list[Record] = []
        engine = Engine(
            price=lambda *_, **__: UNPRICED,
            spans=NoSpans(),  # type: ignore[arg-type]
            sinks=(("records", records.append),),
        )
        call = Call(id="c", provider="openai", endpoint=endpoint, operation="chat", model="m", started=0.0)
        active = ActiveCall(engine, call, found, {})
        for name, value in values.items():
            setattr(active, name, value)
        made.append(active)
        return active

    made: list[ActiveCall] = []
    yield make
    for active in made:
        active.ended = True


@pytest.fixture
def contained(strict: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Faults of ours are contained, as for users; what was logged."""
    from otel_tokens import safely

    strict.setenv("OTEL_TOKENS_STRICT", "0")
    strict.setattr(safely, "_logged", set())
    caplog.set_level(logging.DEBUG, logger="otel_tokens")
    return caplog
