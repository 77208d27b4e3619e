"""The end of a call: what it did cost is booked, thresholds it crossed are acted on, estimates learn from it."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from otel_tokens.guard.events import Event
from otel_tokens.guard.lease import ActiveLease
from otel_tokens.guard.room import Room
from otel_tokens.guard.store.base import Booking, StoreError
from otel_tokens.values import Record


def close(room: Room, lease: ActiveLease, record: Record) -> None:
    """Charge a call. Only the first end of a lease counts. Never waits for a network."""
    if lease.done:
        return
    lease.done = True
    plan, key, store = lease.plan, lease.key, room.store
    room.keeper.drop(key)
    values = room.meter.actual(plan, lease.sent_model, record, lease.values)
    if lease.gas is not None:
        lease.gas.settle(lease.gas_tokens, values["tokens"])
    amounts = [values[unit] for unit in plan.units]
    if not amounts:
        pass
    elif store.direct:
        try:
            bookings = store.settle_at_once(key, plan.slots, amounts)
        except StoreError:
            room.keeper.settle(key, plan.slots, amounts, functools.partial(booked, room, lease))
        else:
            booked(room, lease, bookings)
    else:
        room.keeper.settle(key, plan.slots, amounts, functools.partial(booked, room, lease))
    if record.usage.origin != "provider":
        return
    wrong = room.learned.learn(record, lease.sent_model, lease.sizes.input_tokens_estimate)
    if wrong is not None:
        call = lease.call
        detail = f"{wrong:+.0%} tokens against the estimate"
        room.actions.tell(
            Event(
                "estimate", provider=call.provider, model=lease.sent_model, ratio=wrong, detail=detail, at=time.time()
            )
        )


def booked(room: Room, lease: ActiveLease, bookings: Sequence[Booking]) -> None:
    """What follows from the balances after a settlement; for a store on the network on the guard's own thread."""
    plan = lease.plan
    if not bookings:
        return
    now = time.time()
    room.burn.append((now, plan.slots, bookings))
    for booking, share in zip(bookings, plan.first_shares, strict=True):
        if booking[1] * 1000 >= booking[3] * share:
            room.running_low = True
            room.crossed(plan.lines, plan.slots, bookings, call=lease.call, now=int(now * 1000))
            break
    if plan.steered:
        balances = [(after, reserved, limit) for _, after, reserved, limit in bookings]
        room.note(plan.slots, plan.lines, balances, int(now * 1000))


def release(room: Room, lease: ActiveLease) -> None:
    """Nothing was billed: everything goes back."""
    if lease.done:
        return
    lease.done = True
    room.keeper.drop(lease.key)
    if lease.gas is not None:
        lease.gas.settle(lease.gas_tokens, 0)
    if lease.plan.slots:
        room.give_back(lease.key)
