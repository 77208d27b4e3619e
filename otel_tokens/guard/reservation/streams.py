"""Extends the reservation of a stream that produces more than was reserved, or cuts the stream."""

from __future__ import annotations

import time
from collections.abc import Sequence

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.reporting.refusal import AccountState, cut
from otel_tokens.guard.reservation.amounts import within_store
from otel_tokens.guard.reservation.reservation import ActiveReservation
from otel_tokens.guard.reservation.state import GuardState
from otel_tokens.guard.store.base import Admission, EndedError, StoreError
from otel_tokens.guard.store.drivers import Steps, run

_LARGE_STEP = 256
_SMALL_STEP = 32


def look(state: GuardState, reservation: ActiveReservation, tokens: int) -> BudgetExceededError | None:
    """Whether a stream that has produced about `tokens` output tokens must end now."""
    if reservation.done:
        return None
    if isinstance(reservation.pending, BudgetExceededError):
        return reservation.pending
    if (
        reservation.deadline is not None
        and reservation.timed_by is not None
        and time.monotonic() >= reservation.deadline
    ):
        return _out_of_time(state, reservation, reservation.timed_by, tokens)
    if reservation.output <= 0 or tokens <= reservation.output:
        return None
    if state.store.direct or not reservation.plan.slots:
        return run(more(state, reservation, tokens), state.store)
    return _ask_in_background(state, reservation, tokens)


def _ask_in_background(state: GuardState, reservation: ActiveReservation, tokens: int) -> BudgetExceededError | None:
    """The caller may be an event loop: ask on another thread, let the stream run on until the answer is there."""
    if reservation.pending is None:
        reservation.pending = "asking"

        def ask() -> None:
            answer = None
            try:
                answer = run(more(state, reservation, tokens), state.store)
            finally:
                reservation.pending = answer

        state.background.add(0.0, "guard stream", ask)
    return None


def more(state: GuardState, reservation: ActiveReservation, tokens: int) -> Steps[BudgetExceededError | None]:
    """Reserve for a stream that outgrew its reservation: a good part more, or a little, or the error to end it with."""
    for step in (max(_LARGE_STEP, tokens // 4), _SMALL_STEP):
        target = tokens + step
        values = state.estimator.grown(
            reservation.plan, reservation.call, reservation.sizes, reservation.values, output=target
        )
        extra = within_store([values[m] - reservation.values[m] for m in reservation.plan.measures])
        try:
            tokens_more = values["tokens"] - reservation.values["tokens"]
            if reservation.gas is not None:
                reservation.gas.reserve(tokens_more)
        except BudgetExceededError as error:
            return _reported(state, reservation, error)
        if not reservation.plan.slots:
            _grown(reservation, values, extra, tokens_more, target)
            return None
        try:
            answer: Admission | None = yield ("admit", reservation.key, reservation.plan.slots, extra, state.ttl_ms)
        except EndedError:
            answer = None
        except StoreError as error:
            refusal = state.without_store(error, reservation.call, reservation.plan.limits)
            if refusal is not None:
                return refusal
            answer = Admission(True, 0, ())
        if answer is None or reservation.done:  # it ended meanwhile: nobody else gives this back
            state.release_key(reservation.key)
            return None
        if answer.granted or answer.reason == "moved":  # the window it was admitted in is over: no longer its limit
            _grown(reservation, values, extra, tokens_more, target)
            return None
        if reservation.gas is not None:
            reservation.gas.settle(tokens_more, 0)
    limit, slot = reservation.plan.limits[answer.refused], reservation.plan.slots[answer.refused]
    why = "finished by hand" if answer.reason == "finished" else ""
    account = AccountState(limit, slot, answer.balances[answer.refused])
    return _cut(state, reservation, account, tokens, now=answer.now, why=why)


def _grown(
    reservation: ActiveReservation, values: dict[str, int], extra: Sequence[int], tokens_more: int, target: int
) -> None:
    reservation.values = values
    reservation.amounts = [old + new for old, new in zip(reservation.amounts, extra, strict=True)]
    if reservation.gas is not None:
        reservation.gas_tokens += tokens_more
    reservation.output = target
    if reservation.deadline is None:
        reservation.look_at = target


def _out_of_time(state: GuardState, reservation: ActiveReservation, limit: Limit, tokens: int) -> BudgetExceededError:
    """The error of a stream whose time is up: its own, or its task's."""
    now = state.store.now()
    plan = reservation.plan
    slots = {id(own): slot for own, slot in zip(plan.limits, plan.slots, strict=True)}
    slot = slots.get(id(limit)) or limit.slot("", "", now)
    account = AccountState(limit, slot, (slot.limit, 0, slot.limit))
    return _cut(state, reservation, account, tokens, now=now, why="its time is up")


def _cut(
    state: GuardState,
    reservation: ActiveReservation,
    account: AccountState,
    tokens: int,
    *,
    now: int,
    why: str,
) -> BudgetExceededError:
    limit, slot, balance = account
    state.decisions.single(limit.name, "deny", reservation.call.provider, reservation.call.model, "cut")
    state.report(
        "cut", limit, slot, balance, call=reservation.call, now=now, detail=why or f"after {tokens} output tokens"
    )
    return _ended(reservation, cut(account, tokens, now=now, why=why))


def _reported(state: GuardState, reservation: ActiveReservation, error: BudgetExceededError) -> BudgetExceededError:
    state.decisions.single(error.budget, "deny", reservation.call.provider, reservation.call.model, "cut")
    return _ended(reservation, error)


def _ended(reservation: ActiveReservation, error: BudgetExceededError) -> BudgetExceededError:
    """From now on every look finds this error."""
    reservation.pending, reservation.look_at = error, 0
    return error
