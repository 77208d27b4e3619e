"""Load something slow once, in the background. Safe across fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from otel_tokens.safely import report_fault

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds that a caller waits for another thread to load. After that it gets None."""


class Background(Generic[T]):
    """A value that `load` makes once. `start` loads it in a daemon thread. `get` waits for it.

    If `load` fails, the fault is reported once and `get` returns None from then on.
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
        """Start to load in the background, if no thread does so yet. Never blocks, never raises."""
        if self._done or self._started:
            return
        self._started = True
        try:
            threading.Thread(target=self.get, name="otel-tokens-prices", daemon=True).start()
        except RuntimeError:
            self._started = False  # no threads at interpreter shutdown: the first `get` loads

    def get(self) -> T | None:
        """The value. Loads it if needed. None if it cannot be loaded."""
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
        """Load again at the next `get`."""
        self._done = self._started = False

    def before_fork(self) -> None:
        """Before a fork: wait until the loading has ended.

        A child must not inherit half-imported modules: their import locks belong to a thread that it does not have.
        """
        self._holding = not self._done and self._lock.acquire(timeout=PATIENCE)

    def after_fork(self) -> None:
        """After a fork, in the parent: release the lock."""
        if self._holding:
            self._holding = False
            self._lock.release()

    def in_child(self) -> None:
        """After a fork, in the child: the thread that was loading does not exist here."""
        self._lock = threading.RLock()
        self._holding = False
        if not self._done:
            self._started = False


# One registration for all: the interpreter never frees a hook, nor what it refers to.
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
