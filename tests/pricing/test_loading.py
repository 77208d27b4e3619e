"""The price data comes late, once, and whole: off import, off the first call, across threads and forks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from otel_tokens import assemble
from otel_tokens.pricing import loading
from otel_tokens.pricing.loading import Background
from otel_tokens.values import Usage


def run(code: str) -> str:
    """What a fresh interpreter prints, with warnings as errors."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = """
import sys
import otel_tokens.pricing.catalog, otel_tokens.pricing.price, otel_tokens.pricing.rules, otel_tokens.pricing.explain
otel_tokens.pricing.price.Pricer(otel_tokens.pricing.catalog.Catalog())
print([name for name in ("genai_prices", "pydantic", "httpx2", "yaml") if name in sys.modules])
"""
    assert run(code) == "[]"


def test_the_first_calls_of_many_threads_all_wait_for_the_data() -> None:
    code = """
import sys, threading, time
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import Pricer
from otel_tokens.values import Usage
pricer = Pricer(Catalog())
started = time.perf_counter()
pricer.catalog.warm(); pricer.catalog.warm()
# A machine that stood still in between is no proof; that the loading still goes on is one.
at_once = any(t.name == "otel-tokens-prices" for t in threading.enumerate()) or time.perf_counter() - started < 0.1
go = threading.Barrier(20)
seen = []
def call():
    go.wait()
    seen.append(pricer("openai", "gpt-4o", Usage(input=1000, origin="provider"), at=time.time()).total)
threads = [threading.Thread(target=call) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(at_once, {str(total.normalize()) for total in seen}, len(seen))
"""
    assert run(code) == "True {'0.0025'} 20"


def test_without_warming_the_first_call_loads() -> None:
    code = """
from otel_tokens.pricing.catalog import Catalog
print(Catalog().card("openai", "gpt-4o", at=1.79e9).rule)
"""
    assert run(code) == "genai-prices openai/gpt-4o"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1])
def test_children_forked_while_it_loads_price_all_the_same(delay: float) -> None:
    code = f"""
import os, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from otel_tokens.pricing.catalog import Catalog
catalog = Catalog()
catalog.warm()
time.sleep({delay})
for _ in range(3):
    child = os.fork()
    if child == 0:
        card = catalog.card("anthropic", "claude-opus-4-1", at=1.79e9)
        os._exit(0 if card and str(card.rates.input) == "0.000015" else 1)
    assert os.waitpid(child, 0)[1] == 0
print(catalog.card("openai", "gpt-4o", at=1.79e9).model)
"""
    assert run(code) == "gpt-4o"


def test_the_interpreter_may_end_while_it_loads() -> None:
    code = """
from otel_tokens.pricing.catalog import Catalog
Catalog().warm()
print("done")
"""
    assert run(code) == "done"


def test_a_price_asked_for_at_exit() -> None:
    code = """
import atexit
from otel_tokens.pricing.catalog import Catalog
catalog = Catalog()
atexit.register(lambda: (catalog.warm(), print(catalog.card("openai", "gpt-4o", at=1.79e9).model)))
"""
    assert run(code) == "gpt-4o"


class Slow:
    """Something slow to load, whose loading the test controls."""

    def __init__(self, result: Callable[[], str] = lambda: "data") -> None:
        self.entered, self.go, self.count, self.result = threading.Event(), threading.Event(), 0, result

    def __call__(self) -> str:
        self.count += 1
        self.entered.set()
        assert self.go.wait(300)
        return self.result()


def test_it_is_loaded_once_and_everybody_waits_for_it() -> None:
    slow = Slow()
    background = Background(slow)
    background.start()
    assert slow.entered.wait(300)
    seen: list[str | None] = []
    threads = [threading.Thread(target=lambda: seen.append(background.get())) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert seen == []
    slow.go.set()
    for thread in threads:
        thread.join(300)
    assert (seen, slow.count) == (["data"] * 5, 1)


def test_a_failed_load_is_reported_once_and_answers_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OTEL_TOKENS_STRICT")

    def fail() -> str:
        raise ImportError("broken")

    background = Background(fail)
    assert [background.get() for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "broken" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_waits_for_the_loading_under_way() -> None:
    slow = Slow()
    background = Background(slow)
    background.start()
    assert slow.entered.wait(300)
    threading.Timer(0.05, slow.go.set).start()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if background.get() == "data" and slow.count == 1 else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert background.get() == "data"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_starts_over_when_the_loading_never_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_tokens.pricing.loading.PATIENCE", 0.05)
    slow = Slow()
    background = Background(slow)
    background.start()
    assert slow.entered.wait(300)
    child = os.fork()
    if child == 0:
        slow.go.set()
        os._exit(0 if background.get() == "data" and slow.count == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert background.get() is None  # not loaded in time: the call goes on without a price
    slow.go.set()
    deadline = time.monotonic() + 300
    while background.get() != "data":
        assert time.monotonic() < deadline


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_waits_for_a_loading_that_another_began() -> None:
    inner = Slow()
    kept: list[Background[str]] = []
    begun, proceed = threading.Event(), threading.Event()

    def outer() -> str:
        begun.set()
        assert proceed.wait(300)
        kept.append(Background(inner))
        kept[0].start()
        assert inner.entered.wait(300)
        return "outer"

    background = Background(outer)
    background.start()
    assert begun.wait(300)
    threading.Timer(0.05, proceed.set).start()
    threading.Timer(0.1, inner.go.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if background.get() == "outer" and kept[0].get() == "data" and inner.count == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_was_loaded_goes_with_who_asked_for_it() -> None:
    background = Background(lambda: "data")
    gone = weakref.ref(background)
    del background
    gc.collect()
    assert gone() is None


def test_reload_takes_new_data() -> None:
    values = iter(("old", "new"))
    background = Background(lambda: next(values))
    assert background.get() == background.get() == "old"
    background.reload()
    assert background.get() == "new"


def test_a_call_goes_unpriced_while_the_pricer_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, released, made = threading.Event(), threading.Event(), assemble._pricer

    def slowly() -> Any:
        entered.set()
        released.wait(300)
        return made()

    monkeypatch.setattr(assemble, "_pricer", slowly)
    pricer = assemble.LazyPricer()
    taken: list[Any] = []
    pricer.then = taken.append
    usage = Usage(input=1000, output=100, origin="provider")
    pricer.start()
    assert entered.wait(300)
    with monkeypatch.context() as impatient:
        impatient.setattr(loading, "PATIENCE", 0.01)
        assert pricer("openai", "gpt-4o", usage, at=time.time()).status == "unpriced"
    assert taken == []
    released.set()
    assert pricer("openai", "gpt-4o", usage, at=time.time()).status == "priced"
    assert len(taken) == 1
