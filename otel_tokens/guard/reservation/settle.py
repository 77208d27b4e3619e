"""Completes, settles and releases reservations."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets import units
from otel_tokens.guard.estimate.matching import Plan
from otel_tokens.guard.reporting.events import Event
from otel_tokens.guard.reporting.refusal import AccountState
from otel_tokens.guard.reservation.amounts import within_store
from otel_tokens.guard.reservation.reservation import ActiveReservation
from otel_tokens.guard.reservation.state import GuardState
from otel_tokens.guard.store.base import Admission, Booking, StoreError
from otel_tokens.safely import report_fault
from otel_tokens.values import Call, Record

SHORTENED = frozenset({units.USD, units.TOKENS, units.OUTPUT_TOKENS})
"""What a shorter answer needs less of."""


def granted(state: GuardState, reservation: ActiveReservation, answer: Admission) -> ActiveReservation:
    """Complete a reservation with what the store answered."""
    plan = reservation.plan
    reservation.expires = (answer.now + state.ttl_ms) / 1000
    reservation.balances = answer.balances
    if reservation.max_output is None and reservation.sizes.output_bound is None and needs_bound(state, reservation):
        # What was reserved is a guess: the request is held to it, or a long answer would pass the cap.
        reservation.max_output = reservation.values["output_tokens"] // max(1, reservation.sizes.choices)
    if plan.watched is not None or reservation.gas is not None:
        reservation.look_at = reservation.output = reservation.values[plan.watched or "output_tokens"]
    if plan.timed:
        for limit, (used, _, most) in zip(plan.limits, answer.balances, strict=True):
            if limit.hard and limit.unit == units.SECONDS:
                reservation.limit_time(max(0.001, (most - used) / 1000), limit)
        for limit in plan.caps:
            if limit.hard and limit.unit == units.SECONDS:
                reservation.limit_time(limit.now(answer.now)[2] / 1000, limit)
    if plan.graceful:
        report_overdraft(state, reservation, answer)
    if plan.slots:
        warned = state.warned(plan, answer.balances) if state.running_low else None
        if answer.lost:
            reservation.decision = "warn" if warned else "allow"
            state.allowed_locally(plan.limits, warned or (), call=reservation.call, lost=answer.lost)
        elif warned:
            reservation.decision = "warn"
            state.decisions.warned(plan.decision_key, warned)
        else:
            state.decisions.allowed(plan.decision_key)
        state.renewer.hold(reservation)
    return reservation


def needs_bound(state: GuardState, reservation: ActiveReservation) -> bool:
    """Whether an answer of unknown length stands under a hard cap: streams are cut, whole answers cannot be."""
    call, options = reservation.call, state.options
    if call.stream or call.operation == "embeddings":
        return False
    if reservation.plan.watched is None or not options.clamp_unbounded:
        return False
    return options.max_output is None or options.max_output(call.provider, reservation.model or call.model) is None


def report_overdraft(state: GuardState, reservation: ActiveReservation, answer: Admission) -> None:
    """Say when a call goes beyond a limit under grace."""
    plan = reservation.plan
    for limit, slot, balance in zip(plan.limits, plan.slots, answer.balances, strict=True):
        if limit.hard and slot.grace and balance[0] + balance[1] > balance[2]:
            state.report("overdraft", limit, slot, balance, call=reservation.call, now=answer.now)


def report_clamp(state: GuardState, reservation: ActiveReservation, answer: Admission) -> None:
    """Say that the answer was made shorter, by the budget with the least left."""
    plan = reservation.plan
    rows = [
        (balance[2] - balance[0] - balance[1], limit, slot, balance)
        for limit, slot, balance in zip(plan.limits, plan.slots, answer.balances, strict=True)
        if limit.hard and limit.unit in SHORTENED
    ]
    if rows:
        _, limit, slot, balance = min(rows, key=lambda row: row[0])
        detail = f"at most {reservation.max_output} output tokens"
        state.report("clamp", limit, slot, balance, call=reservation.call, now=answer.now, detail=detail)


def without_store(state: GuardState, reservation: ActiveReservation, error: Exception) -> ActiveReservation:
    """The reservation of a call that goes on although the store had no part in it, or the refusal raised.

    What the call costs is charged once the store answers again.
    """
    refusal = state.without_store(error, reservation.call, reservation.plan.limits)
    if refusal is not None:
        give_up(state, reservation)
        raise refusal from error
    if reservation.sent_model != reservation.call.model:
        reservation.model = reservation.sent_model
    return reservation


def give_up(state: GuardState, reservation: ActiveReservation) -> None:
    """Give back a reservation whose call is not sent. The store may have made it, or not."""
    try:
        _give_back(state, reservation)
    except BaseException:
        _give_back(state, reservation)  # interrupted half-way; each step may be done twice
        raise


def _give_back(state: GuardState, reservation: ActiveReservation) -> None:
    state.renewer.drop(reservation.key)
    reservation.end_gas(0)
    if reservation.plan.slots:
        state.release_key(reservation.key)
    reservation.done = True


def unpriced(state: GuardState, plan: Plan, call: Call) -> BudgetExceededError:
    """The refusal of a model without a price under a money budget."""
    now = state.store.now()
    limit = next(limit for limit in (*plan.limits, *plan.caps) if limit.hard and limit.unit == units.USD)
    slots = (slot for own, slot in zip(plan.limits, plan.slots, strict=True) if own is limit)
    slot = next(slots, None) or limit.slot("", "", now)
    why = f"no price is known for model {call.model!r} of {call.provider}, so its cost cannot be bounded; "
    state.report("unpriced", limit, slot, (0, 0, slot.limit), call=call, now=now, detail=why.rstrip("; "))
    return state.refuse(AccountState(limit, slot, (0, 0, slot.limit)), 0, call=call, now=now, why=why)


def settle(state: GuardState, reservation: ActiveReservation, record: Record | None) -> None:
    """Charge a call, without a record as it was reserved. Only the first end of a reservation counts.

    Never waits for a network. A fault of ours charges the call as it was reserved.
    """
    if reservation.done:
        return
    try:
        _end(state, reservation, _used(state, reservation, record))
    except BaseException:
        _end(state, reservation, _as_reserved(reservation))  # where it is booked already, this changes nothing
        raise
    if record is not None and record.usage.origin == "provider":
        _learn(state, reservation, record)


_Used = tuple[Sequence[int], int]
"""What a call used: the amount on each slot, and the tokens that its gas is charged."""


def _used(state: GuardState, reservation: ActiveReservation, record: Record | None) -> _Used:
    plan = reservation.plan
    try:
        if record is not None:
            values = state.estimator.actual(plan, reservation.sent_model, record, reservation.values)
            return within_store(plan.take_actual(values)), values["tokens"]
    except Exception as error:
        report_fault("guard.settle", error)
    return _as_reserved(reservation)


def _as_reserved(reservation: ActiveReservation) -> _Used:
    return reservation.amounts, reservation.gas_tokens


def _end(state: GuardState, reservation: ActiveReservation, used: _Used) -> None:
    amounts, tokens = used
    state.renewer.drop(reservation.key)
    reservation.end_gas(tokens)
    if amounts:
        _charge(state, reservation, amounts)
    reservation.done = True


def _charge(state: GuardState, reservation: ActiveReservation, amounts: Sequence[int]) -> None:
    """Book the amounts: now if the store is near and not busy, else soon."""
    if state.store.direct:
        try:
            bookings = state.store.settle_at_once(reservation.key, reservation.plan.slots, amounts)
        except StoreError:
            pass  # busy, or lost
        except Exception as error:
            _charge_soon(state, reservation, amounts)
            report_fault("guard.settle", error)
            return
        except BaseException:
            _charge_soon(state, reservation, amounts)
            raise
        else:
            booked(state, reservation, bookings)
            return
    _charge_soon(state, reservation, amounts)


def _charge_soon(state: GuardState, reservation: ActiveReservation, amounts: Sequence[int]) -> None:
    slots, key = reservation.plan.slots, reservation.key
    if state.local is not None:
        state.local.settled(key, slots, amounts, reservation.amounts)
    state.renewer.settle(key, slots, amounts, functools.partial(booked, state, reservation))


def _learn(state: GuardState, reservation: ActiveReservation, record: Record) -> None:
    """Let later estimates know what the call used; report an estimate that was far off."""
    wrong = state.history.learn(record, reservation.sent_model, reservation.sizes.input_tokens_estimate)
    if wrong is None:
        return
    call = reservation.call
    detail = f"{wrong:+.0%} tokens against the estimate"
    event = Event(
        "estimate",
        provider=call.provider,
        model=reservation.sent_model,
        ratio=wrong,
        detail=detail,
        at=time.time(),
    )
    state.actions.report(event)


def booked(state: GuardState, reservation: ActiveReservation, bookings: Sequence[Booking]) -> None:
    """What follows from the balances after a settlement; for a store on the network on the guard's own thread."""
    plan = reservation.plan
    if not bookings:
        return
    now = time.time()
    state.burn.append((now, plan.slots, bookings))
    rows = zip(bookings, plan.first_thresholds)  # noqa: B905 (`strict` costs a call)
    for (_, after, _, limit), (declared, threshold, share) in rows:
        if after >= threshold if limit == declared else after * 1000 >= limit * share:
            state.running_low = True
            state.crossed(plan.limits, plan.slots, bookings, call=reservation.call, now=int(now * 1000))
            break
    if plan.steered:
        balances = [(after, reserved, limit) for _, after, reserved, limit in bookings]
        state.note(plan.slots, plan.limits, balances, int(now * 1000))


def release(state: GuardState, reservation: ActiveReservation) -> None:
    """Nothing was billed: everything goes back."""
    if not reservation.done:
        give_up(state, reservation)
