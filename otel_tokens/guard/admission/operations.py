"""Counts operations of the application (file edits, shell commands) before they happen: all of a step, or none."""

from __future__ import annotations

from otel_tokens.guard.budgets.units import OPERATIONS
from otel_tokens.guard.reporting.refusal import AccountState
from otel_tokens.guard.reservation.amounts import counted
from otel_tokens.guard.reservation.gas import current_critical
from otel_tokens.guard.reservation.state import GuardState, operation_key
from otel_tokens.guard.store.base import Admission, StoreError
from otel_tokens.guard.store.drivers import Steps

_ROUNDS = 5


def count(state: GuardState, operation: str, amount: int, *, dangerous: bool) -> Steps[None]:
    """Count `amount` operations under the current tags, or raise BudgetExceededError and count none."""
    amount = counted(amount, "operations")
    wanted = [OPERATIONS, f"{OPERATIONS}:{operation}"]
    if dangerous:
        wanted.append(f"{OPERATIONS}:dangerous")
    tags = state.options.tags()
    now = state.store.now()
    for _ in range(_ROUNDS):
        limits, slots = state.index.operations(tags, wanted, now)
        if not limits:
            return
        key, amounts = operation_key(), [amount] * len(slots)
        try:
            answer: Admission = yield ("admit", key, slots, amounts, 0, current_critical())
        except StoreError as error:
            refusal = state.without_store(error, None, limits)
            if refusal is not None:
                raise refusal from error
            state.renewer.settle(key, slots, amounts)
            return
        now = answer.now
        if answer.granted and answer.lost:
            state.allowed_locally(limits, (), call=None, lost=answer.lost)
            state.renewer.settle(key, slots, amounts)
            return
        if answer.granted:
            bookings = [(used - amount, used, reserved, limit) for used, reserved, limit in answer.balances]
            state.crossed(limits, slots, bookings, call=None, now=now)
            return
        if answer.reason != "moved":
            account = AccountState(limits[answer.refused], slots[answer.refused], answer.balances[answer.refused])
            if answer.lost:
                raise state.refuse_locally(account, amount, call=None, answer=answer)
            why = "finished by hand: " if answer.reason == "finished" else ""
            raise state.refuse(account, amount, call=None, now=now, why=why)
