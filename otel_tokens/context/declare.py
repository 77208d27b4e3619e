"""`tags(...)`: the context manager and decorator that sets the tags of calls."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from otel_tokens.context.frames import MAX_LENGTH, Steps, current_tags, pop, push
from otel_tokens.context.threads import TagsExecutor, carry

P = ParamSpec("P")
R = TypeVar("R")
Value: TypeAlias = str | int | bool | None

_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_UNSET: Any = object()


class tags:  # noqa: N801 (it reads as a word: `with tags(session="s1"):`)
    """Tags for all calls made inside: `with tags(session="s1", team="blue"):`, or `@tags(agent="planner")`.

    Values are str, int or bool and are kept as text of at most 256 characters; None takes a tag away. Inner tags
    add to outer ones and win. Names of your own match `[a-z][a-z0-9_.]*`. As a decorator it serves functions,
    coroutine functions and both kinds of generators (whose consumer does not see the tags). One object may be
    used many times, also at once. Threads do not inherit tags: use `tags.carry` or `tags.executor`.

    Raises TypeError or ValueError at once for a name or value that cannot be a tag.
    """

    __slots__ = ("_added", "_removed")

    def __init__(
        self,
        *,
        session: Value = _UNSET,
        task: Value = _UNSET,
        tenant: Value = _UNSET,
        user: Value = _UNSET,
        agent: Value = _UNSET,
        feature: Value = _UNSET,
        **own: Value,
    ) -> None:
        named = (
            ("session", session),
            ("task", task),
            ("tenant", tenant),
            ("user", user),
            ("agent", agent),
            ("feature", feature),
        )
        given = {name: value for name, value in named if value is not _UNSET} | own
        self._added = {name: _text(name, value) for name, value in given.items() if value is not None}
        self._removed = tuple(_checked(name) for name, value in given.items() if value is None)

    def __repr__(self) -> str:
        given = {**self._added, **dict.fromkeys(self._removed)}
        return f"tags({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def __enter__(self) -> tags:
        push(self, self._added, self._removed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pop(self)

    async def __aenter__(self) -> tags:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pop(self)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function` with these tags in force while its body runs. Raises TypeError for what is no function."""
        if isinstance(function, (type, staticmethod, classmethod)) or not callable(function):
            raise TypeError("tags() decorates functions: put it below @staticmethod, and on methods, not on a class")
        call = getattr(function, "__call__", None)  # noqa: B004 (an object whose __call__ is async is async)
        for test, wrap in (
            (inspect.iscoroutinefunction, self._coroutine),
            (inspect.isasyncgenfunction, self._async_generator),
            (inspect.isgeneratorfunction, self._generator),
        ):
            if test(function) or test(call):
                return cast("Callable[P, R]", wrap(function))
        return self._plain(function)

    def _plain(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            owner = object()  # one per call, so that a call never ends the tags of another
            push(owner, self._added, self._removed)
            try:
                return function(*args, **kwargs)
            finally:
                pop(owner)

        return wrapper

    def _coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            owner = object()
            push(owner, self._added, self._removed)
            try:
                return await function(*args, **kwargs)
            finally:
                pop(owner)

        return wrapper

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            body: Generator[Any, Any, Any] = function(*args, **kwargs)
            steps = Steps(self._added, self._removed)
            step: Callable[[], Any] = functools.partial(next, body)
            while True:
                try:
                    with steps:
                        item = step()
                except StopIteration as stop:
                    return stop.value
                finally:
                    del step  # an error that was thrown in must not stay alive through this frame
                try:
                    step = functools.partial(body.send, (yield item))
                except GeneratorExit:
                    with steps:
                        body.close()
                    raise
                except BaseException as error:  # whatever the consumer throws in is the body's to handle
                    step = functools.partial(body.throw, error)

        return wrapper

    def _async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            body: AsyncGenerator[Any, Any] = function(*args, **kwargs)
            steps = Steps(self._added, self._removed)
            step: Callable[[], Any] = body.__anext__
            while True:
                try:
                    with steps:
                        item = await step()
                except StopAsyncIteration:
                    return
                finally:
                    del step  # as above
                try:
                    step = functools.partial(body.asend, (yield item))
                except GeneratorExit:
                    with steps:
                        await body.aclose()
                    raise
                except BaseException as error:  # whatever the consumer throws in is the body's to handle
                    step = functools.partial(body.athrow, error)

        return wrapper

    current = staticmethod(current_tags)
    carry = staticmethod(carry)

    @staticmethod
    def executor(executor: Executor) -> TagsExecutor:
        """`executor`, but what it runs has the tags of where it was submitted."""
        return TagsExecutor(executor)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a tag; use lower-case letters, digits, '_' and '.', a letter first")
    return name


def _text(name: str, value: object) -> str:
    _checked(name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        text = int.__repr__(value)  # not str(): an IntEnum has words of its own
    elif isinstance(value, str):
        text = str.__str__(value)  # the plain text of a str subclass, an enum's value too
    else:
        raise TypeError(f"tag {name!r} must be str, int or bool, not {type(value).__name__}")
    if len(text) > MAX_LENGTH:
        raise ValueError(f"tag {name!r} has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"tag {name!r} has a lone surrogate, which no exporter can encode")
    return text
