"""Counts operations of the application (file edits, shell commands) before they happen: all of a step, or none."""

from __future__ import annotations

from otel_tokens.guard.budgets.units import OPERATIONS
from otel_tokens.guard.reporting.refusal import AccountState
from otel_tokens.guard.reservation.gas import current_critical
from otel_tokens.guard.reservation.state import GuardState, operation_key
from otel_tokens.guard.store.base import Admission, StoreError
from otel_tokens.guard.store.drivers import Steps

_ROUNDS = 5


def count(state: GuardState, operation: str, amount: int, *, dangerous: bool) -> Steps[None]:
    """Count `amount` operations under the current tags, or raise BudgetExceededError and count none."""
    if amount < 0:
        raise ValueError("operations are counted up, never down")
    wanted = [OPERATIONS, f"{OPERATIONS}:{operation}"]
    if dangerous:
        wanted.append(f"{OPERATIONS}:dangerous")
    tags = state.options.tags()
    now = state.store.now()
    for _ in range(_ROUNDS):
        lines, slots = state.index.operations(tags, wanted, now)
        if not lines:
            return
        try:
            answer: Admission = yield ("admit", operation_key(), slots, [amount] * len(slots), 0, current_critical())
        except StoreError as error:
            refusal = state.without_store(error, None)
            if refusal is not None:
                raise refusal from error
            return
        now = answer.now
        if answer.granted:
            bookings = [(used - amount, used, reserved, limit) for used, reserved, limit in answer.balances]
            state.crossed(lines, slots, bookings, call=None, now=now)
            return
        if answer.reason != "moved":
            line, slot = lines[answer.refused], slots[answer.refused]
            balance = answer.balances[answer.refused]
            why = "finished by hand: " if answer.reason == "finished" else ""
            raise state.refuse(AccountState(line, slot, balance), amount, call=None, now=now, why=why)
