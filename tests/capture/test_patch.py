"""On and off: before and after the import of an SDK, twice, again, under others' wrappers, in versions to come."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anthropic._base_client
import openai
import openai._base_client as openai_base
import pytest
import wrapt

import otel_tokens
from otel_tokens.capture.patch import Patcher
from otel_tokens.demo.server import ModelServer
from otel_tokens.providers.spec import Provider, Target

MESSAGES: Any = [{"role": "user", "content": "Hello."}]
SOURCE = """
class Client:
    def request(self, question):
        return f"answer to {question}"

    async def arequest(self, question):
        return question

class Child(Client):
    pass

def span():
    return "span"
"""


def chat(client: Any) -> Any:
    return client.chat.completions.create(model="gpt-4o", messages=MESSAGES)


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a small SDK that has not been imported."""
    name = f"sdk_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def provider(module: str, *targets: Target, highest: str = "9.0") -> Provider:
    return Provider(
        module,
        module,
        module,
        "pytest",
        targets or (Target(module, "Client.request", "request"),),
        (),
        ("0.0", highest),
    )


class Log:
    """Wrappers that note what goes through them."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def wrapper(self, kind: str) -> Any:
        def wrapped_call(wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
            self.calls.append((kind, args))
            return wrapped(*args, **keywords)

        return wrapped_call


def test_before_the_import(sdk: str) -> None:
    patcher, log = Patcher(), Log()
    patcher.install(provider(sdk), log.wrapper)
    assert sdk not in sys.modules
    assert [state.state for state in patcher.states()] == ["waiting"]
    module = importlib.import_module(sdk)
    assert module.Client().request("q") == "answer to q"
    assert module.Child().request("r") == "answer to r"
    assert log.calls == [("request", ("q",)), ("request", ("r",))]
    assert [state.state for state in patcher.states()] == ["patched"]
    patcher.uninstall()
    assert not isinstance(vars(module.Client)["request"], wrapt.ObjectProxy)
    module.Client().request("s")
    assert len(log.calls) == 2


def test_uninstalled_before_the_import(sdk: str) -> None:
    patcher, log = Patcher(), Log()
    patcher.install(provider(sdk), log.wrapper)
    patcher.uninstall()
    importlib.import_module(sdk).Client().request("q")
    assert log.calls == []


def test_after_the_import_and_again(sdk: str) -> None:
    module = importlib.import_module(sdk)
    original = vars(module.Client)["request"]
    patcher, log = Patcher(), Log()
    for count in range(1, 4):
        patcher.install(provider(sdk), log.wrapper)
        patcher.install(provider(sdk), log.wrapper)
        module.Client().request("q")
        assert len(log.calls) == count
        patcher.uninstall()
        patcher.uninstall()
        assert vars(module.Client)["request"] is original


def test_a_module_that_is_imported_anew(sdk: str) -> None:
    patcher, log = Patcher(), Log()
    patcher.install(provider(sdk), log.wrapper)
    importlib.import_module(sdk).Client().request("q")
    del sys.modules[sdk]
    second = importlib.import_module(sdk)
    second.Client().request("r")
    importlib.reload(second)
    second.Client().request("s")
    assert log.calls == [("request", (letter,)) for letter in "qrs"]
    patcher.uninstall()
    second.Client().request("t")
    assert len(log.calls) == 3
    assert not isinstance(vars(second.Client)["request"], wrapt.ObjectProxy)


def test_others_who_wrap_our_wrapper(sdk: str) -> None:
    """Ours stays inside theirs; it does nothing once it is off, and does not count beside a new one."""
    module = importlib.import_module(sdk)
    patcher, first, second = Patcher(), Log(), Log()
    patcher.install(provider(sdk), first.wrapper)
    theirs: list[Any] = []

    def their(wrapped: Any, instance: Any, args: Any, keywords: Any) -> Any:
        theirs.append(args)
        return wrapped(*args, **keywords)

    wrapt.wrap_function_wrapper(module, "Client.request", their)
    module.Client().request("q")
    assert (len(first.calls), len(theirs)) == (1, 1)
    patcher.uninstall()
    module.Client().request("q")
    assert (len(first.calls), len(theirs)) == (1, 2)
    patcher.install(provider(sdk), second.wrapper)
    module.Client().request("q")
    assert (len(first.calls), len(second.calls), len(theirs)) == (1, 1, 3)
    patcher.uninstall()
    assert module.Client().request("q") == "answer to q"
    assert (len(first.calls), len(second.calls), len(theirs)) == (1, 1, 4)


def test_others_who_wrap_and_leave_again(sdk: str) -> None:
    module = importlib.import_module(sdk)
    original = vars(module.Client)["request"]
    patcher, log = Patcher(), Log()
    patcher.install(provider(sdk), log.wrapper)
    ours = vars(module.Client)["request"]
    module.Client.request = lambda self, question: "theirs"
    module.Client.request = ours
    patcher.uninstall()
    assert vars(module.Client)["request"] is original


def test_a_version_without_a_target(sdk: str, caplog: pytest.LogCaptureFixture) -> None:
    targets = (
        Target(sdk, "Client.send", "request"),
        Target(sdk, "Gone.request", "request"),
        Target(sdk, "Client._sleep", "retry", optional=True),
        Target(sdk, "Child.request", "request"),  # inherited: patching it there would count twice
        Target(sdk, "span", "native_span"),
        Target(f"{sdk}.streaming", "Stream.__stream__", "stream"),
    )
    patcher, log = Patcher(), Log()
    with caplog.at_level(logging.WARNING):
        patcher.install(provider(sdk, *targets), log.wrapper)
        module = importlib.import_module(sdk)
    assert module.span() == "span"
    assert log.calls == [("native_span", ())]
    assert [state.state for state in patcher.states()] == [*["missing"] * 4, "patched", "waiting"]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 3
    assert all("not there in this version" in message for message in warned)
    assert not any("_sleep" in message for message in warned)
    patcher.uninstall()


def test_a_newer_major_version_is_patched_with_a_note(sdk: str, caplog: pytest.LogCaptureFixture) -> None:
    patcher, log = Patcher(), Log()
    with caplog.at_level(logging.WARNING):
        patcher.install(provider(sdk, highest="1.0"), log.wrapper)  # pytest is newer than that
        importlib.import_module(sdk).Client().request("q")
    (warned,) = [record.getMessage() for record in caplog.records]
    assert "newer than the tested 1.0" in warned
    assert len(log.calls) == 1
    patcher.uninstall()


def test_a_target_that_cannot_be_replaced_is_reported(sdk: str, contained: pytest.LogCaptureFixture) -> None:
    patcher, log = Patcher(), Log()
    patcher.install(provider("builtins", Target("builtins", "str.upper", "request")), log.wrapper)
    assert "abc".upper() == "ABC"
    assert [state.state for state in patcher.states()] == ["missing"]
    assert "patching builtins.str.upper" in contained.text
    patcher.uninstall()


def test_many_threads_that_turn_it_on_and_off(sdk: str) -> None:
    module = importlib.import_module(sdk)
    original = vars(module.Client)["request"]
    patcher, log = Patcher(), Log()
    errors: list[BaseException] = []

    def turn() -> None:
        try:
            for _ in range(100):
                patcher.install(provider(sdk), log.wrapper)
                module.Client().request("q")
                patcher.uninstall()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=turn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert errors == []
    patcher.uninstall()
    assert vars(module.Client)["request"] is original


# ---- the whole meter -------------------------------------------------------------------------------------------
def test_instrument_again_counts_once(idle_meter: Any, model_server: ModelServer, clients: Any) -> None:
    client = clients.openai(model_server)
    for count in (1, 2, 3):
        idle_meter.instrument()
        otel_tokens.instrument(config=False)  # on already: does nothing
        chat(client)
        assert len(idle_meter.records()) == len(idle_meter.ledger()) == len(idle_meter.spans()) == count
        otel_tokens.uninstrument()
        chat(client)
        assert len(idle_meter.records()) == count


def test_a_foreign_wrapper_around_ours_and_a_second_meter(
    idle_meter: Any, model_server: ModelServer, clients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_base.SyncAPIClient, "request", vars(openai_base.SyncAPIClient)["request"])
    client = clients.openai(model_server)
    idle_meter.instrument()
    wrapt.wrap_function_wrapper(openai_base, "SyncAPIClient.request", lambda w, _, a, k: w(*a, **k))
    chat(client)
    otel_tokens.uninstrument()
    chat(client)
    assert len(idle_meter.records()) == 1
    idle_meter.instrument()
    chat(client)
    assert len(idle_meter.records()) == len(idle_meter.ledger()) == 2
    otel_tokens.uninstrument()
    chat(client)
    assert len(idle_meter.records()) == 2


def test_on_and_off_while_calls_run(idle_meter: Any, model_server: ModelServer, clients: Any) -> None:
    """Every call is answered, and those that begin while it is on, and only those, are recorded once."""
    client = clients.openai(model_server)
    errors: list[BaseException] = []
    stop = threading.Event()

    def call() -> None:
        try:
            while not stop.is_set():
                chat(client)
                assert list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        idle_meter.instrument()
        wanted = len(model_server.requests) + 4
        model_server.wait_for(lambda s, n=wanted: len(s.requests) >= n)
        otel_tokens.uninstrument()
    stop.set()
    for thread in threads:
        thread.join(300)
    assert errors == []
    records = idle_meter.records()
    assert 10 <= len(records) <= len(model_server.requests)
    assert len({record.id for record in records}) == len(records)


def test_a_module_that_only_looks_like_one(contained: pytest.LogCaptureFixture) -> None:
    patcher, log = Patcher(), Log()
    fake = ModuleType("sdk_without_spec")
    fake.Client = 7  # type: ignore[attr-defined]
    sys.modules["sdk_without_spec"] = fake
    try:
        patcher.install(provider("sdk_without_spec"), log.wrapper)
    finally:
        del sys.modules["sdk_without_spec"]
    assert [state.state for state in patcher.states()] == ["missing"]
    patcher.uninstall()


# ---- others that take hold of the SDK's own function -----------------------------------------------------------
def pass_on(wrapped: Any, _: Any, args: Any, keywords: Any) -> Any:
    return wrapped(*args, **keywords)


class OnClass:
    """Wraps `OpenAI.request`, which the class inherits, and puts there what it has found (OpenInference, Logfire)."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.found: Any = None

    def on(self) -> None:
        self.found = openai.OpenAI.request
        openai.OpenAI.request = wrapt.FunctionWrapper(self.found, pass_on)  # type: ignore[method-assign]

    def off(self) -> None:
        openai.OpenAI.request = self.found  # type: ignore[method-assign]


class InClosure(OnClass):
    """The same by a function of its own."""

    def on(self) -> None:
        found = self.found = openai.OpenAI.request

        @functools.wraps(found)
        def request(*args: Any, **keywords: Any) -> Any:
            return found(*args, **keywords)

        openai.OpenAI.request = request  # type: ignore[method-assign]


class OnClient:
    """Wraps the bound method of one client (Logfire, given a client)."""

    def __init__(self, client: Any) -> None:
        self.client, self.found = client, None

    def on(self) -> None:
        self.found = self.client.request
        self.client.request = lambda *args, **keywords: self.found(*args, **keywords)

    def off(self) -> None:
        self.client.request = self.found


class OnBase:
    """Wraps where we do."""

    def __init__(self, client: Any) -> None:
        self.found: Any = None

    def on(self) -> None:
        self.found = openai_base.SyncAPIClient.request
        openai_base.SyncAPIClient.request = wrapt.FunctionWrapper(  # type: ignore[method-assign]
            self.found, pass_on
        )

    def off(self) -> None:
        openai_base.SyncAPIClient.request = self.found  # type: ignore[method-assign]


@pytest.fixture
def restored() -> Iterator[None]:
    """The SDK's function is what it was, wherever one looks, and nothing of ours is left in it."""
    base = openai_base.SyncAPIClient
    function = vars(base)["request"]
    code = function.__code__
    yield
    otel_tokens.uninstrument()
    assert openai.OpenAI.request is vars(base)["request"] is function
    assert function.__code__ is code
    if "request" in vars(openai.OpenAI):
        del openai.OpenAI.request


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("others", [OnClass, InClosure, OnClient, OnBase])
@pytest.mark.parametrize("first_on", ["ours", "theirs"])
@pytest.mark.parametrize("first_off", ["ours", "theirs"])
def test_others_around_the_same_function(
    others: Any, first_on: str, first_off: str, model_server: ModelServer, clients: Any
) -> None:
    """Each call is counted once while ours is on, and not at all when it is off."""
    client = clients.openai(model_server)
    theirs = others(client)
    records: list[Any] = []

    def ours_on() -> None:
        otel_tokens.instrument(config=False, on_record=records.append)

    def counted() -> int:
        before = len(records)
        chat(client)
        assert list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
        return len(records) - before

    on, off = [ours_on, theirs.on], [otel_tokens.uninstrument, theirs.off]
    for step in on if first_on == "ours" else reversed(on):
        step()
    assert counted() == 2
    for step in off if first_off == "ours" else reversed(off):
        step()
        assert counted() == (2 if step == theirs.off and first_off == "theirs" else 0)
    ours_on()
    assert counted() == 2
    otel_tokens.uninstrument()
    assert counted() == 0


@pytest.mark.parametrize("foreign", ["coexist", "own"])
async def test_others_around_the_same_coroutine(foreign: str, model_server: ModelServer) -> None:
    found = openai.AsyncOpenAI.request
    assert inspect.iscoroutinefunction(found)
    openai.AsyncOpenAI.request = found  # type: ignore[method-assign]
    records: list[Any] = []
    try:
        otel_tokens.instrument(config=False, foreign=foreign, on_record=records.append)
        assert inspect.iscoroutinefunction(openai.AsyncOpenAI.request)
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{model_server.url}/v1") as client:
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
            assert len(records) == 1
            otel_tokens.uninstrument()
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert len(records) == 1
    finally:
        otel_tokens.uninstrument()
        del openai.AsyncOpenAI.request


def test_a_function_that_cannot_hold_a_wrapper(sdk: str) -> None:
    """A closure, a builtin, an object: the wrapper stands on the class."""
    module = importlib.import_module(sdk)
    word = "answer"

    def request(self: Any, question: str) -> str:
        return f"{word} to {question}"

    for made in (request, functools.partialmethod(request), staticmethod(len)):
        module.Client.request = made
        patcher, log = Patcher(), Log()
        patcher.install(provider(sdk), log.wrapper)
        module.Client().request("q")
        assert len(log.calls) == 1
        patcher.uninstall()
        assert vars(module.Client)["request"] is made
        module.Client().request("q")
        assert len(log.calls) == 1


def test_two_meters_inside_one_function(sdk: str) -> None:
    """Doctor looks while the process is metered; whoever leaves first, nothing stays."""
    module = importlib.import_module(sdk)
    code = vars(module.Client)["request"].__code__
    for order in (slice(None), slice(None, None, -1)):
        pairs = [(Patcher(), Log()) for _ in range(2)]
        for patcher, log in pairs:
            patcher.install(provider(sdk), log.wrapper)
        assert module.Client().request("q") == "answer to q"
        assert [len(log.calls) for _, log in pairs] == [1, 1]
        for patcher, _ in pairs[order]:
            patcher.uninstall()
        assert module.Client().request("q") == "answer to q"
        assert [len(log.calls) for _, log in pairs] == [1, 1]
        assert vars(module.Client)["request"].__code__ is code


def test_wrong_arguments_are_the_sdks_to_refuse(sdk: str) -> None:
    module = importlib.import_module(sdk)
    patcher = Patcher()
    patcher.install(provider(sdk), Log().wrapper)
    for call in (module.Client.request, module.Client().request):
        with pytest.raises(TypeError):
            call()
    assert module.Client().request(question="q") == "answer to q"
    patcher.uninstall()


def test_the_function_says_of_itself_what_it_said_before() -> None:
    kinds = (openai_base.SyncAPIClient, anthropic._base_client.AsyncAPIClient)

    def told() -> list[Any]:
        found = [vars(kind)["request"] for kind in kinds]
        return [(f, inspect.signature(f), inspect.iscoroutinefunction(f), f.__name__, f.__qualname__) for f in found]

    before, own = told(), [dict(vars(vars(kind)["request"])) for kind in kinds]
    otel_tokens.instrument(config=False, ledger=False)
    try:
        assert told() == before
    finally:
        otel_tokens.uninstrument()
    assert told() == before
    assert [dict(vars(vars(kind)["request"])) for kind in kinds] == own
