"""What a fork does to objects with locks and files: one registration with the interpreter for all of them."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object with state that a forked child must not inherit as it is."""

    def before_fork(self) -> None:
        """Bring the state to rest: take the lock, close what a child must not inherit."""
        ...

    def after_fork(self, *, child: bool) -> None:
        """Let go of the lock in the parent; in the child make it anew and forget what belongs to the parent.

        A child may be told without `before_fork`: extension modules can fork without running the hooks before.
        """
        ...


_objects: weakref.WeakSet[Forkable] = weakref.WeakSet()
_resting: list[Forkable] = []
_forking = threading.RLock()
"""Held from before a fork until after it: two threads that fork at once take turns."""


def at_fork(target: Forkable) -> None:
    """Have `target` told of every fork for as long as it lives."""
    _objects.add(target)


def _before() -> None:
    _forking.acquire()
    _resting[:] = _objects
    for target in _resting:
        target.before_fork()


def _in_parent() -> None:
    for target in _resting:
        target.after_fork(child=False)
    _resting.clear()
    _forking.release()


def _in_child() -> None:
    global _forking
    _forking = threading.RLock()
    _resting.clear()
    for target in list(_objects):
        target.after_fork(child=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
