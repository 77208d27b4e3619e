"""Forks and the end of the process: no ledger is open while the process forks, none stays open at its end."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Protocol


class Forkable(Protocol):
    """What has to know of forks."""

    def before_fork(self) -> None:
        """Close what a child must not inherit, and let nobody in."""
        ...

    def after_fork_in_parent(self) -> None:
        """Let others in again."""
        ...

    def after_fork_in_child(self) -> None:
        """Start anew: the locks of the parent's threads are held by nobody here."""
        ...

    def finish(self) -> None:
        """The process ends."""
        ...


_all: weakref.WeakSet[Forkable] = weakref.WeakSet()
_held: list[Forkable] = []
_forking = threading.RLock()  # one fork at a time, or two threads would mix up what each of them holds


def add(one: Forkable) -> None:
    """Tell `one` of forks and of the end, as long as it lives."""
    _all.add(one)


def _before() -> None:
    _forking.acquire()
    _held[:] = list(_all)
    for one in _held:
        one.before_fork()


def _in_parent() -> None:
    for one in _held:
        one.after_fork_in_parent()
    _held.clear()
    _forking.release()


def _in_child() -> None:
    global _forking
    _forking = threading.RLock()
    for one in list(_all):
        one.after_fork_in_child()
    _held.clear()


def _at_exit() -> None:
    for one in list(_all):
        one.finish()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
atexit.register(_at_exit)
