"""A mistake in a declaration, raised before its file and line are known."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Generator
from contextlib import contextmanager


class Mistake(ValueError):  # noqa: N818 (it never leaves the package as an error)
    """What is wrong, and the steps (keys, list positions) down to the value. Becomes a `ConfigError`."""

    def __init__(self, message: str, *steps: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.steps: tuple[str | int, ...] = steps

    @staticmethod
    @contextmanager
    def at(*steps: str | int) -> Generator[None]:
        """What goes wrong inside went wrong at `steps`; a plain ValueError becomes a `Wrong`."""
        try:
            yield
        except Mistake as error:
            error.steps = steps + error.steps
            raise
        except ValueError as error:
            raise Mistake(str(error), *steps) from None


def check(good: bool, message: str) -> None:
    """Raise `Wrong` unless `good`."""
    if not good:
        raise Mistake(message)


def one_of(value: object, allowed: Collection[str], what: str = "value") -> str:
    """`value`, if it is allowed; else `Wrong` with the nearest allowed one and all of them."""
    if isinstance(value, str) and value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise Mistake(f"{value!r} is not a known {what}{hint}; allowed: {', '.join(allowed)}")
