"""Takes the server's bytes apart into answers (RESP 2)."""

from __future__ import annotations

from typing import Any

_ERRORS = {
    "ASK": "AskError",
    "CLUSTERDOWN": "ClusterDownError",
    "LOADING": "BusyLoadingError",
    "MASTERDOWN": "MasterDownError",
    "MOVED": "MovedError",
    "NOAUTH": "AuthenticationError",
    "NOPERM": "NoPermissionError",
    "NOSCRIPT": "NoScriptError",
    "OOM": "OutOfMemoryError",
    "READONLY": "ReadOnlyError",
    "TRYAGAIN": "TryAgainError",
    "WRONGPASS": "AuthenticationError",
}
"""Codes of the server, and redis-py's exceptions for them."""


class Answers:
    """Collects bytes as they arrive. An error is an answer, too: an exception of `errors`, redis-py's module of them.

    Bulk and simple strings are bytes, integers int, arrays lists, null None.
    """

    def __init__(self, errors: Any) -> None:
        self._errors = errors
        self._rest = b""

    def feed(self, data: bytes) -> list[Any]:
        """The answers that are now complete. Raises ValueError for bytes that are no answer."""
        if self._rest:
            data = self._rest + data
        answers: list[Any] = []
        at = 0
        while (found := self._next(data, at)) is not None:
            answer, at = found
            answers.append(answer)
        self._rest = data[at:]
        return answers

    def _next(self, data: bytes, at: int) -> tuple[Any, int] | None:
        """The answer that begins at `at`, and where it ends; None if it is not complete."""
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        kind, line, at = data[at : at + 1], data[at + 1 : end], end + 2
        if kind == b"$":
            return self._bulk(data, at, int(line))
        if kind == b"*":
            return self._array(data, at, int(line))
        if kind == b":":
            return int(line), at
        if kind == b"+":
            return line, at
        if kind == b"-":
            return self._error(line.decode("utf-8", "replace")), at
        raise ValueError(f"not an answer of Redis: {data[at:]!r:.80}")

    @staticmethod
    def _bulk(data: bytes, at: int, length: int) -> tuple[Any, int] | None:
        if length < 0:
            return None, at
        end = at + length
        return (data[at:end], end + 2) if len(data) >= end + 2 else None

    def _array(self, data: bytes, at: int, length: int) -> tuple[Any, int] | None:
        if length < 0:
            return None, at
        items: list[Any] = []
        for _ in range(length):
            found = self._next(data, at)
            if found is None:
                return None
            items.append(found[0])
            at = found[1]
        return items, at

    def _error(self, text: str) -> Exception:
        code, _, rest = text.partition(" ")
        name = _ERRORS.get(code)
        if name is None:
            return self._errors.ResponseError(text.removeprefix("ERR "))
        return getattr(self._errors, name, self._errors.ResponseError)(rest)
