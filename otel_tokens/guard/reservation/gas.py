"""Allowances of one instruction (`gas`) and critical sections (`critical`). They follow the context, not the thread."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Sequence
from contextvars import ContextVar, Token
from decimal import Decimal
from types import TracebackType
from typing import TypeVar

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.reservation.amounts import counted

V = TypeVar("V")

_current_gas: ContextVar[Gas | None] = ContextVar("otel_tokens_gas", default=None)
_current_critical: ContextVar[str] = ContextVar("otel_tokens_critical", default="")
_lock = threading.Lock()


def _after_fork() -> None:
    # Another thread of the parent may have held it, and is not here to let go.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def current_gas() -> Gas | None:
    """The innermost allowance here, or None."""
    return _current_gas.get()


def current_critical() -> str:
    """The key of the critical section here, "" outside."""
    return _current_critical.get()


class Gas:
    """Tokens for one instruction: `with guard.gas(50_000) as gas:`; nested ones also use up the outer ones.

    Calls inside (also in tasks started inside) reserve before they run and are refused once it is empty.
    Threads do not inherit it, as they inherit no context variable.
    """

    __slots__ = ("_token", "limit", "name", "outer", "reserved", "used")

    def __init__(self, tokens: int, name: str = "gas") -> None:
        self.limit = counted(tokens, "tokens of gas")
        self.name = name
        self.used = 0
        self.reserved = 0
        self.outer: Gas | None = None
        self._token: Token[Gas | None] | None = None

    @property
    def remaining(self) -> int:
        """Tokens left, here and in every outer allowance; reserved ones are not left. Never below 0."""
        with _lock:
            return max(0, min(gas.limit - gas.used - gas.reserved for gas in self._chain()))

    def _chain(self) -> list[Gas]:
        chain: list[Gas] = []
        gas: Gas | None = self
        while gas is not None:
            chain.append(gas)
            gas = gas.outer
        return chain

    def reserve(self, tokens: int) -> None:
        """Take `tokens` from this and all outer allowances, or raise BudgetExceededError and take none."""
        with _lock:
            chain = self._chain()
            for gas in chain:
                if gas.used + gas.reserved + tokens > gas.limit:
                    raise gas.exceeded(tokens)
            self._change([(gas, gas.used, gas.reserved + tokens) for gas in chain])

    def settle(self, reserved: int, actual: int) -> None:
        """Give `reserved` back and use up `actual`."""
        with _lock:
            self._change([(gas, gas.used + actual, gas.reserved - reserved) for gas in self._chain()])

    @staticmethod
    def _change(rows: Sequence[tuple[Gas, int, int]]) -> None:
        """Set (used, reserved) of several allowances: of all or, when a signal handler raises here, of none."""
        before = [(gas, gas.used, gas.reserved) for gas, _, _ in rows]
        try:
            for gas, used, reserved in rows:
                gas.used, gas.reserved = used, reserved
        except BaseException:
            for gas, used, reserved in before:
                gas.used, gas.reserved = used, reserved
            raise

    def exceeded(self, tokens: int) -> BudgetExceededError:
        """The refusal of a call that may use `tokens`."""
        return BudgetExceededError(
            f"{self.name}: {self.used:,} of {self.limit:,} tokens used, {self.reserved:,} reserved, "
            f"this call may use up to {tokens:,} tokens",
            budget=self.name,
            unit="tokens",
            limit=Decimal(self.limit),
            used=Decimal(self.used),
            reserved=Decimal(self.reserved),
            requested=Decimal(tokens),
        )

    def __enter__(self) -> Gas:
        if self._token is not None:
            raise RuntimeError("this allowance is already in use; make one per block")
        self.outer = _current_gas.get()
        self._token = _current_gas.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave(_current_gas, self._token, self.outer)
        self._token = None


class Critical:
    """A section that may go into overdraft, once: `with guard.critical("git commit"):`."""

    __slots__ = ("_token", "key", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = f"{name}#{uuid.uuid4().hex[:12]}"
        self._token: Token[str] | None = None

    def __enter__(self) -> Critical:
        self._token = _current_critical.set(self.key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave(_current_critical, self._token, "")
        self._token = None


def _leave(variable: ContextVar[V], token: Token[V] | None, outer: V) -> None:
    if token is None:
        return
    try:
        variable.reset(token)
    except ValueError:
        variable.set(outer)  # left in another context than it was entered in (a generator run by another task)
