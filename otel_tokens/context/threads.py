"""Tags across threads and executors, which do not inherit them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

from otel_tokens.context.frames import current_tags, pop, push

P = ParamSpec("P")
R = TypeVar("R")


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """`function` for another thread, with the context (tags, span, baggage) of where `carry` was called.

    Each call runs in a copy of its own, so many may run at once. Raises TypeError for a coroutine function:
    asyncio tasks inherit by themselves.
    """
    if inspect.iscoroutinefunction(function):
        raise TypeError("carry() is for functions that run in a thread; asyncio tasks inherit tags by themselves")
    here = copy_context()

    @functools.wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        return here.copy().run(function, *args, **kwargs)

    return carried


class TagsExecutor(Executor):
    """An executor around another one: each call runs with the context of the code that submitted it.

    Into another process or interpreter only the tags are carried. Everything else is the inner executor's own.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        names = {kind.__name__ for kind in type(executor).__mro__}
        # By name: importing the pools only to compare classes is not free. Others may pickle what they are given.
        self._threads = "ThreadPoolExecutor" in names and "InterpreterPoolExecutor" not in names

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """As the inner executor's `submit`."""
        if self._threads:
            return self._executor.submit(copy_context().run, fn, *args, **kwargs)
        return self._executor.submit(run_with, dict(current_tags()), fn, *args, **kwargs)

    def map(self, fn: Callable[..., R], *iterables: Any, **options: Any) -> Iterator[R]:
        """As the inner executor's `map`, with its options."""
        if self._threads:
            return super().map(fn, *iterables, **options)  # submits each item through this object
        return self._executor.map(functools.partial(run_with, dict(current_tags()), fn), *iterables, **options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the inner executor down."""
        self._executor.shutdown(wait=wait, cancel_futures=cancel_futures)

    def __getattr__(self, name: str) -> Any:
        if name == "_executor":  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self._executor, name)


def run_with(values: dict[str, str], function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Call `function` under these tags; at the top of the module, so that it can be pickled."""
    owner = object()
    push(owner, values)
    try:
        return function(*args, **kwargs)
    finally:
        pop(owner)
