"""What follows an answer of the store: the lease is completed, or the call is let through or refused without it."""

from __future__ import annotations

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard import units
from otel_tokens.guard.lease import ActiveLease
from otel_tokens.guard.plan import Plan
from otel_tokens.guard.refusal import Spot
from otel_tokens.guard.room import Room
from otel_tokens.guard.store.base import Admission, StoreError
from otel_tokens.values import Call


def granted(room: Room, lease: ActiveLease, answer: Admission) -> ActiveLease:
    """Complete a lease with what the store answered."""
    plan = lease.plan
    lease.expires = (answer.now + room.ttl_ms) / 1000
    if lease.max_output is None and needs_bound(room, lease):
        # What was reserved is a guess: the request is held to it, or a long answer would pass the cap.
        lease.max_output = lease.values["output_tokens"] // max(1, lease.sizes.choices)
    if plan.watched is not None or lease.gas is not None:
        lease.look_at = lease.output = lease.values[plan.watched or "output_tokens"]
    if plan.timed:
        for line, (used, _, limit) in zip(plan.lines, answer.balances, strict=True):
            if line.hard and line.unit == units.SECONDS:
                lease.limit_time(max(0.001, (limit - used) / 1000))
        for line in plan.caps:
            if line.hard and line.unit == units.SECONDS:
                lease.limit_time(line.now(answer.now)[2] / 1000)
    if plan.graceful:
        tell_overdraft(room, lease, answer)
    if plan.slots:
        warned = room.warned(plan, answer.balances) if room.running_low else None
        if warned:
            lease.decision = "warn"
            room.decisions.warned(plan.tally, warned)
        else:
            room.decisions.allowed(plan.tally)
        room.keeper.hold(lease)
    return lease


def needs_bound(room: Room, lease: ActiveLease) -> bool:
    """Whether an answer of unknown length stands under a hard cap: streams are cut, whole answers cannot be."""
    call, options = lease.call, room.options
    if lease.sizes.output_bound is not None or call.stream or call.operation == "embeddings":
        return False
    if lease.plan.watched is None or not options.clamp_unbounded:
        return False
    return options.max_output is None or options.max_output(call.provider, lease.model or call.model) is None


def tell_overdraft(room: Room, lease: ActiveLease, answer: Admission) -> None:
    """Say when a call goes beyond a limit under grace."""
    plan = lease.plan
    for line, slot, balance in zip(plan.lines, plan.slots, answer.balances, strict=True):
        if line.hard and slot.grace and balance[0] + balance[1] > balance[2]:
            room.tell("overdraft", line, slot, balance, call=lease.call, now=answer.now)


def without_store(room: Room, lease: ActiveLease, error: StoreError) -> ActiveLease:
    """A lease without a reservation: what the call costs is still charged once the store answers again."""
    refusal = room.without_store(error, lease.call)
    if refusal is not None:
        if lease.gas is not None:
            lease.gas.settle(lease.gas_tokens, 0)
        room.keeper.settle(lease.key, (), ())  # it may have been granted all the same
        raise refusal from error
    if lease.sent_model != lease.call.model:
        lease.model = lease.sent_model
    return lease


def unpriced(room: Room, plan: Plan, call: Call) -> BudgetExceededError:
    """The refusal of a model without a price under a money budget."""
    now = room.store.now()
    line = next(line for line in (*plan.lines, *plan.caps) if line.hard and line.unit == units.USD)
    slot = next((s for ln, s in zip(plan.lines, plan.slots, strict=True) if ln is line), None) or line.slot("", "", now)
    why = f"no price is known for model {call.model!r} of {call.provider}, so its cost cannot be bounded; "
    room.tell("unpriced", line, slot, (0, 0, slot.limit), call=call, now=now, detail=why.rstrip("; "))
    return room.refuse(Spot(line, slot, (0, 0, slot.limit)), 0, call=call, now=now, why=why)
