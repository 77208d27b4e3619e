"""Imports, past, present and future: told of once each, and the import system as it was."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from otel_tokens.capture.watch import when_imported


class Packages:
    """Writes modules under names that nobody else has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"watched_{abs(hash(str(folder)))}_"
        self.gates: dict[str, tuple[threading.Event, threading.Event]] = {}

    def __call__(self, name: str, source: str = "") -> str:
        full = self.prefix + name
        place = self.folder / (full.replace(".", "/") + ".py")
        place.parent.mkdir(exist_ok=True)
        place.write_text(source)
        importlib.invalidate_caches()
        return full


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Packages]:
    """`module("name", source)` writes a module and returns its full name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Packages(tmp_path)
    yield made
    for name in [name for name in sys.modules if name.startswith(made.prefix)]:
        del sys.modules[name]


def test_future_and_past(module: Packages) -> None:
    name, told = module("a", "x = 1"), []
    when_imported(name, told.append)
    assert told == []
    found = importlib.import_module(name)
    assert told == [found]
    assert found.x == 1
    importlib.import_module(name)
    assert told == [found]
    later: list[ModuleType] = []
    when_imported(name, later.append)
    assert later == [found]


def test_the_module_looks_as_without_us(module: Packages) -> None:
    bare = importlib.import_module(module("bare", "x = 1"))
    name = module("seen", "x = 1")
    when_imported(name, lambda _: None)
    seen = importlib.import_module(name)
    assert type(seen.__loader__) is type(bare.__loader__)
    assert type(seen.__spec__.loader) is type(bare.__spec__.loader)
    assert inspect.getsource(seen).strip() == "x = 1"
    assert importlib.reload(seen) is seen


def test_looking_for_a_module_tells_nothing(module: Packages) -> None:
    name, told = module("found"), []
    when_imported(name, told.append)
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert spec.loader.get_source(name) == ""
    assert told == []
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert told == [made]


def test_an_import_that_fails_leaves_no_trace(module: Packages) -> None:
    name, told = module("broken", "raise RuntimeError('no')"), []
    when_imported(name, told.append)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^no$") as caught:
            importlib.import_module(name)
        assert name not in sys.modules
    assert told == []
    assert caught.value.__cause__ is None
    module("broken", "x = 2")
    assert importlib.import_module(name).x == 2
    assert len(told) == 1


def test_a_module_that_is_not_there(module: Packages) -> None:
    told: list[ModuleType] = []
    when_imported(f"{module.prefix}nowhere", told.append)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{module.prefix}nowhere")
    assert importlib.util.find_spec(f"{module.prefix}nowhere") is None
    assert told == []


def test_a_listener_that_fails_is_our_fault(module: Packages, contained: pytest.LogCaptureFixture) -> None:
    name, told = module("listened"), []

    def fail(_: ModuleType) -> None:
        raise ValueError("ours")

    when_imported(name, fail)
    when_imported(name, told.append)
    assert importlib.import_module(name) in told
    assert f"after the import of {name}" in contained.text


def test_a_listener_that_imports(module: Packages) -> None:
    first, second, told = module("first"), module("second"), []
    when_imported(first, lambda _: importlib.import_module(second))
    when_imported(second, told.append)
    importlib.import_module(first)
    assert [found.__name__ for found in told] == [second]


def test_two_listeners_and_one_twice(module: Packages) -> None:
    name, told = module("two"), []

    class Listener:
        def hear(self, found: ModuleType) -> None:
            told.append(found)

    one, other = Listener(), Listener()
    for listener in (one, other, one):
        when_imported(name, listener.hear)
    importlib.import_module(name)
    assert len(told) == 2


def test_another_finder_in_front(module: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another hook of our kind (wrapt's, another instrumentation's) asks the finders behind it, us among them."""
    name, told, asked = module("fronted"), [], []

    class Front:
        def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
            if fullname != name or asked:
                return None
            asked.append(fullname)
            return importlib.util.find_spec(fullname)

    when_imported(name, told.append)
    monkeypatch.setattr(sys, "meta_path", [Front(), *sys.meta_path])
    importlib.import_module(name)
    assert asked == [name]
    assert len(told) == 1


SLOW = """
import sys, threading
sys.modules[{test!r}].reached.set()
assert sys.modules[{test!r}].go_on.wait(300)
x = 3
"""


def test_an_import_that_is_under_way_in_another_thread(module: Packages) -> None:
    """Begun before anybody watched: told of when it is done, without waiting for it here."""
    gate = ModuleType("gate")
    gate.reached, gate.go_on = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    sys.modules[f"{module.prefix}gate"] = gate
    name = module("slow", SLOW.format(test=f"{module.prefix}gate"))
    thread = threading.Thread(target=importlib.import_module, args=(name,))
    thread.start()
    assert gate.reached.wait(300)  # type: ignore[attr-defined]
    told: list[Any] = []
    heard = threading.Event()

    def hear(found: Any) -> None:
        told.append(found.x)
        heard.set()

    when_imported(name, hear)
    assert told == []
    gate.go_on.set()  # type: ignore[attr-defined]
    thread.join(300)
    assert heard.wait(300)
    assert told == [3]


def test_an_import_under_way_that_we_do_watch_is_told_of_once(module: Packages) -> None:
    gate = ModuleType("gate")
    gate.reached, gate.go_on = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    sys.modules[f"{module.prefix}gate"] = gate
    name = module("slow2", SLOW.format(test=f"{module.prefix}gate"))
    early: list[Any] = []
    when_imported(name, early.append)
    thread = threading.Thread(target=importlib.import_module, args=(name,))
    thread.start()
    assert gate.reached.wait(300)  # type: ignore[attr-defined]
    late: list[Any] = []
    when_imported(name, late.append)
    assert late == []
    gate.go_on.set()  # type: ignore[attr-defined]
    thread.join(300)
    assert (len(early), len(late)) == (1, 1)


def test_an_import_under_way_that_fails(module: Packages) -> None:
    gate = ModuleType("gate")
    gate.reached, gate.go_on = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    sys.modules[f"{module.prefix}gate"] = gate
    name = module("slow3", SLOW.format(test=f"{module.prefix}gate") + "raise KeyError(1)\n")
    failed: list[BaseException] = []

    def load() -> None:
        try:
            importlib.import_module(name)
        except KeyError as error:
            failed.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    assert gate.reached.wait(300)  # type: ignore[attr-defined]
    told: list[Any] = []
    when_imported(name, told.append)
    gate.go_on.set()  # type: ignore[attr-defined]
    thread.join(300)
    for waiting in [t for t in threading.enumerate() if t.name.startswith("otel-tokens-import")]:
        waiting.join(300)
    assert len(failed) == 1
    assert told == []
    assert name not in sys.modules
