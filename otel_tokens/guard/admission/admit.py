"""Admits a call: makes its reservation, or raises BudgetExceededError.

The usual call takes one request to the store. Others are a `StepwiseAdmission`.
"""

from __future__ import annotations

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.admission.stepwise import StepwiseAdmission
from otel_tokens.guard.estimate.estimator import UnpricedError
from otel_tokens.guard.reservation.amounts import checked
from otel_tokens.guard.reservation.gas import current_critical, current_gas
from otel_tokens.guard.reservation.reservation import ActiveReservation
from otel_tokens.guard.reservation.settle import give_up, granted, unpriced, without_store
from otel_tokens.guard.reservation.state import GuardState
from otel_tokens.guard.store.base import StoreError
from otel_tokens.guard.store.drivers import arun, run
from otel_tokens.safely import interruption, report_fault
from otel_tokens.values import Call, CallSizes

Attempt = ActiveReservation | StepwiseAdmission
"""The reservation that the store is asked for, or an admission that takes more than one request."""


def admit(state: GuardState, call: Call, sizes: CallSizes) -> ActiveReservation | None:
    """The reservation of a call; None when no budget concerns it. Raises BudgetExceededError.

    The usual call is admitted here, without a generator: that would take 2 us more.
    """
    attempt: Attempt | None = None
    try:
        attempt = _first(state, call, checked(sizes))
        if attempt is None:
            return None
        if isinstance(attempt, ActiveReservation):
            answer = state.store.admit(call.id, attempt.plan.slots, attempt.amounts, state.ttl_ms, current_critical())
            if answer.granted:
                return granted(state, attempt, answer)
            attempt = StepwiseAdmission.after(state, attempt, answer)
        return run(attempt.run(), state.store)
    except BaseException as error:
        return _after(state, call, attempt, error)


async def aadmit(state: GuardState, call: Call, sizes: CallSizes) -> ActiveReservation | None:
    """`admit` that never blocks the event loop."""
    attempt: Attempt | None = None
    try:
        attempt = _first(state, call, checked(sizes))
        if attempt is None:
            return None
        if isinstance(attempt, ActiveReservation):
            answer = await state.store.aadmit(
                call.id, attempt.plan.slots, attempt.amounts, state.ttl_ms, current_critical()
            )
            if answer.granted:
                return granted(state, attempt, answer)
            attempt = StepwiseAdmission.after(state, attempt, answer)
        return await arun(attempt.run(), state.store)
    except BaseException as error:
        return _after(state, call, attempt, error)


def _after(state: GuardState, call: Call, attempt: Attempt | None, error: BaseException) -> ActiveReservation | None:
    """What becomes of a call whose admission raised `error`.

    A refusal, a cancellation and what a signal handler of the program raised are raised again: nothing stays reserved.
    A lost store and a fault of ours are decided by the fail mode: a reservation, None, or a refusal raised.
    """
    draft = attempt.draft if isinstance(attempt, StepwiseAdmission) else attempt
    if isinstance(error, BudgetExceededError) and draft is None:
        raise error
    try:
        if isinstance(error, BudgetExceededError) or not isinstance(error, Exception):
            raise error
        if not isinstance(error, StoreError):
            report_fault("guard.admit", error)
        elif (raised := interruption(error)) is not None:
            raise raised
    except BaseException:
        if draft is not None:
            give_up(state, draft)
        raise
    if draft is not None:
        return without_store(state, draft, error)
    return unmeasured(state, call, error)


def unmeasured(state: GuardState, call: Call, error: Exception) -> None:
    """A fault of ours before it is known what to reserve: raises the refusal if any budget may refuse."""
    refusal = state.without_store(error, call, [limit for limit in state.index.limits if not limit.counts_operations])
    if refusal is not None:
        raise refusal from error


def _first(state: GuardState, call: Call, sizes: CallSizes) -> Attempt | None:
    """What to ask the store for, or the story of a call that needs more than one question; None without budgets."""
    plan = state.index.plan(call, call.model, state.store.now())
    if plan.steered or plan.caps or current_gas() is not None:
        return StepwiseAdmission(state, call, sizes)
    if not plan.limits:
        return None
    try:
        values = state.estimator.amounts(plan, call, call.model, sizes, bound=None)
    except UnpricedError:
        raise unpriced(state, plan, call) from None
    return ActiveReservation(call.id, call, sizes, plan, values)
