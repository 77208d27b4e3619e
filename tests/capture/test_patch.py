"""On and off: before and after the import of an SDK, twice, again, under others' wrappers, in versions to come."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

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
        thread.join(20)
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
        thread.join(20)
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


def test_a_subclass_that_others_wrapped_before_us_is_counted(model_server: ModelServer) -> None:
    """OpenInference wraps `OpenAI.request`, which hides what stands on the base class."""
    before = openai_base.SyncAPIClient.request
    theirs = wrapt.FunctionWrapper(before, lambda wrapped, _, args, keywords: wrapped(*args, **keywords))
    records: list[Any] = []
    openai.OpenAI.request = theirs  # type: ignore[method-assign]
    try:
        otel_tokens.instrument(config=False, on_record=records.append)
        with openai.OpenAI(api_key="k", base_url=f"{model_server.url}/v1") as client:
            chat(client)
            assert len(records) == 1
            otel_tokens.uninstrument()
            chat(client)
        assert len(records) == 1
        assert vars(openai.OpenAI)["request"] is theirs
        assert openai_base.SyncAPIClient.request is before
    finally:
        otel_tokens.uninstrument()
        del openai.OpenAI.request
