"""Calls a function once a module has been imported, without importing it.

Our own, because wrapt's import hooks come with all of wrapt, whose import takes longer than everything else we do:
wrapt is loaded when there is something to patch.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from otel_tokens.safely import safely

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

Callback = Callable[[ModuleType], object]

_watched: dict[str, list[Callback]] = {}
_loading: set[str] = set()
_lock = threading.Lock()
_searching = threading.local()


def when_imported(module: str, callback: Callback) -> None:
    """Call `callback(module)` now if the module is there, and otherwise once it has been imported."""
    with _lock:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
        if callback not in _watched.setdefault(module, []):
            _watched[module].append(callback)
    found = sys.modules.get(module)
    if found is None:
        return
    spec = getattr(found, "__spec__", None)
    if not _is_loading(spec):
        callback(found)
    elif module not in _loading and not isinstance(getattr(spec, "loader", None), _Loader):
        # Another thread began to import it before there was a finder of ours, which would see the end of the import.
        wait = threading.Thread(target=_wait, args=(found, callback), name=f"otel-tokens-import-{module}", daemon=True)
        wait.start()


def forget_import(module: str, callback: Callback) -> None:
    """Undo `when_imported(module, callback)`. The finder goes with the last of them. Harmless if there was none."""
    with _lock:
        callbacks = _watched.get(module, [])
        if callback in callbacks:
            callbacks.remove(callback)
        if not callbacks:
            _watched.pop(module, None)
        if not _watched:
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _is_loading(spec: Any) -> bool:
    return bool(getattr(spec, "_initializing", False))


def _wait(module: ModuleType, callback: Callback) -> None:
    """Call back once a module has been imported. Waiting on its import lock could end in a deadlock."""
    pause = 0.001
    while _is_loading(module.__spec__):
        time.sleep(pause)
        pause = min(pause * 1.1, 0.05)
    if sys.modules.get(module.__name__) is module:
        safely(f"after the import of {module.__name__}", callback, module)


class _Finder:
    """Finds nothing itself: lets the other finders look, and wraps the loader of a watched module."""

    def find_spec(  # the interface of sys.meta_path
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _watched or fullname in getattr(_searching, "names", ()):
            return None
        _searching.names = {*getattr(_searching, "names", ()), fullname}
        try:
            for finder in sys.meta_path:
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = cast("Loader", _Loader(spec.loader))
                    return spec
            return None
        finally:
            _searching.names.discard(fullname)


class _Loader:
    """A module's own loader; calls back when it is done."""

    def __init__(self, loader: Any) -> None:
        self._otel_loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._otel_loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        loader = self._otel_loader
        # From here on the module looks as if it had been loaded without us.
        if module.__spec__ is not None:
            module.__spec__.loader = loader
        module.__loader__ = loader
        _loading.add(module.__name__)
        try:
            loader.exec_module(module)
        finally:
            _loading.discard(module.__name__)
        for callback in list(_watched.get(module.__name__, ())):
            safely(f"after the import of {module.__name__}", callback, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._otel_loader, name)
