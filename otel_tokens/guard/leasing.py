"""How a lease begins and ends: completed by the answer of the store, charged with the cost of the call, given back."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard import units
from otel_tokens.guard.events import Event
from otel_tokens.guard.index import Plan
from otel_tokens.guard.lease import ActiveLease
from otel_tokens.guard.refusal import AccountState
from otel_tokens.guard.state import GuardState
from otel_tokens.guard.store.base import Admission, Booking, StoreError
from otel_tokens.values import Call, Record

SHORTENED = frozenset({units.USD, units.TOKENS, units.OUTPUT_TOKENS})
"""What a shorter answer needs less of."""


def granted(state: GuardState, lease: ActiveLease, answer: Admission) -> ActiveLease:
    """Complete a lease with what the store answered."""
    plan = lease.plan
    lease.expires = (answer.now + state.ttl_ms) / 1000
    lease.balances = answer.balances
    if lease.max_output is None and lease.sizes.output_bound is None and needs_bound(state, lease):
        # What was reserved is a guess: the request is held to it, or a long answer would pass the cap.
        lease.max_output = lease.values["output_tokens"] // max(1, lease.sizes.choices)
    if plan.watched is not None or lease.gas is not None:
        lease.look_at = lease.output = lease.values[plan.watched or "output_tokens"]
    if plan.timed:
        for line, (used, _, limit) in zip(plan.lines, answer.balances, strict=True):
            if line.hard and line.unit == units.SECONDS:
                lease.limit_time(max(0.001, (limit - used) / 1000), line)
        for line in plan.caps:
            if line.hard and line.unit == units.SECONDS:
                lease.limit_time(line.now(answer.now)[2] / 1000, line)
    if plan.graceful:
        tell_overdraft(state, lease, answer)
    if plan.slots:
        warned = state.warned(plan, answer.balances) if state.running_low else None
        if warned:
            lease.decision = "warn"
            state.decisions.warned(plan.tally, warned)
        else:
            state.decisions.allowed(plan.tally)
        state.keeper.hold(lease)
    return lease


def needs_bound(state: GuardState, lease: ActiveLease) -> bool:
    """Whether an answer of unknown length stands under a hard cap: streams are cut, whole answers cannot be."""
    call, options = lease.call, state.options
    if call.stream or call.operation == "embeddings":
        return False
    if lease.plan.watched is None or not options.clamp_unbounded:
        return False
    return options.max_output is None or options.max_output(call.provider, lease.model or call.model) is None


def tell_overdraft(state: GuardState, lease: ActiveLease, answer: Admission) -> None:
    """Say when a call goes beyond a limit under grace."""
    plan = lease.plan
    for line, slot, balance in zip(plan.lines, plan.slots, answer.balances, strict=True):
        if line.hard and slot.grace and balance[0] + balance[1] > balance[2]:
            state.tell("overdraft", line, slot, balance, call=lease.call, now=answer.now)


def tell_clamp(state: GuardState, lease: ActiveLease, answer: Admission) -> None:
    """Say that the answer was made shorter, by the budget with the least left."""
    plan = lease.plan
    rows = [
        (balance[2] - balance[0] - balance[1], line, slot, balance)
        for line, slot, balance in zip(plan.lines, plan.slots, answer.balances, strict=True)
        if line.hard and line.unit in SHORTENED
    ]
    if rows:
        _, line, slot, balance = min(rows, key=lambda row: row[0])
        detail = f"at most {lease.max_output} output tokens"
        state.tell("clamp", line, slot, balance, call=lease.call, now=answer.now, detail=detail)


def without_store(state: GuardState, lease: ActiveLease, error: StoreError) -> ActiveLease:
    """A lease without a reservation: what the call costs is still charged once the store answers again."""
    refusal = state.without_store(error, lease.call)
    if refusal is not None:
        if lease.gas is not None:
            lease.gas.settle(lease.gas_tokens, 0)
        state.keeper.settle(lease.key, (), ())  # it may have been granted all the same
        raise refusal from error
    if lease.sent_model != lease.call.model:
        lease.model = lease.sent_model
    return lease


def unpriced(state: GuardState, plan: Plan, call: Call) -> BudgetExceededError:
    """The refusal of a model without a price under a money budget."""
    now = state.store.now()
    line = next(line for line in (*plan.lines, *plan.caps) if line.hard and line.unit == units.USD)
    slot = next((s for ln, s in zip(plan.lines, plan.slots, strict=True) if ln is line), None) or line.slot("", "", now)
    why = f"no price is known for model {call.model!r} of {call.provider}, so its cost cannot be bounded; "
    state.tell("unpriced", line, slot, (0, 0, slot.limit), call=call, now=now, detail=why.rstrip("; "))
    return state.refuse(AccountState(line, slot, (0, 0, slot.limit)), 0, call=call, now=now, why=why)


def close(state: GuardState, lease: ActiveLease, record: Record) -> None:
    """Charge a call. Only the first end of a lease counts. Never waits for a network."""
    if lease.done:
        return
    lease.done = True
    plan, key, store = lease.plan, lease.key, state.store
    state.keeper.drop(key)
    values = state.meter.actual(plan, lease.sent_model, record, lease.values)
    if lease.gas is not None:
        lease.gas.settle(lease.gas_tokens, values["tokens"])
    amounts = plan.take_actual(values)
    if not amounts:
        pass
    elif store.direct:
        try:
            bookings = store.settle_at_once(key, plan.slots, amounts)
        except StoreError:
            state.keeper.settle(key, plan.slots, amounts, functools.partial(booked, state, lease))
        else:
            booked(state, lease, bookings)
    else:
        state.keeper.settle(key, plan.slots, amounts, functools.partial(booked, state, lease))
    if record.usage.origin != "provider":
        return
    wrong = state.learned.learn(record, lease.sent_model, lease.sizes.input_tokens_estimate)
    if wrong is not None:
        call = lease.call
        detail = f"{wrong:+.0%} tokens against the estimate"
        state.actions.tell(
            Event(
                "estimate", provider=call.provider, model=lease.sent_model, ratio=wrong, detail=detail, at=time.time()
            )
        )


def booked(state: GuardState, lease: ActiveLease, bookings: Sequence[Booking]) -> None:
    """What follows from the balances after a settlement; for a store on the network on the guard's own thread."""
    plan = lease.plan
    if not bookings:
        return
    now = time.time()
    state.burn.append((now, plan.slots, bookings))
    for (_, after, _, limit), share in zip(bookings, plan.first_shares, strict=True):
        if after * 1000 >= limit * share:
            state.running_low = True
            state.crossed(plan.lines, plan.slots, bookings, call=lease.call, now=int(now * 1000))
            break
    if plan.steered:
        balances = [(after, reserved, limit) for _, after, reserved, limit in bookings]
        state.note(plan.slots, plan.lines, balances, int(now * 1000))


def release(state: GuardState, lease: ActiveLease) -> None:
    """Nothing was billed: everything goes back."""
    if lease.done:
        return
    lease.done = True
    state.keeper.drop(lease.key)
    if lease.gas is not None:
        lease.gas.settle(lease.gas_tokens, 0)
    if lease.plan.slots:
        state.give_back(lease.key)
