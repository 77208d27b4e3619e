"""A value as someone gave it, and what can be wrong with it: what all converters share."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple, cast

from otel_tokens.settings.entry import Entry, Path
from otel_tokens.text import shown_url

YES = frozenset({"true", "yes", "on", "1"})
NO = frozenset({"false", "no", "off", "none", "0"})
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"]+")


class Wrong(Exception):  # noqa: N818 (never leaves this room)
    """What is wrong with a value: (path inside the value, message) for each mistake."""

    def __init__(self, message: str = "", *, at: Path = (), items: tuple[tuple[Path, str], ...] = ()) -> None:
        self.items = items or ((at, message),)
        super().__init__(message)


class Given(NamedTuple):
    """A value as someone gave it: `entry` has its place; relative paths start at `folder`."""

    entry: Entry
    folder: str = ""
    default_ledger: Callable[[], str] = str

    @property
    def value(self) -> Any:
        """The raw value."""
        return self.entry.value


def shown(value: Any) -> str:
    """`value` as it may appear in a message: short, and without the secrets of a URL."""
    if isinstance(value, str) and ("://" in value or ("@" in value and ":" in value)):
        value = shown_url(value)
    text = str(value).lower() if isinstance(value, (bool, Decimal)) else repr(value)
    text = _URL.sub(lambda found: shown_url(found[0]), text)
    return text if len(text) <= 80 else text[:77] + "…" + text[0]


def nearest(word: str, words: tuple[str, ...], cutoff: float = 0.6) -> str:
    """ "; did you mean 'x'?" for the word most like `word`, or nothing."""
    from difflib import get_close_matches  # only mistakes need it

    found = get_close_matches(word, words, n=1, cutoff=cutoff)
    return f"; did you mean {found[0]!r}?" if found else ""


def items(given: Given) -> list[Any]:
    """The items of a list, or of a text with commas."""
    value = given.value
    if isinstance(value, str):
        return [part for part in (part.strip() for part in value.split(",")) if part]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(cast("list[Any]", value))
    raise Wrong(f"{shown(value)} is not a list; write [a, b], or a, b")


def each(values: list[Any], one: Callable[[Any], Any]) -> list[Any]:
    """`one` of each value; all their mistakes together."""
    results: list[Any] = []
    wrong: list[tuple[Path, str]] = []
    for index, item in enumerate(values):
        try:
            results.append(one(item))
        except Wrong as error:
            wrong += [((index, *path), message) for path, message in error.items]
    if wrong:
        raise Wrong(items=tuple(wrong))
    return results
