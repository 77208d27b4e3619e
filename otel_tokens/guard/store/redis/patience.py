"""Waits that count only the time in which this process was free to notice the answer.

A timeout is cut into `TICKS` short waits. A short wait that ends late counts as one all the same: the event loop was
blocked, or other threads had the interpreter. Whatever the store answered meanwhile is read before the next one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TICKS = 10


async def patiently(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """The result of `work`. After `timeout` seconds of a free loop, cancel it and raise TimeoutError."""
    task = asyncio.ensure_future(work)
    try:
        for _ in range(TICKS + 1):
            await asyncio.wait((task,), timeout=timeout / TICKS)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()


def on_a_thread(work: Callable[[], object], timeout: float) -> None:
    """Do `work` on a thread of its own and raise what it raises. After `timeout` seconds, raise TimeoutError.

    The thread cannot be stopped; it ends by itself.
    """
    done = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised again where it is waited for
            failures.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="otel-tokens-redis", daemon=True).start()
    if not any(done.wait(timeout / TICKS) for _ in range(TICKS + 1)):
        raise TimeoutError
    if failures:
        raise failures[0]
