"""A wrapper inside a function: its code is exchanged, and the function object stays what it was.

For functions that others take hold of: they keep one in a closure or on a client, and put it back later. A wrapper that
stands on the class is passed by then, or ends up around theirs. Inside the function it is always the innermost one, and
once it is taken off nothing of it is left anywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType, FunctionType, MethodType
from typing import Any

_HERE = "<here>"
"""A constant of the code below, which runs with the globals of the other function: each copy gets its InPlace there."""


def _call(self: Any, /, *args: Any, **keywords: Any) -> Any:
    here: Any = "<here>"
    return here(self, args, keywords)


async def _acall(self: Any, /, *args: Any, **keywords: Any) -> Any:
    here: Any = "<here>"
    return await here(self, args, keywords)


class InPlace:
    """A wrapper (as wrapt calls them) inside a method `function`; coroutine functions stay such. Raises TypeError for
    what cannot hold one: a closure, or anything but a plain function."""

    __slots__ = ("code", "function", "inner", "on", "shim", "wrapper")

    def __init__(self, found: Any, wrapper: Callable[..., Any]) -> None:
        function = innermost(found)
        if function is None:
            raise TypeError(f"{found!r} holds no plain function")
        self.function, self.wrapper, self.on = function, wrapper, True
        self.code = function.__code__
        self.inner = FunctionType(self.code, function.__globals__, function.__name__, function.__defaults__)
        self.inner.__kwdefaults__ = function.__kwdefaults__
        self.shim = self._shim(_acall if inspect.iscoroutinefunction(function) else _call)
        if "__signature__" not in vars(function):
            function.__signature__ = inspect.signature(function)  # pyright: ignore[reportFunctionMemberAccess]
        function.__code__ = self.shim

    def _shim(self, like: FunctionType) -> CodeType:
        code = like.__code__
        return code.replace(co_consts=tuple(self if held == _HERE else held for held in code.co_consts))

    def __call__(self, instance: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What the function does instead."""
        if self.on:
            return self.wrapper(MethodType(self.inner, instance), instance, args, keywords)
        return self.inner(instance, *args, **keywords)

    def holds(self, found: Any) -> bool:
        """Whether this stands inside `found`."""
        return innermost(found) is self.function

    def off(self) -> None:
        """Give the function its own code back, also when another one came to stand around this one."""
        self.on = False
        if self.function.__code__ is self.shim:
            self.function.__code__ = self.code
            if _in(self.code) is None:
                vars(self.function).pop("__signature__", None)
            self.shim = self.code  # the collector does not see code objects: nothing else would end this circle
            return
        around = _in(self.function.__code__)
        while around is not None and around.code is not self.shim:
            around = _in(around.code)
        if around is not None:
            around.code = around.inner.__code__ = self.shim = self.code


def _in(code: CodeType) -> InPlace | None:
    return next((held for held in code.co_consts if isinstance(held, InPlace)), None)


def innermost(found: Any) -> FunctionType | None:
    """The plain function that others' wrappers were put around, or None if there is none that can hold a wrapper."""
    for _ in range(50):
        inner = getattr(found, "__wrapped__", None)
        if inner is None:
            break
        found = getattr(inner, "__func__", inner)
    return found if isinstance(found, FunctionType) and not found.__closure__ else None
