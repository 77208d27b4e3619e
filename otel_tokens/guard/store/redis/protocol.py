"""Scripts, requests in wire format and answers of the Redis store. Opens no connection."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from otel_tokens.guard.store.base import (
    REMEMBER_MS,
    Admission,
    Balance,
    Booking,
    Refusal,
    Row,
    Slot,
    StoreError,
    window_of,
)

PAGE = 250
"""Accounts or reservations that one script looks at, so that none keeps the server from others for long."""

_CODES: tuple[Refusal, ...] = ("moved", "", "limit", "finished")
_REMEMBERED_SLOTS = 10_000
_SHORT_WAYS = ("admit",)


def bulk(value: str | int) -> bytes:
    """One argument in wire format. Lone surrogates, which tags may have, survive the journey."""
    data = str(value).encode("utf-8", "surrogatepass")
    return b"$%d\r\n%b\r\n" % (len(data), data)


def command(*words: str | int) -> bytes:
    """A command in wire format."""
    return b"*%d\r\n" % len(words) + b"".join(map(bulk, words))


class Script:
    """A Lua script: the operation's short way if it has one, `account.lua`, `rules.lua`, its text."""

    def __init__(self, name: str) -> None:
        here = files("otel_tokens.guard.store.redis")
        names = [f"{name}_short"] if name in _SHORT_WAYS else []
        parts = [(here / f"{part}.lua").read_text("utf-8") for part in (*names, "account", "rules", name)]
        self.text = "\n".join([f"local REMEMBER_MS = {REMEMBER_MS}", *parts])
        # Redis names scripts by SHA-1; nothing here depends on it being secure.
        self.by_digest = b"$7\r\nEVALSHA\r\n" + bulk(hashlib.sha1(self.text.encode()).hexdigest())  # noqa: S324

    @staticmethod
    @cache
    def named(name: str) -> Script:
        """The script of that name, read once."""
        return Script(name)


class Request:
    """One call of a script, ready to send: `short` names it by digest, `full()` brings its text."""

    __slots__ = ("_rest", "_script", "short")

    def __init__(self, script: Script, root: bytes, arguments: Sequence[bytes], count: int) -> None:
        self._script = script
        self._rest = (b"*%d\r\n" % (count + 4), root + b"".join(arguments))
        self.short = self._rest[0] + script.by_digest + self._rest[1]

    def full(self) -> bytes:
        """For a server that does not know the script yet."""
        return self._rest[0] + b"$4\r\nEVAL\r\n" + bulk(self._script.text) + self._rest[1]


class Requests:
    """Makes requests for the accounts under one prefix."""

    def __init__(self, prefix: str) -> None:
        # One hash tag for everything: one admission may touch any accounts, so all live on one node of a cluster.
        self._root = b"$1\r\n1\r\n" + bulk(f"{{{prefix}}}")
        self._slots: dict[str, tuple[Slot, bytes]] = {}

    def admit(self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str) -> Request:
        """Reserve."""
        return self._request("admit", [bulk(key), bulk(ttl_ms), bulk(critical)], slots, amounts)

    def settle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Request:
        """Book the actual amounts."""
        return self._request("settle", [bulk(key)], slots, amounts)

    def renew(self, keys: Sequence[str], ttl_ms: int) -> Request:
        """Let reservations live on."""
        return self._request("renew", [bulk(ttl_ms), *map(bulk, keys)])

    def read(self, slots: Sequence[Slot]) -> Request:
        """Balances."""
        return self._request("read", [], slots, [0] * len(slots))

    def rows(self, budget: str | None, scope: str | None, after: str) -> Request:
        """A page of accounts."""
        low, high = _bounds(budget, scope)
        return self._request(
            "rows", [bulk(after or low), bulk(high), bulk(PAGE), bulk(scope or ""), bulk(int(scope is not None))]
        )

    def change(self, budget: str, op: str, unit: str | None, amount: int, scope: str | None, after: str) -> Request:
        """Change a page of accounts."""
        low, high = _bounds(budget, scope)
        what = [bulk(budget), bulk(op), bulk(unit or ""), bulk(amount)]
        whose = [bulk(scope or ""), bulk(int(scope is not None)), bulk(int(not after))]
        return self._request("change", [bulk(after or low), bulk(high), bulk(PAGE), *what, *whose])

    def _request(
        self, name: str, arguments: list[bytes], slots: Sequence[Slot] = (), amounts: Sequence[int] = ()
    ) -> Request:
        count = len(arguments) + 5 * len(slots)
        known = self._slots
        for slot, amount in zip(slots, amounts, strict=True):
            found = known.get(slot.key)
            arguments.append(found[1] if found is not None and found[0] is slot else self._learn(slot))
            arguments.append(bulk(amount))
        return Request(Script.named(name), self._root, arguments, count)

    def _learn(self, slot: Slot) -> bytes:
        """The unchanging part of a slot's arguments."""
        if len(self._slots) >= _REMEMBERED_SLOTS:
            self._slots.clear()
        words = b"".join((bulk(slot.key), bulk(declaration(slot)), bulk(int(slot.hard)), bulk(slot.grace)))
        self._slots[slot.key] = (slot, words)
        return words


def declaration(slot: Slot) -> str:
    """What an account remembers of the slot: its window and limit, a line each for budget, unit and scope."""
    names = (name.replace("\n", " ").replace("\0", " ") for name in (slot.budget, slot.unit, slot.scope))
    numbers = (slot.start, slot.end, slot.limit, slot.slice_ms, slot.slices, int(slot.wall), slot.keep_ms)
    return "\n".join((" ".join(map(str, numbers)), *names))


def _bounds(budget: str | None, scope: str | None) -> tuple[str, str]:
    """Where the accounts of a budget (and scope) stand in the index; 0xff sorts after all text."""
    if budget is None:
        return "-", "+"
    first = f"[{budget}\0" if scope is None else f"[{budget}\0{scope}\0"
    return first, f"{first}\U0010ffff"


def numbers_of(answer: Any) -> list[int]:
    """The numbers of an answer; the first is the server's clock in unix milliseconds, except for `admit`."""
    try:
        return [int(word) for word in answer.split()]
    except (AttributeError, ValueError) as error:
        raise StoreError(f"Redis answered something else than was asked for: {answer!r:.80}") from error


def admission_of(numbers: list[int]) -> Admission:
    """The answer to `admit`."""
    code, now, refused, retry_at = numbers[:4]
    return Admission(code == 1, now, _threes(numbers, 4), refused, _CODES[code], retry_at)


def balances_of(numbers: list[int]) -> list[Balance]:
    """The answer to `read`."""
    return _threes(numbers, 1)


def bookings_of(numbers: list[int]) -> list[Booking]:
    """The answer to `settle`."""
    return [(numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]) for i in range(1, len(numbers), 4)]


def row_of(text: bytes) -> Row:
    """One account of the answer to `rows`."""
    first, budget, unit, scope, key = text.decode("utf-8", "surrogatepass").split("\n", 4)
    used, reserved, limit, declared, extra, start, end, rolling, overdraft, *rest = map(int, first.split())
    finished, paused, review, updated = rest
    marks = (overdraft, bool(finished), paused, review, updated)
    window = window_of(key, budget, unit, scope)
    return Row(budget, unit, scope, used, reserved, limit, declared, extra, start, end, rolling, *marks, window)


def _threes(numbers: list[int], first: int) -> list[Balance]:
    return [(numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(first, len(numbers), 3)]
