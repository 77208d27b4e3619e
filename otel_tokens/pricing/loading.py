"""Loading something slow once, off the caller's path: in the background, and safe across fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from otel_tokens.safely import report_fault

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds that a caller waits for another thread's loading before it goes without."""


class Background(Generic[T]):
    """A value that `load` makes once. `get` waits for it; `start` has a daemon thread make it meanwhile.

    When `load` fails, the fault is reported once and `get` answers None from then on.
    """

    def __init__(self, load: Callable[[], T]) -> None:
        self._load = load
        self._value: T | None = None
        self._done = False
        self._started = False
        self._holding = False
        # Reentrant, because what is being loaded may itself fork.
        self._lock = threading.RLock()
        with _adding:
            _all.add(self)

    def start(self) -> None:
        """Begin loading in the background, if nobody has. Never blocks, never raises."""
        if self._done or self._started:
            return
        self._started = True
        try:
            threading.Thread(target=self.get, name="otel-tokens-prices", daemon=True).start()
        except RuntimeError:
            self._started = False  # no threads at interpreter shutdown: the first `get` loads

    def get(self) -> T | None:
        """The value, loaded here if need be; None when it cannot be loaded."""
        if self._done:
            return self._value
        if not self._lock.acquire(timeout=PATIENCE):
            return None
        try:
            if not self._done:
                self._value = self._load()
                self._done = True
        except Exception as error:  # a broken installation: report once, and price by what else is known
            self._done = True
            report_fault("loading prices", error)
        finally:
            self._lock.release()
        return self._value

    def reload(self) -> None:
        """Load anew at the next `get`."""
        self._done = self._started = False

    def before_fork(self) -> None:
        """Let the loading under way end.

        A child must not inherit half-imported modules: their import locks would belong to a thread it hasn't got.
        """
        self._holding = not self._done and self._lock.acquire(timeout=PATIENCE)

    def after_fork(self) -> None:
        """In the parent: go on."""
        if self._holding:
            self._holding = False
            self._lock.release()

    def in_child(self) -> None:
        """In the child: whoever was loading is not here."""
        self._lock = threading.RLock()
        self._holding = False
        if not self._done:
            self._started = False


# One registration for all: the interpreter never lets go of a hook, nor of what hangs on it.
_all: weakref.WeakSet[Background[Any]] = weakref.WeakSet()
_resting: list[Background[Any]] = []
_adding = threading.Lock()


def _before_fork() -> None:
    while True:
        with _adding:
            waiting = [item for item in _all if item not in _resting]
        if not waiting:
            return
        for item in waiting:  # one loading may begin another
            item.before_fork()
            _resting.append(item)


def _in_parent() -> None:
    for item in _resting:
        item.after_fork()
    _resting.clear()


def _in_child() -> None:
    global _adding
    _adding = threading.Lock()
    for item in _resting:
        item.in_child()
    _resting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
