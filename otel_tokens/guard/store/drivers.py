"""Runs generators of store operations, synchronously or in an event loop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from otel_tokens.guard.store.base import Store

T = TypeVar("T")
Step = tuple[Any, ...]
"""(name of a `Store` method, *arguments), or ("sleep", seconds)."""
Steps = Generator[Step, Any, T]

SLEEP = "sleep"


def run(steps: Steps[T], store: Store) -> T:
    """Run a story here and now; waits block the thread."""
    try:
        step = steps.send(None)
        while True:
            try:
                result = time.sleep(step[1]) if step[0] == SLEEP else getattr(store, step[0])(*step[1:])
            except BaseException as error:  # the story knows what a failure, or a Ctrl-C, leaves behind
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return end.value


async def arun(steps: Steps[T], store: Store) -> T:
    """Run a story in an event loop; waits yield to it."""
    try:
        step = steps.send(None)
        while True:
            try:
                if step[0] == SLEEP:
                    result = await asyncio.sleep(step[1])
                else:
                    result = await getattr(store, f"a{step[0]}")(*step[1:])
            except BaseException as error:  # a cancellation too: what was asked for may have been granted
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return end.value


def in_asyncio() -> bool:
    """Whether asyncio runs here: the stores' async halves need it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def aside(work: Callable[[], T]) -> T:
    """Do blocking work for a coroutine that asyncio does not run: in a thread of trio's, or under any other loop here
    and now.

    The thread is waited for even by who is cancelled: what it was granted is not lost.
    """
    trio = sys.modules.get("trio")
    try:
        if trio is not None:
            trio.lowlevel.current_task()
    except RuntimeError:  # imported, but not what runs us
        trio = None
    return work() if trio is None else await trio.to_thread.run_sync(work)
